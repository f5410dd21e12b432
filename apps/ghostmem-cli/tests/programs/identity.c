/* A process changes its user while its threads touch memory that is not there: libc sends each
 * of them a signal, whose handler has SA_ONSTACK. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <unistd.h>

static volatile int stop;

static void *touches(void *number) {
    char *block = ghost(1 << 20);
    for (int at = 0; at < 1 << 20; at += 4096) block[at] = (char)((at >> 12) + (long)number);
    while (!stop)
        for (int at = 0; at < 1 << 20; at += 4096) CHECK(block[at] == (char)((at >> 12) + (long)number));
    free(block);
    return number;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    pthread_t threads[3];
    for (long i = 0; i < 3; i++) CHECK(pthread_create(&threads[i], NULL, touches, (void *)i) == 0);
    for (int round = 0; round < 60; round++) {
        CHECK(setegid(getegid()) == 0);
        if (geteuid() == 0) CHECK(seteuid(65534) == 0 && seteuid(0) == 0);
        if (round % 20 == 0) evict();
    }
    stop = 1;
    for (int i = 0; i < 3; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    puts("ok");
    return 0;
}
