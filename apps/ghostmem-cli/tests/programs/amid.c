/* A handler of the program's that comes in the midst of malloc and free: its system calls find
 * their buffers in heap memory, and what it sets for the signals of faults is the program's.
 * One that was set before the heap was there, with all signals blocked, uses the heap. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum { BLOCKS = 60, BYTES = 5000 };
static char *blocks[BLOCKS];
static int file, ends[2];
static struct stat *status;
static struct timespec *now;
static struct sigaction *action;
static char *path, *page;
static volatile int ticks, faults;
static const char *volatile wrong;

static void on_fault(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    faults++;
    mprotect((void *)((unsigned long)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
}

static void on_tick(int signal) {
    (void)signal;
    int before = errno;
    int which = ticks++ % BLOCKS;
    char *other = blocks[(which + BLOCKS / 2) % BLOCKS];
    struct iovec part = {blocks[which], 300};
    if (pwrite(file, blocks[which], BYTES, 0) != BYTES) wrong = "pwrite";
    if (writev(ends[1], &part, 1) != 300) wrong = "writev";
    else if (read(ends[0], other + 4000, 300) != 300) wrong = "read";
    else if (other[4000] != blocks[which][0]) wrong = "bytes";
    if (stat(path, status) || fstat(file, status)) wrong = "stat";
    if (clock_gettime(CLOCK_MONOTONIC, now)) wrong = "clock_gettime";
    if (ticks % 2) {
        action->sa_sigaction = on_fault;
        action->sa_flags = SA_SIGINFO;
        if (sigaction(SIGSEGV, action, NULL)) wrong = "sigaction";
    } else {
        action->sa_flags = 0;
        action->sa_handler = SIG_IGN;
        if (sigaction(SIGBUS, action, NULL)) wrong = "sigaction";
    }
    errno = before;
}

static volatile int early;

static void on_early(int signal) {
    (void)signal;
    for (int i = 0; i < BLOCKS; i++) early += blocks[i][BYTES / 2] == 'a' + i % 26;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    struct sigaction all = {0};
    all.sa_handler = on_early;
    sigfillset(&all.sa_mask);
    CHECK(sigaction(SIGUSR1, &all, NULL) == 0);
    prepare(argv[2]);
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(BYTES);
        memset(blocks[i], 'a' + i % 26, BYTES);
    }
    evict();
    CHECK(raise(SIGUSR1) == 0 && early == BLOCKS);
    status = malloc(sizeof *status);
    now = malloc(sizeof *now);
    action = calloc(1, sizeof *action);
    path = strdup(argv[1]);
    char *name = ghost(4096);
    sprintf(name, "%s/amid.data", argv[1]);
    file = open(name, O_CREAT | O_RDWR | O_TRUNC, 0600);
    CHECK(file >= 0 && pipe(ends) == 0);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    signal(SIGALRM, on_tick);
    struct itimerval often = {{0, 300}, {0, 300}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    void *kept[50] = {0};
    for (long i = 0; ticks < 4000 && !wrong; i++) {
        int which = i % 50;
        free(kept[which]);
        kept[which] = malloc(i % 7 ? 1 + i * 7919 % 3000 : i * 977 % 90000);
        if (i % 20000 == 0) evict();
    }
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    if (wrong) printf("wrong: %s in a handler, errno %d\n", wrong, errno);
    CHECK(!wrong);
    struct sigaction found;
    CHECK(sigaction(SIGBUS, NULL, &found) == 0 && found.sa_handler == SIG_IGN);
    CHECK(sigaction(SIGSEGV, NULL, &found) == 0 && found.sa_sigaction == on_fault);
    evict();
    for (int i = 0; i < BLOCKS; i++)
        for (int at = 0; at < 3999; at++) CHECK(blocks[i][at] == 'a' + i % 26);
    CHECK(mprotect(page, 4096, PROT_NONE) == 0);
    *page = 1;
    CHECK(faults == 1);
    puts("ok");
    return 0;
}
