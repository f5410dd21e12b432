/* Threads at once on stacks from malloc and from mmap that are more than the limit together,
 * and alternate stacks for signals that are each more than it. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

enum { THREADS = 120 };
static volatile int stay;

static void *uses(void *number) {
    volatile char local[9000];
    memset((char *)local, (int)(long)number, sizeof local);
    while (stay) usleep(2000);
    for (unsigned i = 0; i < sizeof local; i++) CHECK(local[i] == (char)(long)number);
    return number;
}

static volatile int handled;

/* Uses most of its stack, and has everything else evicted meanwhile. */
static void on_a_large_stack(int signal) {
    volatile char local[2 << 20];
    memset((char *)local, signal, sizeof local);
    evict();
    for (unsigned i = 0; i < sizeof local; i++) CHECK(local[i] == (char)signal);
    handled++;
}

static void alternate_stacks(void) {
    const size_t bytes = 3 << 20;
    struct sigaction action = {.sa_handler = on_a_large_stack, .sa_flags = SA_ONSTACK};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int kind = 0; kind < 4; kind++) {
        char *stack = kind & 1 ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                               : aligned_alloc(4096, bytes);
        CHECK(stack && stack != MAP_FAILED);
        memset(stack, 'x', bytes);
        stack_t given = {.ss_sp = stack, .ss_size = bytes}, none = {.ss_flags = SS_DISABLE}, before;
        CHECK(sigaltstack(&given, NULL) == 0);
        CHECK(stack[0] == 'x' && stack[bytes / 2] == 'x' && stack[bytes - 1] == 'x');
        CHECK(raise(SIGUSR1) == 0 && handled == kind + 1);
        CHECK(sigaltstack(&none, &before) == 0 && before.ss_sp == stack && before.ss_size == bytes);
        CHECK(stack[0] == 'x');
        if (kind & 1) CHECK(munmap(stack, bytes) == 0);
        else free(stack);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    for (int kind = 0; kind < 2; kind++) {
        size_t bytes = kind ? 256 << 10 : 64 << 10;
        pthread_t threads[THREADS];
        void *stacks[THREADS];
        stay = 1;
        for (long i = 0; i < THREADS; i++) {
            stacks[i] = kind ? mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                             : aligned_alloc(4096, bytes);
            CHECK(stacks[i] && stacks[i] != MAP_FAILED);
            pthread_attr_t attributes;
            CHECK(pthread_attr_init(&attributes) == 0);
            CHECK(pthread_attr_setstack(&attributes, stacks[i], bytes) == 0);
            CHECK(pthread_create(&threads[i], &attributes, uses, (void *)i) == 0);
        }
        evict();
        stay = 0;
        for (long i = 0; i < THREADS; i++) {
            void *result;
            CHECK(pthread_join(threads[i], &result) == 0 && result == (void *)i);
            if (kind) CHECK(munmap(stacks[i], bytes) == 0);
            else free(stacks[i]);
        }
    }
    alternate_stacks();
    puts("ok");
    return 0;
}
