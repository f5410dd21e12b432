/* Threads that allocate and reallocate, a stream through a pipe, children and
 * timers, all at once; every byte is looked at. storm SEED STEPS */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { fprintf(stderr, "wrong: line %d: %s (errno %d, process %d)\n", __LINE__, #what, errno, getpid()); _exit(9); } } while (0)
#define WORKERS 3
#define SLOTS 24
#define LASTING 16
#define LASTING_BYTES 70000
#define STREAM_BYTES 50000
#define PARTS ((unsigned)steps / 8 + 1)

static unsigned seed;
static int steps;
static unsigned char *lasting[LASTING];
static atomic_int ticks;
static atomic_int over;

/* What byte `at` of the block `key` is: of every second block something that packs. */
static unsigned char byte_of(unsigned key, size_t at) {
    uint64_t mixed = (key & 1 ? at / 64 : at) * 0x9e3779b97f4a7c15u + key * 0xbf58476d1ce4e5b9u;
    return (unsigned char)(mixed >> 56 ^ mixed >> 29);
}
static void fill(unsigned char *block, unsigned key, size_t from, size_t to) {
    for (size_t at = from; at < to; at++) block[at] = byte_of(key, at);
}
static int good(const unsigned char *block, unsigned key, size_t bytes) {
    for (size_t at = 0; at < bytes; at++) {
        if (block[at] != byte_of(key, at)) {
            fprintf(stderr, "wrong byte: block %u at %p, byte %zu of %zu is %u and not %u\n", key, (void *)block, at, bytes, block[at], byte_of(key, at));
            return 0;
        }
    }
    return 1;
}
static size_t some_size(unsigned *state) {
    switch (rand_r(state) % 8) {
    case 0: return rand_r(state) % 400000 + 1;
    case 1: case 2: case 3: return rand_r(state) % 40000 + 1;
    default: return rand_r(state) % 3000 + 1;
    }
}

static void tick(int signal, siginfo_t *info, void *context) {
    (void)signal; (void)info; (void)context;
    int before = errno;
    unsigned block = (unsigned)atomic_fetch_add(&ticks, 1) % LASTING;
    /* One byte of every page. */
    for (size_t at = block; at < LASTING_BYTES; at += 4096) CHECK(lasting[block][at] == byte_of(block, at));
    errno = before;
}

/* Allocates, reallocates and frees, and looks at every byte it gives up or moves. */
static void work(unsigned state, int steps) {
    unsigned char *block[SLOTS] = {0};
    size_t bytes[SLOTS] = {0};
    unsigned key[SLOTS] = {0};
    for (int step = 0; step < steps; step++) {
        int slot = rand_r(&state) % SLOTS;
        size_t size = some_size(&state);
        if (!block[slot]) {
            key[slot] = rand_r(&state);
            CHECK((block[slot] = rand_r(&state) % 4 ? malloc(size) : calloc(1, size)));
            fill(block[slot], key[slot], 0, bytes[slot] = size);
        } else if (rand_r(&state) % 3) {
            CHECK((block[slot] = realloc(block[slot], size)));
            CHECK(good(block[slot], key[slot], size < bytes[slot] ? size : bytes[slot]));
            if (size > bytes[slot]) fill(block[slot], key[slot], bytes[slot], size);
            bytes[slot] = size;
        } else {
            CHECK(good(block[slot], key[slot], bytes[slot]));
            free(block[slot]);
            block[slot] = NULL;
        }
    }
    for (int slot = 0; slot < SLOTS; slot++) {
        CHECK(!block[slot] || good(block[slot], key[slot], bytes[slot]));
        free(block[slot]);
    }
}
static void *worker(void *number) {
    work(seed * 101 + (unsigned)(size_t)number, steps);
    return NULL;
}

static int stream[2];
static void *writer(void *unused) {
    (void)unused;
    unsigned state = seed;
    for (unsigned part = 0; part < PARTS; part++) {
        unsigned char *block = malloc(STREAM_BYTES);
        CHECK(block);
        fill(block, part, 0, STREAM_BYTES);
        for (size_t at = 0; at < STREAM_BYTES;) {
            size_t want = rand_r(&state) % 20000 + 1;
            if (want > STREAM_BYTES - at) want = STREAM_BYTES - at;
            ssize_t put = write(stream[1], block + at, want);
            CHECK(put > 0);
            at += (size_t)put;
        }
        free(block);
    }
    return NULL;
}
static void *reader(void *unused) {
    (void)unused;
    for (unsigned part = 0; part < PARTS; part++) {
        unsigned char *block = malloc(STREAM_BYTES);
        CHECK(block);
        for (size_t at = 0; at < STREAM_BYTES;) {
            ssize_t got = read(stream[0], block + at, STREAM_BYTES - at);
            CHECK(got > 0);
            at += (size_t)got;
        }
        CHECK(good(block, part, STREAM_BYTES));
        free(block);
    }
    return NULL;
}

/* A child that looks at what it inherited, works, and sends a block back. */
static void one_child(unsigned number) {
    int answer[2];
    CHECK(pipe(answer) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    unsigned block = number % LASTING;
    if (child == 0) {
        for (unsigned other = 0; other < LASTING; other += 3) CHECK(good(lasting[other], other, LASTING_BYTES));
        work(seed + number, steps / 8 + 1);
        for (size_t at = 0; at < LASTING_BYTES;) {
            ssize_t put = write(answer[1], lasting[block] + at, LASTING_BYTES - at);
            CHECK(put > 0);
            at += (size_t)put;
        }
        if (number % 2) _exit(0);
        /* By way of what libc and the library do at exit. */
        exit(0);
    }
    CHECK(close(answer[1]) == 0);
    unsigned char *got = malloc(LASTING_BYTES + 1);
    CHECK(got);
    size_t at = 0;
    for (;;) {
        ssize_t bytes = read(answer[0], got + at, LASTING_BYTES + 1 - at);
        CHECK(bytes >= 0);
        if (bytes == 0) break;
        at += (size_t)bytes;
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
    CHECK(at == LASTING_BYTES && good(got, block, LASTING_BYTES));
    free(got);
    CHECK(close(answer[0]) == 0);
}
static void *forker(void *number) {
    for (unsigned child = (unsigned)(size_t)number; !atomic_load(&over); child += 2) one_child(child);
    return NULL;
}

int main(int count, char **words) {
    seed = count > 1 ? (unsigned)atoi(words[1]) : 1;
    steps = count > 2 ? atoi(words[2]) : 200;
    for (unsigned block = 0; block < LASTING; block++) {
        CHECK((lasting[block] = malloc(LASTING_BYTES)));
        fill(lasting[block], block, 0, LASTING_BYTES);
    }
    struct sigaction action = {.sa_sigaction = tick, .sa_flags = SA_RESTART | SA_SIGINFO};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0 && sigaction(SIGUSR1, &action, NULL) == 0);
    struct itimerval often = {{0, 3000}, {0, 3000}};
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    struct sigevent *event = calloc(1, sizeof *event);
    event->sigev_notify = SIGEV_SIGNAL;
    event->sigev_signo = SIGUSR1;
    timer_t timer;
    CHECK(timer_create(CLOCK_MONOTONIC, event, &timer) == 0);
    struct itimerspec more = {{0, 5000000}, {0, 5000000}};
    CHECK(timer_settime(timer, 0, &more, NULL) == 0);

    CHECK(pipe(stream) == 0);
    pthread_t workers[WORKERS], pair[2], forkers[2];
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_create(&workers[i], NULL, worker, (void *)(i + 1)) == 0);
    CHECK(pthread_create(&pair[0], NULL, writer, NULL) == 0);
    CHECK(pthread_create(&pair[1], NULL, reader, NULL) == 0);
    for (size_t i = 0; i < 2; i++) CHECK(pthread_create(&forkers[i], NULL, forker, (void *)i) == 0);
    for (size_t i = 0; i < WORKERS; i++) CHECK(pthread_join(workers[i], NULL) == 0);
    for (size_t i = 0; i < 2; i++) CHECK(pthread_join(pair[i], NULL) == 0);
    atomic_store(&over, 1);
    for (size_t i = 0; i < 2; i++) CHECK(pthread_join(forkers[i], NULL) == 0);
    CHECK(timer_delete(timer) == 0);
    memset(&often, 0, sizeof often);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    for (unsigned block = 0; block < LASTING; block++) CHECK(good(lasting[block], block, LASTING_BYTES));
    CHECK(atomic_load(&ticks) > 0);
    CHECK(puts("ok") >= 0 && fflush(stdout) == 0);
    return 0;
}
