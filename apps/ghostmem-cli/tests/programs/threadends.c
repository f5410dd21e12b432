/* How threads end: all keys for thread-specific data are the program's, destructors allocate to
 * the last round, /proc lists the program's threads alone, and what runs at exit, on whichever
 * thread is the last, finds its signals as that thread left them. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <aio.h>
#include <dirent.h>
#include <execinfo.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <threads.h>
#include <unistd.h>

static pthread_key_t keys[PTHREAD_KEYS_MAX];
static int count, rounds;
static void *of_last;
static atomic_int called;

static void again(void *value) {
    char *p = malloc(50000), *small = malloc(50);
    CHECK(p && small);
    memset(p, 1, 50000);
    int is_last = value == of_last;
    free(p), free(small), free(value);
    called++;
    /* The last key has a value to the last round. */
    if (is_last && ++rounds < PTHREAD_DESTRUCTOR_ITERATIONS) CHECK(pthread_setspecific(keys[count - 1], of_last = malloc(77)) == 0);
}

static void *sets_all(void *unused) {
    (void)unused;
    for (int i = 0; i < count; i++) CHECK(pthread_getspecific(keys[i]) == NULL);
    for (int i = 0; i < count; i++) CHECK(pthread_setspecific(keys[i], of_last = malloc(64)) == 0);
    return NULL;
}

static int listed(void) {
    DIR *folder = opendir("/proc/self/task");
    CHECK(folder);
    int found = 0;
    for (struct dirent *one; (one = readdir(folder));) found += one->d_name[0] != '.';
    closedir(folder);
    return found;
}

static sem_t go;
static void *waits(void *unused) {
    (void)unused;
    char *p = malloc(3000);
    CHECK(p);
    sem_wait(&go);
    free(p);
    return NULL;
}

/* Ends the whole process in a loop as libc's around the end of a thread. */
__attribute__((always_inline)) static inline void quits(int status) {
    for (;;) {
        unsigned long answer;
        register long given __asm__("rdi") = status;
        __asm__ volatile("syscall" : "=a"(answer) : "0"(SYS_exit_group), "r"(given) : "memory", "cc", "r11", "rcx");
    }
}

__attribute__((noinline, optimize("O2"))) static void quits_well(void) { quits(0); }

static const char *last_one;
static int blocked_before;
static void at_exit(void) {
    void *frames[64];
    CHECK(backtrace(frames, 64) > 1);
    if (*last_one == 'x') {
        /* Of a child, the one thread that it has; and this one. */
        pid_t child = fork();
        if (child == 0) *(char *)last_one = 'X', pthread_exit(NULL);
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        printf("ok\n");
        fflush(stdout);
        pthread_exit(NULL);
    }
    if (*last_one == 'X') return;
    sigset_t set;
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &set) == 0);
    int blocked = 0;
    for (int number = 1; number < 65; number++) blocked += sigismember(&set, number) == 1;
    CHECK(blocked == blocked_before || *last_one == 'a');
    void *p = malloc(100000);
    CHECK(p && system("exit 7") >> 8 == 7);
    free(p);
    printf("ok\n");
    fflush(stdout);
}

/* The last thread: one of those that pthread_create(3) makes, on a stack of the program's. */
static void *last(void *unused) {
    (void)unused;
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1), sigaddset(&set, SIGRTMAX);
    CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
    blocked_before = 2;
    evict();
    usleep(20000);
    return NULL;
}

static int standard(void *unused) { return last(unused) != NULL; }

static int unknown(void *unused) {
    (void)unused;
    for (;;) pause();
}

