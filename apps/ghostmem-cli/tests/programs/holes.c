/* Memory that is not the program's any more faults as the kernel has it: SIGSEGV with its
 * code and address, by a handler or without one; calls get EFAULT. What is mapped over it
 * has the protection, and the bytes, that were asked for. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define ALL (64 * PAGE)

static sigjmp_buf back;
static siginfo_t seen;
static void caught(int number, siginfo_t *info, void *context) {
    (void)context;
    seen = *info;
    siglongjmp(back, number);
}

static int load(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) (void)*p;
    return number;
}
static int store(volatile char *p) {
    int number = sigsetjmp(back, 1);
    if (number == 0) *p = 9;
    return number;
}
static void faults(char *p, int code) {
    CHECK(load(p) == SIGSEGV);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == code && seen.si_addr == p);
    CHECK(store(p + 5) == SIGSEGV);
    CHECK(seen.si_signo == SIGSEGV && seen.si_code == code && seen.si_addr == p + 5);
}

/* How a child ends that touches an address, its SIGSEGV as the child sets it. */
static int ends(char *p, int blocked) {
    pid_t child = fork();
    if (child == 0) {
        signal(SIGSEGV, SIG_DFL);
        signal(SIGBUS, SIG_DFL);
        if (blocked) {
            sigset_t set;
            sigemptyset(&set);
            sigaddset(&set, SIGSEGV);
            sigprocmask(SIG_BLOCK, &set, NULL);
        }
        *(volatile char *)p = 1;
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) ? WTERMSIG(status) : -WEXITSTATUS(status);
}

static char *mapped(void) {
    char *p = mmap(NULL, ALL, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    memset(p, 7, ALL);
    return p;
}

static void *over(char *p, size_t bytes, int access, int flags, int file, long offset) {
    return mmap(p, bytes, access, flags, file, offset);
}

#define FRESH (MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED)

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    int pipes[2];
    CHECK(pipe(pipes) == 0);

    /* A part is unmapped, and mapped again. */
    char *p = mapped(), *q = p + 8 * PAGE;
    CHECK(munmap(q, 8 * PAGE) == 0);
    evict();
    for (int round = 0; round < 3; round++) {
        CHECK(load(p) == 0 && *p == 7 && q[-1] == 7 && q[8 * PAGE] == 7);
        faults(q, SEGV_MAPERR);
        faults(q + 8 * PAGE - 16, SEGV_MAPERR);
    }
    CHECK(ends(q, 0) == SIGSEGV && ends(q, 1) == SIGSEGV && ends(p, 0) == 0);
    CHECK(write(pipes[1], q, 10) == -1 && errno == EFAULT);
    CHECK(madvise(q, PAGE, MADV_WILLNEED) == -1 && errno == ENOMEM);
    CHECK(mprotect(q, PAGE, PROT_READ) == -1 && errno == ENOMEM);
    /* What lies before the part that is not mapped has another protection all the same. */
    for (int access = PROT_READ; access >= PROT_NONE; access--) {
        CHECK(mprotect(p + PAGE, ALL - PAGE, access) == -1 && errno == ENOMEM);
        CHECK(store(p) == 0 && store(p + PAGE) == SIGSEGV && store(q - 1) == SIGSEGV);
        CHECK(load(q - 1) == (access == PROT_NONE ? SIGSEGV : 0));
        CHECK(store(q + 8 * PAGE) == 0 && store(p + ALL - 1) == 0);
        faults(q, SEGV_MAPERR);
    }
    CHECK(mprotect(p, ALL, PROT_READ | PROT_WRITE) == -1 && errno == ENOMEM);
    evict();
    CHECK(p[PAGE] == 7 && q[-1] == 7 && store(p + PAGE) == 0);
    *p = p[PAGE] = q[8 * PAGE] = p[ALL - 1] = 7;
    /* Where a range begins is looked at first. */
    CHECK(msync(p + 1, ALL, MS_SYNC) == -1 && errno == EINVAL);
    CHECK(mprotect(p + 1, ALL, PROT_READ) == -1 && errno == EINVAL);
    CHECK(madvise(p + 1, ALL, MADV_WILLNEED) == -1 && errno == EINVAL);
    CHECK(mlock(q + 1, PAGE) == -1 && errno == ENOMEM);
    CHECK(over(q - PAGE, 2 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
    CHECK(over(q, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == q);
    CHECK(*q == 0 && store(q) == 0 && *q == 9);
    evict();
    CHECK(*q == 9 && q[2 * PAGE - 1] == 0);
    faults(q + 2 * PAGE, SEGV_MAPERR);

    /* Mapped over with another protection. */
    CHECK(over(p, 4 * PAGE, PROT_READ, FRESH, -1, 0) == p);
    evict();
    CHECK(load(p) == 0 && *p == 0 && p[4 * PAGE] == 7);
    CHECK(store(p) == SIGSEGV && seen.si_code == SEGV_ACCERR && seen.si_addr == p);
    CHECK(over(p, 4 * PAGE, PROT_NONE, FRESH, -1, 0) == p);
    faults(p, SEGV_ACCERR);
    CHECK(write(pipes[1], p, 10) == -1 && errno == EFAULT);
    CHECK(mprotect(p, 4 * PAGE, PROT_NONE) == 0);
    faults(p, SEGV_ACCERR);
    CHECK(mprotect(p + PAGE, PAGE, PROT_READ | PROT_WRITE) == 0 || errno == ENOMEM);
    CHECK(mprotect(p, 4 * PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(*p == 0 && store(p) == 0);

    /* A file mapped over it: its bytes, its protection, and nothing behind its end. */
    char name[4096];
    snprintf(name, sizeof name, "%s/file", argv[1]);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    char bytes[3 * PAGE];
    for (size_t at = 0; at < sizeof bytes; at++) bytes[at] = (char)(at * 31 + at / PAGE);
    CHECK(write(file, bytes, 2 * PAGE + 100) == (ssize_t)(2 * PAGE + 100));
    CHECK(over(p, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, PAGE) == p);
    evict();
    CHECK(memcmp(p, bytes + PAGE, PAGE + 100) == 0 && p[PAGE + 100] == 0 && p[2 * PAGE - 1] == 0);
    CHECK(load(p + 2 * PAGE) != 0 && store(p) == 0);
    CHECK(over(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 0) == p);
    CHECK(memcmp(p, bytes, PAGE) == 0 && store(p) == SIGSEGV && seen.si_code == SEGV_ACCERR);
    CHECK(over(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, -1, 0) == MAP_FAILED && errno == EBADF);
    CHECK(over(p, PAGE, PROT_READ, MAP_PRIVATE | MAP_FIXED, file, 100) == MAP_FAILED && errno == EINVAL);
    CHECK(over(p + 1, PAGE, PROT_READ, FRESH, -1, 0) == MAP_FAILED && errno == EINVAL);
    CHECK(load(p) == 0);
    /* What is shared is there, or is refused. */
    if (over(p, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == p) {
        char back_again;
        *p = 55;
        CHECK(pread(file, &back_again, 1, 0) == 1 && back_again == 55);
    } else {
        CHECK(errno == ENOMEM && load(p) == 0);
    }

    /* All of it. */
    CHECK(munmap(p, ALL) == 0);
    for (size_t at = 0; at < ALL; at += PAGE) faults(p + at, SEGV_MAPERR);
    CHECK(ends(p, 0) == SIGSEGV);
    CHECK(write(pipes[1], p, 10) == -1 && errno == EFAULT);
    p = mapped();
    CHECK(munmap(p, ALL) == 0);
    faults(p, SEGV_MAPERR);
    puts("ok");
    return 0;
}
