/* Mappings over memory from malloc, where no mapping is taken over: what is there is there
 * after it was put away; and groups out of a list that was put away. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <grp.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define ALL (1ul << 20)

/* Files are read into, and written from, memory of which parts are other mappings: its ends,
 * or its middle. */
static void across(const char *folder) {
    char path[300], *data = ghost(ALL), *back = ghost(ALL);
    snprintf(path, sizeof path, "%s/across", folder);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    for (size_t at = 0; at < ALL; at++) data[at] = at * 7 >> 4;
    for (int middle = 0; middle < 2; middle++) {
        char *p = ghost(ALL);
        int flags = MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED, both = PROT_READ | PROT_WRITE;
        if (middle) CHECK(mmap(p + ALL / 4, ALL / 2, both, flags, -1, 0) == p + ALL / 4);
        else for (int end = 0; end < 2; end++) CHECK(mmap(p + end * (ALL - 65536), 65536, both, flags, -1, 0) != MAP_FAILED);
        CHECK(pwrite(file, data, ALL, 0) == ALL);
        evict();
        CHECK(pread(file, p, ALL, 0) == ALL && memcmp(p, data, ALL) == 0);
        evict();
        CHECK(ftruncate(file, 0) == 0 && pwrite(file, p, ALL, 0) == ALL);
        CHECK(pread(file, back, ALL, 0) == ALL && memcmp(back, data, ALL) == 0);
        memset(p + 65536, 0, ALL - 131072);
        struct iovec parts[2] = {{p, ALL / 2}, {p + ALL / 2, ALL / 2}};
        evict();
        CHECK(preadv(file, parts, 2, 0) == ALL && memcmp(p, data, ALL) == 0);
        free(p);
    }
    close(file);
    unlink(path);
    free(data);
    free(back);
}

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
    across(argv[1]);
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
