/* Lists of messages to a stream whose reader is slower: what comes behind a message of which
 * only a part was taken is not sent. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LONG = 1 << 20, SHORT = 1000, ROUNDS = 400 };

static int fds[2];

static void *reads(void *nothing) {
    static char into[1 << 16];
    while (read(fds[1], into, sizeof into) > 0) continue;
    return nothing;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    char *first = ghost(LONG), *second = ghost(SHORT);
    memset(first, 'a', LONG), memset(second, 'b', SHORT);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(fcntl(fds[0], F_SETFL, O_NONBLOCK) == 0);
    pthread_t reader;
    CHECK(pthread_create(&reader, NULL, reads, NULL) == 0);
    struct iovec parts[2] = {{first, LONG}, {second, SHORT}};
    int parted = 0;
    for (int round = 0; round < ROUNDS; round++) {
        struct mmsghdr list[2] = {{.msg_hdr = {.msg_iov = parts, .msg_iovlen = 1}}, {.msg_hdr = {.msg_iov = parts + 1, .msg_iovlen = 1}}};
        int n = sendmmsg(fds[0], list, 2, 0);
        if (n < 0) {
            CHECK(errno == EAGAIN);
            CHECK(poll(&(struct pollfd){.fd = fds[0], .events = POLLOUT}, 1, 10000) == 1);
            continue;
        }
        parted += list[0].msg_len < LONG;
        if (n == 2 && list[0].msg_len < LONG) printf("wrong: round %d: the second one behind %u bytes of the first\n", round, list[0].msg_len);
        CHECK(n == 1 || list[0].msg_len == LONG);
    }
    CHECK(parted > 0);
    close(fds[0]);
    CHECK(pthread_join(reader, NULL) == 0);
    puts("ok");
    return 0;
}
