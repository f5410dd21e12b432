/* A part of a range is protected, the rest is put away: what opens the whole range opens
 * no page that is not there. */
#include "ghosts.h"
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 64

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    for (int round = 0; round < 4; round++) {
        char *p = ghost(PAGES * PAGE);
        for (size_t at = 0; at < PAGES * PAGE; at++) p[at] = (char)(at * 7 + at / PAGE + round);
        CHECK(mprotect(p + 9 * PAGE, 3 * PAGE, PROT_READ) == 0);
        CHECK(mprotect(p + 40 * PAGE, PAGE, round % 2 ? PROT_READ : PROT_NONE) == 0);
        evict();
        if (round < 2) {
            CHECK(mprotect(p, PAGES * PAGE, PROT_READ | PROT_WRITE) == 0);
            for (size_t at = 0; at < PAGES * PAGE; at++) CHECK(p[at] == (char)(at * 7 + at / PAGE + round));
            memset(p, 9, PAGES * PAGE);
            evict();
            for (size_t at = 0; at < PAGES * PAGE; at++) CHECK(p[at] == 9);
        }
        free(p);
        /* Whoever gets the memory next finds it closed until it is touched. */
        char *next[8];
        for (int at = 0; at < 8; at++) {
            next[at] = ghost(PAGES * PAGE);
            memset(next[at], at, PAGES * PAGE);
        }
        evict();
        for (int at = 0; at < 8; at++) {
            for (size_t byte = 0; byte < PAGES * PAGE; byte++) CHECK(next[at][byte] == at);
            free(next[at]);
        }
    }
    puts("ok");
    return 0;
}
