/* Forks while another thread makes the default heap: the child must find it
 * made or not begun, and can use it either way. */

#include "ghostmem.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../check.h"

static atomic_bool begun;

static void *use(void *unused) {
    (void)unused;
    atomic_store(&begun, true);
    ghostmem_heap *heap = ghostmem_default_heap(64);
    CHECK(heap != NULL);
    enum { BYTES = 1 << 20 };
    unsigned char *block = ghostmem_allocate(heap, BYTES);
    CHECK(block != NULL);
    memset(block, 7, BYTES);
    for (int i = 0; i < BYTES; i += 4096) {
        CHECK(block[i] == 7);
    }
    CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_OK);
    return NULL;
}

static void wait_for(pid_t child) {
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFSIGNALED(status)) {
        fprintf(stderr, "the child was ended by signal %d\n", WTERMSIG(status));
    }
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

/* A process whose first heap is made while it forks, after about `delay` ns. */
static void fork_within(long delay) {
    pthread_t maker;
    CHECK(pthread_create(&maker, NULL, use, NULL) == 0);
    while (!atomic_load(&begun)) {
    }
    struct timespec start, now;
    clock_gettime(CLOCK_MONOTONIC, &start);
    do {
        clock_gettime(CLOCK_MONOTONIC, &now);
    } while ((now.tv_sec - start.tv_sec) * 1000000000L + now.tv_nsec - start.tv_nsec < delay);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        /* A child that waits for a thread it does not have is ended. */
        alarm(20);
        use(NULL);
        _exit(0);
    }
    wait_for(child);
    CHECK(pthread_join(maker, NULL) == 0);
}

int main(void) {
    for (int round = 0; round < 200; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            fork_within(round * 5000L);
            _exit(0);
        }
        wait_for(child);
    }
    puts("fork: all right");
    return 0;
}
