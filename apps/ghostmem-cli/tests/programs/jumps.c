/* Handlers that leave a waiting call by siglongjmp: reads, writes, receives and polls with buffers
 * in heap memory, on the thread's stack, on coroutines' and in threads that end. What stood in for
 * the buffers does not stay behind: the process has no more mappings in the end than after the
 * first jumps. A call that goes on while others on the same thread are left keeps what it has. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <grp.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

enum { JUMPS = 2500, LARGE = 2 << 20 };
static sigjmp_buf back;
static int empty[2], full[2], quiet[2];
static char *large;
static struct pollfd *asked;

static void jumps(int signal) { siglongjmp(back, signal); }

static void soon(void) {
    struct itimerval once = {{0, 0}, {0, 200}};
    CHECK(setitimer(ITIMER_REAL, &once, NULL) == 0);
}

/* How much address space the process has, KiB. */
static long size_kib(void) {
    char text[4096];
    int file = open("/proc/self/status", O_RDONLY);
    ssize_t got = read(file, text, sizeof text - 1);
    close(file);
    text[got > 0 ? got : 0] = 0;
    char *line = strstr(text, "VmSize:");
    CHECK(line);
    return atol(line + 7);
}

static void wait_and_leave(int way) {
    if (sigsetjmp(back, 1)) return;
    soon();
    if (way == 0) read(empty[0], large, 100);
    if (way == 1) read(empty[0], large, LARGE);
    if (way == 2) write(full[1], large, 300000);
    if (way == 3) recv(quiet[0], large, 50000, 0);
    if (way == 4) poll(asked, 1, -1);
    /* The timer came before the call began. */
    for (;;) pause();
}

static void __attribute__((noinline)) deeper(int levels, int way) {
    volatile char room[200];
    room[levels] = 1;
    if (levels) deeper(levels - 1, way);
    else wait_and_leave(way);
    room[levels] = 2;
}

/* A stack frame where one was that a call was left in: libc's setgroups has a stand-in, too. */
static void __attribute__((noinline)) groups_from_there(gid_t *list) {
    volatile char room[3500];
    for (int i = 0; i < sizeof room; i++) room[i] = 0;
    list[0] = getgid();
    if (setgroups(1, list) == -1) CHECK(errno == EPERM);
    for (int i = 0; i < sizeof room; i++) CHECK(room[i] == 0);
}

/* A call that goes on: it began before others were left, on another stack, and ends after. */
static ucontext_t out, coroutine;
static char *slow;
static volatile int slow_done;

static void in_coroutine(void) {
    CHECK(read(full[0], slow, 65536) == 65536);
    slow_done = 1;
}
static void switches(int signal) {
    (void)signal;
    if (!slow_done) swapcontext(&coroutine, &out);
}

static void *ends_in_a_call(void *unused) {
    (void)unused;
    for (int i = 0; i < 3; i++) {
        int ends[2];
        CHECK(pipe(ends) == 0);
        close(ends[1]);
        CHECK(read(ends[0], large, LARGE) == 0);
        close(ends[0]);
    }
    return NULL;
}

/* A handler that forks comes in the midst of a write: in the child that goes on, and what the
 * handler's own calls stood in for does not get in its way. */
static int child_of_handler;
static char *others;
static void forks(int signal) {
    (void)signal;
    int before = errno;
    if ((child_of_handler = fork()) == 0) {
        int ends[2];
        CHECK(pipe(ends) == 0);
        for (int i = 0; i < 20; i++) {
            CHECK(write(ends[1], others, 12000) == 12000);
            CHECK(read(ends[0], others + 20000, 12000) == 12000);
        }
        alarm(20);
        close(ends[0]);
        close(ends[1]);
    }
    errno = before;
}

