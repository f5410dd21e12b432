/* Mappings over memory from malloc, where no mapping is taken over: what is there is there
 * after it was put away; and groups out of a list that was put away. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <grp.h>
#include <sys/mman.h>
#include <unistd.h>

#define ALL (1ul << 20)

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    for (int round = 0; round < 3; round++) {
        char *p = ghost(ALL);
        memset(p, 7, ALL);
        if (round) evict();
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED;
        CHECK(mmap(p + 8192, 65536, PROT_READ | PROT_WRITE, flags, -1, 0) == p + 8192);
        CHECK(p[8191] == 7 && p[8192] == 0 && p[8191 + 65536] == 0 && p[8192 + 65536] == 7);
        memset(p + 8192, 3, 65536);
        evict();
        for (size_t at = 0; at < ALL; at++) CHECK(p[at] == (at >= 8192 && at < 8192 + 65536 ? 3 : 7));
        free(p);
    }
    gid_t *groups = ghost(4096);
    for (int at = 0; at < 100; at++) groups[at] = 1000 + at;
    evict();
    CHECK(setgroups(100, groups) == 0 || errno == EPERM);
    evict();
    if (geteuid() == 0) {
        gid_t found[100];
        CHECK(getgroups(100, found) == 100 && memcmp(found, groups, sizeof found) == 0);
    }
    CHECK(setgroups(1 << 20, groups) == -1);
    puts("ok");
    return 0;
}