static void ends_last(const char *how) {
    pthread_t t;
    pthread_attr_t attributes;
    CHECK(pthread_attr_init(&attributes) == 0);
    switch (*how) {
    case 'd': CHECK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0); break;
    case 's': {
        size_t bytes = 1 << 20;
        char *stack = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(stack != MAP_FAILED && pthread_attr_setstack(&attributes, stack, bytes) == 0);
        CHECK(pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED) == 0);
        break;
    }
    case 'j': break;
    case 't': {
        thrd_t thread;
        CHECK(thrd_create(&thread, standard, NULL) == thrd_success && thrd_detach(thread) == thrd_success);
        thrd_exit(0);
    }
    case 'm': {
        /* main is the last. */
        sigset_t set;
        sigemptyset(&set);
        sigaddset(&set, SIGUSR1);
        CHECK(pthread_create(&t, NULL, waits, NULL) == 0);
        CHECK(pthread_sigmask(SIG_SETMASK, &set, NULL) == 0);
        blocked_before = 1;
        sem_post(&go);
        CHECK(pthread_join(t, NULL) == 0);
        pthread_exit(NULL);
    }
    case 'c':
        /* main is the last, and is cancelled. */
        pthread_cancel(pthread_self());
        pause();
    case 'f':
        /* In a child, of another thread than the first. */
        if (fork()) {
            int status;
            CHECK(wait(&status) > 0 && status == 0);
            _exit(0);
        }
        break;
    case 'a': {
        /* A thread of libc's own. */
        char byte;
        struct aiocb asked = {.aio_fildes = 0, .aio_buf = &byte, .aio_nbytes = 0};
        const struct aiocb *list[] = {&asked};
        CHECK(aio_read(&asked) == 0 && aio_suspend(list, 1, NULL) == 0);
        pthread_exit(NULL);
    }
    case 'l': {
        /* One that libc does not know of is nobody to wait for. */
        char *stack = malloc(65536);
        int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM;
        CHECK(stack && clone(unknown, stack + 65536, flags, NULL) > 0);
        pthread_exit(NULL);
    }
    case 'q':
        /* A child that runs nothing at exit, and writes nothing twice. */
        printf("ok\n");
        fflush(stdout);
        printf("\n");
        if (fork() == 0) quits_well();
        int status;
        CHECK(wait(&status) > 0 && status == 0);
        _exit(0);
    case 'r':
        /* As the kernel has it: nothing runs at exit. */
        printf("ok\n");
        fflush(stdout);
        syscall(SYS_exit, 0);
    }
    CHECK(pthread_create(&t, &attributes, last, NULL) == 0);
    pthread_exit(NULL);
}

static void *forks(void *how) {
    ends_last(how);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    prepare(argv[2]);
    last_one = argv[3];
    CHECK(atexit(at_exit) == 0);
    evict();
    pthread_t t[8];
    /* All of them, and none is anybody's. */
    while (count < PTHREAD_KEYS_MAX && pthread_key_create(&keys[count], again) == 0) count++;
    CHECK(count == PTHREAD_KEYS_MAX);
    for (int round = 0; round < 20; round++) {
        rounds = called = 0;
        CHECK(pthread_create(&t[0], NULL, sets_all, NULL) == 0 && pthread_join(t[0], NULL) == 0);
        CHECK(called == count + PTHREAD_DESTRUCTOR_ITERATIONS - 1);
    }
    for (int i = 0; i < count; i++) CHECK(pthread_key_delete(keys[i]) == 0);
    CHECK(sem_init(&go, 0, 0) == 0);
    CHECK(listed() == 1);
    for (int i = 0; i < 8; i++) CHECK(pthread_create(&t[i], NULL, waits, NULL) == 0);
    evict();
    CHECK(listed() == 9);
    for (int i = 0; i < 8; i++) sem_post(&go);
    for (int i = 0; i < 8; i++) CHECK(pthread_join(t[i], NULL) == 0);
    /* The kernel lets go of them a little later. */
    for (int i = 0; i < 1000 && listed() > 1; i++) usleep(1000);
    CHECK(listed() == 1);
    if (*last_one == 'f') {
        CHECK(pthread_create(&t[0], NULL, forks, argv[3]) == 0);
        pthread_join(t[0], NULL);
    }
    ends_last(last_one);
}