static void fork_amid_a_write(void) {
    int ends[2];
    CHECK(pipe(ends) == 0);
    fcntl(ends[1], F_SETPIPE_SZ, 4096);
    memset(large, 'b', 12000);
    memset(others, 'o', 60000);
    struct sigaction act = {.sa_handler = forks, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0);
    CHECK(write(ends[1], others, 4096) == 4096);
    fflush(stdout);
    int parent = getpid();
    int helper = fork();
    if (helper == 0) {
        /* Reads what parent and child write, 4096 bytes of 'o' first. */
        usleep(300000);
        close(ends[1]);
        char got[4096];
        long of_b = 0, n;
        while ((n = read(ends[0], got, sizeof got)) > 0)
            for (long i = 0; i < n; i++) of_b += got[i] == 'b';
        _exit(of_b == 24000 ? 7 : 8);
    }
    close(ends[0]);
    soon();
    ssize_t wrote = write(ends[1], large, 12000);
    if (getpid() != parent) _exit(wrote == 12000 ? 7 : 8);
    CHECK(wrote == 12000);
    close(ends[1]);
    int status;
    CHECK(child_of_handler > 0);
    CHECK(waitpid(child_of_handler, &status, 0) == child_of_handler && status == 7 << 8);
    CHECK(waitpid(helper, &status, 0) == helper && status == 7 << 8);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    large = ghost(LARGE);
    slow = ghost(65536);
    others = ghost(60000);
    asked = ghost(4096);
    CHECK(pipe(empty) == 0 && pipe(full) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, quiet) == 0);
    fork_amid_a_write();
    for (int i = 0; i < 65536; i++) large[i] = i * 5;
    CHECK(write(full[1], large, 65536) == 65536);
    asked->fd = empty[0];
    asked->events = POLLIN;
    signal(SIGALRM, jumps);
    gid_t *list = ghost(4096);
    for (int i = 0; i < 20; i++) {
        deeper(i % 3, 0);
        groups_from_there(list);
    }
    for (int i = 0; i < 100; i++) deeper(i % 5, i % 5);
    /* libc keeps a thread's stack and arena. */
    pthread_t first;
    CHECK(pthread_create(&first, NULL, ends_in_a_call, NULL) == 0);
    CHECK(pthread_join(first, NULL) == 0);
    evict();
    long before = size_kib();
    for (int i = 0; i < JUMPS; i++) deeper(i % 3, i % 5);
    for (int i = 0; i < 20; i++) {
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, ends_in_a_call, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
    }
    long after = size_kib();
    if (after > before + 40000) printf("wrong: %ld KiB, and then %ld\n", before, after);
    CHECK(after <= before + 40000);

    /* The coroutine's read waits, a handler leaves it for a while. */
    char *stack = malloc(256 << 10);
    memset(stack, 0, 256 << 10);
    int drained = read(full[0], slow, 65536);
    CHECK(drained == 65536);
    for (int i = 0; i < 65536; i++) CHECK(slow[i] == (char)(i * 5));
    memset(slow, 0, 65536);
    signal(SIGALRM, switches);
    struct sigaction act = {.sa_handler = switches, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGALRM, &act, NULL) == 0);
    CHECK(getcontext(&coroutine) == 0);
    coroutine.uc_stack.ss_sp = stack;
    coroutine.uc_stack.ss_size = 256 << 10;
    coroutine.uc_link = &out;
    makecontext(&coroutine, in_coroutine, 0);
    soon();
    CHECK(swapcontext(&out, &coroutine) == 0);
    CHECK(!slow_done);
    signal(SIGALRM, jumps);
    for (int i = 0; i < 40; i++) {
        memset(others, i, 60000);
        CHECK(write(quiet[0], others, 60000) == 60000);
        CHECK(recv(quiet[1], others, 60000, MSG_WAITALL) == 60000);
        deeper(i % 3, 3);
    }
    CHECK(write(full[1], large, 65536) == 65536);
    CHECK(swapcontext(&out, &coroutine) == 0);
    CHECK(slow_done);
    for (int i = 0; i < 65536; i++) CHECK(slow[i] == (char)(i * 5));
    puts("ok");
    return 0;
}
