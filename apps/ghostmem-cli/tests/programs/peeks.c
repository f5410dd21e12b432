/* Looks at sockets (MSG_PEEK) that are longer than a stand-in, and those of programs that say
 * where they begin (SO_PEEK_OFF). */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LONG = 20 << 20, SENT = 12 << 20, MESSAGE = 100000 };
static char *big, *into;

static void begins_at(int fd, int offset) {
    int is = 99;
    socklen_t bytes = sizeof is;
    CHECK(getsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &is, &bytes) == 0);
    if (is != offset) printf("wrong: looks begin at %d, not %d\n", is, offset);
    CHECK(is == offset);
}
static void begin_at(int fd, int offset) { CHECK(setsockopt(fd, SOL_SOCKET, SO_PEEK_OFF, &offset, sizeof offset) == 0); }

static int is_there(size_t from, size_t bytes) { return memcmp(into, big + from, bytes) == 0; }

static void pair(int kind, int *fds) {
    int room = 64 << 20;
    CHECK(socketpair(AF_UNIX, kind, 0, fds) == 0);
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
}

static void streams(void) {
    int fds[2];
    pair(SOCK_STREAM, fds);
    for (size_t done = 0; done < SENT; done += 1 << 16) CHECK(write(fds[0], big + done, 1 << 16) == 1 << 16);
    struct iovec parts[2] = {{into, 1000}, {into + 1000, LONG - 1000}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    for (int way = 0; way < 3; way++) {
        memset(into, 0, SENT);
        evict();
        ssize_t n = way == 0 ? recv(fds[1], into, LONG, MSG_PEEK) : way == 1 ? recvmsg(fds[1], &message, MSG_PEEK | MSG_DONTWAIT) : recv(fds[1], into, SENT, MSG_PEEK | MSG_WAITALL);
        if (n != SENT) printf("wrong: way %d: %zd\n", way, n);
        CHECK(n == SENT && is_there(0, SENT));
        begins_at(fds[1], -1);
    }
    begin_at(fds[1], 5000);
    CHECK(recv(fds[1], into, LONG, MSG_PEEK) == SENT - 5000 && is_there(5000, SENT - 5000));
    begins_at(fds[1], SENT);
    begin_at(fds[1], -1);
    for (size_t done = 0; done < SENT;) {
        ssize_t n = recv(fds[1], into + done, SENT - done, 0);
        CHECK(n > 0);
        done += n;
    }
    CHECK(is_there(0, SENT) && recv(fds[1], into, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    close(fds[0]), close(fds[1]);
}

static void messages(int kind) {
    int fds[2];
    pair(kind, fds);
    for (int i = 0; i < 3; i++) CHECK(write(fds[0], big + i * MESSAGE, MESSAGE) == MESSAGE);
    begin_at(fds[1], 0);
    CHECK(recv(fds[1], into, LONG, MSG_PEEK) == MESSAGE && is_there(0, MESSAGE));
    begins_at(fds[1], MESSAGE);
    CHECK(recv(fds[1], into, LONG, MSG_PEEK) == MESSAGE && is_there(MESSAGE, MESSAGE));
    begin_at(fds[1], 70);
    CHECK(recv(fds[1], into, LONG, MSG_PEEK) == MESSAGE - 70 && is_there(70, MESSAGE - 70));
    begin_at(fds[1], MESSAGE + 3);
    CHECK(recv(fds[1], into, LONG, 0) == MESSAGE && is_there(0, MESSAGE));
    begins_at(fds[1], 3);
    CHECK(recv(fds[1], into, LONG, MSG_PEEK) == MESSAGE - 3 && is_there(MESSAGE + 3, MESSAGE - 3));
    CHECK(read(fds[1], into, LONG) == MESSAGE && is_there(MESSAGE, MESSAGE));
    close(fds[0]), close(fds[1]);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    big = ghost(LONG);
    into = ghost(LONG);
    for (size_t at = 0; at < LONG; at += 4) *(unsigned *)(big + at) = at * 2654435761u;
    streams();
    messages(SOCK_SEQPACKET);
    messages(SOCK_DGRAM);
    puts("ok");
    return 0;
}
