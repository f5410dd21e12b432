/* Threads that allocate, free each other's blocks, wait on locks in ghost
 * memory, are cancelled in calls with ghost buffers, while others fork. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)
#define THREADS 4
#define SLOTS 64

struct shared {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned char *slot[SLOTS];
    size_t bytes[SLOTS];
    int turn;
};

static struct shared *shared;

static void fill(unsigned char *p, size_t n) { for (size_t i = 0; i < n; i++) p[i] = (unsigned char)(i * 7 + n); }
static int good(unsigned char *p, size_t n) { for (size_t i = 0; i < n; i++) if (p[i] != (unsigned char)(i * 7 + n)) return 0; return 1; }

static void *worker(void *argument) {
    unsigned seed = (unsigned)(size_t)argument + 1;
    for (int round = 0; round < 1500; round++) {
        size_t n = rand_r(&seed) % 10 == 0 ? rand_r(&seed) % 200000 + 1 : rand_r(&seed) % 3000 + 1;
        unsigned char *p = malloc(n);
        CHECK(p);
        fill(p, n);
        int slot = rand_r(&seed) % SLOTS;
        pthread_mutex_lock(&shared->lock);
        unsigned char *old = shared->slot[slot];
        size_t old_n = shared->bytes[slot];
        shared->slot[slot] = p;
        shared->bytes[slot] = n;
        pthread_mutex_unlock(&shared->lock);
        if (old) { CHECK(good(old, old_n)); free(old); }
    }
    return NULL;
}

static void *ping(void *argument) {
    int me = (int)(size_t)argument;
    for (int round = 0; round < 2000; round++) {
        pthread_mutex_lock(&shared->lock);
        while (shared->turn != me) pthread_cond_wait(&shared->changed, &shared->lock);
        shared->turn = !me;
        pthread_cond_broadcast(&shared->changed);
        pthread_mutex_unlock(&shared->lock);
    }
    return NULL;
}

static void cleaned(void *flag) { *(int *)flag = 1; }
static int fds[2];
static int *flag;
static void *blocked(void *argument) {
    (void)argument;
    char *buffer = malloc(100000);
    pthread_cleanup_push(cleaned, flag);
    ssize_t got = read(fds[0], buffer, 100000);
    printf("read gave %zd\n", got);
    pthread_cleanup_pop(0);
    return NULL;
}

int main(void) {
    shared = calloc(1, 40000);
    pthread_mutex_init(&shared->lock, NULL);
    pthread_cond_init(&shared->changed, NULL);
    pthread_t t[THREADS];
    for (size_t i = 0; i < THREADS; i++) CHECK(pthread_create(&t[i], NULL, worker, (void *)i) == 0);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            /* Allocation works in the child, and shared blocks are as they were. */
            for (int slot = 0; slot < SLOTS; slot++) {
                unsigned char *p = malloc(1000 + slot * 1000);
                fill(p, 1000 + slot * 1000);
                if (!good(p, 1000 + slot * 1000)) _exit(2);
                free(p);
            }
            pthread_t inner;
            if (pthread_create(&inner, NULL, worker, (void *)77) != 0) _exit(3);
            (void)inner;
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    for (size_t i = 0; i < THREADS; i++) CHECK(pthread_join(t[i], NULL) == 0);
    for (int slot = 0; slot < SLOTS; slot++) if (shared->slot[slot]) CHECK(good(shared->slot[slot], shared->bytes[slot]));
    for (size_t i = 0; i < 2; i++) CHECK(pthread_create(&t[i], NULL, ping, (void *)i) == 0);
    for (size_t i = 0; i < 2; i++) CHECK(pthread_join(t[i], NULL) == 0);
    flag = calloc(1, sizeof *flag);
    CHECK(pipe(fds) == 0);
    CHECK(pthread_create(&t[0], NULL, blocked, NULL) == 0);
    usleep(100000);
    CHECK(pthread_cancel(t[0]) == 0);
    void *result;
    CHECK(pthread_join(t[0], &result) == 0 && result == PTHREAD_CANCELED && *flag == 1);
    printf("ok\n");
    return 0;
}
