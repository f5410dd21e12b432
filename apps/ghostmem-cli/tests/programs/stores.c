/* Threads store to memory, by themselves and by the kernel, while it becomes ordinary memory:
 * by code that it is to hold (code), or by a handler of faults of the program's own (uffd).
 * Some of it is in memory, some is not, and some never was. No store is lost, and none is
 * refused. Ends with 77 where this machine has nothing of the kind.
 *
 * stores WAY BYTES ROUNDS */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
/* Touched all the time; filled before, and perhaps away; and never touched. */
#define BUSY 200ul
#define FILLED 200ul
#define EMPTY 1200ul
#define BYTES ((BUSY + FILLED + EMPTY) * PAGE)
#define THREADS 3
#define COUNTS 100000ul

static char *memory;
static int by_code, numbers;
static atomic_int begun, stop;

static uint64_t *slot_of(size_t page, int which) {
    return (uint64_t *)(memory + page * PAGE + 64 * which);
}

struct counter { int which; uint64_t passes; };

/* Each pass adds one to a word of each page: the last of the threads has the kernel do it. */
static void *counts(void *given) {
    struct counter *own = given;
    atomic_fetch_add(&begun, 1);
    while (!atomic_load(&stop) && own->passes + 1 < COUNTS) {
        own->passes++;
        for (size_t page = 0; page < BUSY; page++) {
            uint64_t *slot = slot_of(page, own->which);
            if (own->which < THREADS - 1)
                *(volatile uint64_t *)slot += 1;
            else
                CHECK(pread(numbers, slot, 8, (off_t)(own->passes * 8)) == 8);
        }
    }
    return NULL;
}

static char filling(size_t at) { return (char)(at * 11 + at / PAGE); }

static void is_filled(void) {
    for (size_t at = BUSY * PAGE; at < (BUSY + FILLED) * PAGE; at += 61) CHECK(memory[at] == filling(at));
}

static void *forks(void *unused) {
    while (!atomic_load(&stop)) {
        pid_t child = fork();
        if (child == 0) {
            is_filled();
            _exit(3);
        }
        int status = -1;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    }
    return unused;
}

static int uffd = -1;

static void *becomes_ordinary(void *unused) {
    if (by_code) {
        CHECK(mprotect(memory, BYTES, PROT_READ | PROT_WRITE | PROT_EXEC) == 0);
        return unused;
    }
    struct uffdio_register told = {.range = {(uintptr_t)memory, (BUSY + FILLED) * PAGE}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &told) == 0);
    return unused;
}

static void round_of(int number) {
    struct counter all[THREADS];
    pthread_t threads[THREADS], forker, second;
    /* Two threads ask at once, and one forks, now and then. */
    int twice = by_code && number % 4 == 1, with_forks = number % 8 == 3;
    memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(memory != MAP_FAILED);
    /* All that a handler takes over is there: it is asked for nothing. */
    memset(memory, 0, BUSY * PAGE);
    for (size_t at = BUSY * PAGE; at < (BUSY + FILLED) * PAGE; at++) memory[at] = filling(at);
    if (number % 2) evict();
    atomic_store(&begun, 0);
    atomic_store(&stop, 0);
    for (int i = 0; i < THREADS; i++) {
        all[i] = (struct counter){i, 0};
        CHECK(pthread_create(&threads[i], NULL, counts, &all[i]) == 0);
    }
    while (atomic_load(&begun) < THREADS) sched_yield();
    usleep(500);
    if (with_forks) CHECK(pthread_create(&forker, NULL, forks, NULL) == 0);
    if (twice) CHECK(pthread_create(&second, NULL, becomes_ordinary, NULL) == 0);
    becomes_ordinary(NULL);
    if (twice) CHECK(pthread_join(second, NULL) == 0);
    usleep(500);
    atomic_store(&stop, 1);
    for (int i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    if (with_forks) CHECK(pthread_join(forker, NULL) == 0);
    for (size_t page = 0; page < BUSY; page++)
        for (int i = 0; i < THREADS; i++) {
            if (*slot_of(page, i) == all[i].passes) continue;
            printf("round %d: page %zu has %llu of thread %d's %llu\n", number, page,
                   (unsigned long long)*slot_of(page, i), i, (unsigned long long)all[i].passes);
            exit(1);
        }
    is_filled();
    for (size_t page = BUSY + FILLED; page < BYTES / PAGE; page += 7) CHECK(memory[page * PAGE + 5] == 0);
    CHECK(munmap(memory, BYTES) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 4);
    by_code = !strcmp(argv[1], "code");
    if (!by_code) {
        struct uffdio_api api = {.api = UFFD_API};
        uffd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
        if (uffd < 0) return 77;
        CHECK(ioctl(uffd, UFFDIO_API, &api) == 0);
    }
    prepare(argv[2]);
    char name[] = "/tmp/stores-XXXXXX";
    CHECK((numbers = mkstemp(name)) >= 0 && unlink(name) == 0);
    for (uint64_t number = 0; number < COUNTS; number += 1000) {
        uint64_t some[1000];
        for (int i = 0; i < 1000; i++) some[i] = number + i;
        CHECK(write(numbers, some, sizeof some) == sizeof some);
    }
    for (int number = 0; number < atoi(argv[3]); number++) round_of(number);
    puts("ok");
    return 0;
}
