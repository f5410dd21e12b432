/* mlockall: what is asked for is there, or is refused with what the manual has for it; what
 * comes later is no more memory than before. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

static long kilobytes(const char *what) {
    char line[256];
    long found = -1;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        if (strncmp(line, what, strlen(what)) == 0) found = atol(line + strlen(what));
    fclose(file);
    return found;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    CHECK(mlockall(0) == -1 && errno == EINVAL);
    CHECK(mlockall(64) == -1 && errno == EINVAL);
    CHECK(mlockall(MCL_ONFAULT) == -1 && errno == EINVAL);
    int flags = argc > 3 ? atoi(argv[3]) : MCL_CURRENT | MCL_FUTURE;
    int locked = mlockall(flags);
    CHECK(locked == 0 || errno == ENOMEM || errno == EPERM);
    long before = kilobytes("VmLck:");
    CHECK(locked == 0 || before == 0);
    prepare(argv[2]);
    evict();
    for (size_t at = 0; at < pressure_bytes; at += 4096) CHECK(pressure[at] == (char)(2 * ((char)at + 1)));
    /* Natively all of it, and no more than that. */
    CHECK(kilobytes("VmLck:") <= before + (long)(pressure_bytes >> 10) + 4096);
    char *page = ghost(4096);
    CHECK(mlock(page, 4096) == 0);
    CHECK(munlockall() == 0 && kilobytes("VmLck:") == 0);
    CHECK(mlockall(MCL_FUTURE) == 0 || errno == ENOMEM || errno == EPERM);
    for (int round = 0; round < 20; round++) {
        char *more = malloc(1 << 20);
        CHECK(more);
        memset(more, round, 1 << 20);
    }
    CHECK(munlockall() == 0);
    puts("ok");
    return 0;
}
