/* A child of clone(2) on its parent's memory and thread block (no CLONE_SETTLS), which goes on
 * beside it: both touch memory that was put away, and the parent's is as before when it is gone.
 *
 * sameblock FOLDER MIB */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (10 << 20)
#define ROUNDS 30

static char stack[64 << 10];
static char *theirs;
static volatile int done, wrong;

/* Nothing of libc's here: it has one block for both. */
static int beside(void *unused) {
    for (int round = 0; round < ROUNDS; round++)
        for (size_t at = 0; at < BYTES; at += 4096) {
            if (theirs[at] != (char)(at / 4096 + round)) wrong = 1;
            theirs[at]++;
        }
    done = 1;
    syscall(SYS_exit, 0);
    return 0;
}

/* Pages that are in memory. */
static size_t there(char *from, size_t bytes) {
    static unsigned char pages[BYTES / 4096];
    size_t count = 0;
    CHECK(mincore(from, bytes, pages) == 0);
    for (size_t page = 0; page < bytes / 4096; page++) count += pages[page] & 1;
    return count;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    char *own = ghost(BYTES);
    theirs = ghost(BYTES);
    int flags[] = {CLONE_VM | SIGCHLD, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | SIGCHLD};
    for (int kind = 0; kind < 2; kind++) {
        for (size_t at = 0; at < BYTES; at += 4096) own[at] = theirs[at] = (char)(at / 4096);
        done = 0;
        pid_t child = clone(beside, stack + sizeof stack, flags[kind], NULL);
        CHECK(child > 0);
        while (!done)
            for (size_t at = 0; at < BYTES; at += 4096) {
                if (own[at] != (char)(at / 4096)) wrong = 2;
                own[at + 1]++;
            }
        int status = -1;
        CHECK(waitpid(child, &status, __WALL) == child && status == 0 && !wrong);
        /* What is allocated from here on leaves as before, and calls find it. */
        char *fresh = ghost(BYTES);
        memset(fresh, 7, BYTES);
        evict();
        if (getenv("BACKEND")) CHECK(there(fresh, BYTES) < BYTES / 4096 / 2);
        int file = open("/dev/zero", O_RDONLY);
        CHECK(file >= 0 && read(file, fresh + 8192, 100000) == 100000);
        close(file);
        for (size_t at = 0; at < BYTES; at++)
            CHECK(fresh[at] == (at >= 8192 && at < 108192 ? 0 : 7));
    }
    puts("ok");
    return 0;
}
