/* A thread ends with robust mutexes that were put away: who wants one next is told. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <time.h>

#define MUTEXES 3
static pthread_mutex_t *mutexes[MUTEXES];

static void *ends(void *nothing) {
    for (int at = 0; at < MUTEXES; at++) CHECK(pthread_mutex_lock(mutexes[at]) == 0);
    evict();
    return nothing;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    for (int round = 0; round < 6; round++) {
        pthread_mutexattr_t attributes;
        pthread_mutexattr_init(&attributes);
        pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
        if (round % 2) pthread_mutexattr_setprotocol(&attributes, PTHREAD_PRIO_INHERIT);
        for (int at = 0; at < MUTEXES; at++) {
            /* Of an odd address within its page, and the last over the border of two. */
            mutexes[at] = (void *)((char *)ghost(40000) + (at == 2 ? 4096 - 32 : 88 * at));
            CHECK(pthread_mutex_init(mutexes[at], &attributes) == 0);
        }
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, ends, NULL) == 0);
        CHECK(pthread_join(thread, NULL) == 0);
        evict();
        for (int at = 0; at < MUTEXES; at++) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec += 20;
            CHECK(pthread_mutex_timedlock(mutexes[at], &until) == EOWNERDEAD);
            CHECK(pthread_mutex_consistent(mutexes[at]) == 0);
            CHECK(pthread_mutex_unlock(mutexes[at]) == 0);
            CHECK(pthread_mutex_lock(mutexes[at]) == 0 && pthread_mutex_unlock(mutexes[at]) == 0);
        }
    }
    puts("ok");
    return 0;
}
