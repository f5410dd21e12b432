/* So many MiB of text, a mark, and so many times all of it is read, in two orders:
 * reading MIB TIMES */
#include "noise.h"

#define WORDS 512

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    size_t pages = strtoul(arguments[1], NULL, 10) * (MIB / 4096);
    unsigned long times = strtoul(arguments[2], NULL, 10);
    setvbuf(stdout, NULL, _IONBF, 0);
    uint64_t *words = malloc(pages * 4096);
    if (!words)
        return 3;
    for (size_t page = 0; page < pages; page++)
        fill_text(words + page * WORDS, WORDS, page);
    mark();
    for (unsigned long time = 0; time < times; time++)
        for (size_t step = 0; step < pages; step++) {
            size_t page = time % 2 ? (step * 40503 + time) % pages : step;
            look_at_text(words + page * WORDS, WORDS, page);
        }
    puts("ok");
    return 0;
}
