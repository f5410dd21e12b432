/* So many MiB of text; children, two at a time, each of which writes every second page
 * of what it shares, as its parent does, and grows: forks MIB CHILDREN */
#include <sys/wait.h>
#include "noise.h"

#define PAGE_WORDS 512

static void change(uint64_t *words, size_t pages, uint64_t key) {
    for (size_t page = 0; page < pages; page += 2)
        fill_text(words + page * PAGE_WORDS, PAGE_WORDS, key + page);
}
static void look(const uint64_t *words, size_t pages, uint64_t changed) {
    for (size_t page = 0; page < pages; page++)
        look_at_text(words + page * PAGE_WORDS, PAGE_WORDS, (page % 2 ? 1 : changed) + page);
}

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    size_t mib = strtoul(arguments[1], NULL, 10), children = strtoul(arguments[2], NULL, 10);
    size_t pages = mib * MIB / 4096, running = 0;
    uint64_t *words = malloc(pages * 4096);
    if (!words)
        return 3;
    for (size_t page = 0; page < pages; page++)
        fill_text(words + page * PAGE_WORDS, PAGE_WORDS, 1 + page);
    for (size_t child = 0; child <= children; child++) {
        int status;
        if (running == 2 || child == children) {
            for (; running > (child == children ? 0 : 1); running--)
                if (wait(&status) < 0 || status != 0) {
                    printf("a child ends with %#x\n", status);
                    return 4;
                }
            if (child == children)
                break;
        }
        fflush(stdout);
        pid_t process = fork();
        if (process < 0)
            return 5;
        if (process == 0) {
            change(words, pages, 1000 + child);
            look(words, pages, 1000 + child);
            _exit(0);
        }
        running++;
        change(words, pages, 2000 + child);
        look(words, pages, 2000 + child);
    }
    puts("ok");
    return 0;
}
