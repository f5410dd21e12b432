/* Forks, while threads allocate under the locks of their streams and another flushes all
 * streams: libc takes the list's lock after its handlers, before the call. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>
#include <unistd.h>

static atomic_int over;
static char path[4096];

static void *forks(void *unused) {
    for (int round = 0; round < 150; round++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            char *p = malloc(30000 + round);
            CHECK(p && memset(p, 1, 30000));
            free(p);
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    return unused;
}

/* getline's buffer grows while the stream is locked. */
static void *reads(void *unused) {
    while (!atomic_load(&over)) {
        FILE *stream = fopen(path, "r");
        CHECK(stream);
        char *line = NULL;
        size_t room = 0;
        CHECK(getline(&line, &room, stream) == 50001);
        free(line);
        CHECK(fclose(stream) == 0);
    }
    return unused;
}

static void *flushes(void *unused) {
    while (!atomic_load(&over)) CHECK(fflush(NULL) == 0);
    return unused;
}

int main(int argc, char **argv) {
    (void)argc;
    alarm(300);
    snprintf(path, sizeof path, "%s/line", argv[1]);
    FILE *stream = fopen(path, "w");
    CHECK(stream);
    for (int i = 0; i < 50000; i++) CHECK(fputc('x', stream) == 'x');
    CHECK(fputc('\n', stream) == '\n' && fclose(stream) == 0);
    pthread_t forkers[2], readers[4], flusher;
    for (int i = 0; i < 4; i++) CHECK(pthread_create(&readers[i], NULL, reads, NULL) == 0);
    CHECK(pthread_create(&flusher, NULL, flushes, NULL) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_create(&forkers[i], NULL, forks, NULL) == 0);
    for (int i = 0; i < 2; i++) CHECK(pthread_join(forkers[i], NULL) == 0);
    atomic_store(&over, 1);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(readers[i], NULL) == 0);
    CHECK(pthread_join(flusher, NULL) == 0);
    puts("ok");
    return 0;
}
