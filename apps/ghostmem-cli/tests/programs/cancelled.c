/* Threads cancelled in calls whose arguments are in heap memory: each ends as cancelled, its
 * cleanup runs, and those after it find all as before. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <poll.h>
#include <pthread.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static int ends[2], sockets[2];
static volatile int asleep, cleaned;

static void clean(void *block) {
    CHECK(((char *)block)[39999] == 'c');
    free(block);
    cleaned++;
}

static void *waits(void *kind) {
    char *block = ghost(40000);
    block[39999] = 'c';
    pthread_cleanup_push(clean, block);
    asleep = 1;
    switch ((long)kind) {
    case 0: read(ends[0], block, 20000); break;
    case 1: recv(sockets[0], block, 20000, 0); break;
    case 2: {
        struct pollfd *list = (struct pollfd *)block;
        list->fd = ends[0];
        list->events = POLLIN;
        poll(list, 1, -1);
        break;
    }
    case 3: {
        fd_set *set = (fd_set *)block;
        FD_ZERO(set);
        FD_SET(ends[0], set);
        select(ends[0] + 1, set, NULL, NULL, NULL);
        break;
    }
    case 4: {
        struct timespec *time = (struct timespec *)block;
        time->tv_sec = 1000;
        nanosleep(time, NULL);
        break;
    }
    case 5: {
        struct msghdr *message = (struct msghdr *)block;
        struct iovec *part = (struct iovec *)(block + 512);
        part->iov_base = block + 4096;
        part->iov_len = 20000;
        message->msg_iov = part;
        message->msg_iovlen = 1;
        recvmsg(sockets[0], message, 0);
        break;
    }
    case 6: waitpid(-1, (int *)block, 0); break;
    }
    pthread_cleanup_pop(1);
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    CHECK(pipe(ends) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, sockets) == 0);
    pid_t child = fork();
    if (child == 0) {
        pause();
        _exit(0);
    }
    int made = 0;
    for (int round = 0; round < 3; round++) {
        for (long kind = 0; kind < 7; kind++) {
            pthread_t thread;
            void *result;
            asleep = 0;
            CHECK(pthread_create(&thread, NULL, waits, (void *)kind) == 0);
            while (!asleep) usleep(100);
            /* Until it is in its call. */
            usleep(20000);
            CHECK(pthread_cancel(thread) == 0 && pthread_join(thread, &result) == 0);
            CHECK(result == PTHREAD_CANCELED && cleaned == ++made);
        }
        evict();
    }
    kill(child, 9);
    CHECK(waitpid(child, NULL, 0) == child);
    puts("ok");
    return 0;
}
