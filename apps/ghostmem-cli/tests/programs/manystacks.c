/* Threads at once on stacks from malloc and from mmap that are more than the limit together. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
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
    puts("ok");
    return 0;
}
