/* With MSG_TRUNC, TCP throws away what it received and counts it; other sockets count what a
 * message had. Where nothing is written, buffers keep what they have; else they get what came. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { SENT = 1000, ROOM = 60000 };

static char bytes[SENT], *block;

static void connected(int kind, int *s) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof a;
    if (kind == 1 || kind == 2) {
        CHECK(socketpair(AF_UNIX, kind == 1 ? SOCK_STREAM : SOCK_DGRAM, 0, s) == 0);
        return;
    }
    int type = kind == 0 ? SOCK_STREAM : SOCK_DGRAM, l = socket(AF_INET, type, 0);
    CHECK(bind(l, (void *)&a, n) == 0 && getsockname(l, (void *)&a, &n) == 0);
    if (kind == 0) CHECK(listen(l, 1) == 0);
    s[0] = socket(AF_INET, type, 0);
    CHECK(connect(s[0], (void *)&a, n) == 0);
    s[1] = kind == 0 ? accept(l, NULL, NULL) : l;
    CHECK(s[1] >= 0);
    if (kind == 0) close(l);
}

/* Sends a message that has a buffer of its own to read into, all put away. */
static void sends(int *s, int flags) {
    /* What stand-ins hold from now on is nothing that may be seen. */
    static char secret[ROOM];
    memset(secret, 's', sizeof secret);
    memset(block, '.', ROOM);
    char *other = ghost(ROOM);
    memcpy(other, secret, sizeof secret);
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], other, ROOM) == ROOM && read(fds[0], other, ROOM) == ROOM);
    close(fds[0]), close(fds[1]);
    free(other);
    evict();
    CHECK(send(s[0], bytes, SENT, flags) == SENT);
    /* It is there, whole. */
    ssize_t n = 0;
    while (n < SENT) CHECK((n = recv(s[1], secret, SENT, MSG_PEEK)) > 0);
}

/* Whether a place has the first bytes of the message, and dots behind. */
static void has(size_t at, size_t count, size_t room) {
    for (size_t i = 0; i < room; i++) CHECK(block[at + i] == (i < count ? bytes[i] : '.'));
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    prepare("5000000");
    for (int i = 0; i < SENT; i++) bytes[i] = 'a' + i % 26;
    block = ghost(ROOM);
    for (int kind = 0; kind < 4; kind++) {
        int s[2], is_message = kind > 1, drops = kind == 0;
        connected(kind, s);
        sends(s, 0);
        CHECK(recv(s[1], block, 400, MSG_TRUNC) == (is_message ? SENT : 400));
        has(0, drops ? 0 : 400, ROOM);
        if (!is_message) {
            memset(block, '.', ROOM);
            evict();
            CHECK(recv(s[1], block, ROOM, 0) == SENT - 400);
            CHECK(memcmp(block, bytes + 400, SENT - 400) == 0);
        }
        sends(s, 0);
        CHECK(recv(s[1], block, 50000, MSG_TRUNC) == SENT);
        has(0, drops ? 0 : SENT, ROOM);
        CHECK(recv(s[1], block, 50, MSG_DONTWAIT) == -1 && errno == EAGAIN);

        sends(s, 0);
        CHECK(recv(s[1], block, 400, MSG_TRUNC | MSG_PEEK) == (is_message ? SENT : 400));
        has(0, drops ? 0 : 400, ROOM);
        CHECK(recv(s[1], block, 50000, 0) == SENT);
        has(0, SENT, ROOM);

        for (int many = 0; many < 2; many++) {
            sends(s, 0);
            struct iovec list[3] = {{block, 300}, {block + 20000, 100}, {block + 40000, 10000}};
            struct mmsghdr message = {.msg_hdr = {.msg_iov = list, .msg_iovlen = 3}};
            if (many) CHECK(recvmmsg(s[1], &message, 1, MSG_TRUNC, NULL) == 1 && message.msg_len == SENT);
            else CHECK(recvmsg(s[1], &message.msg_hdr, MSG_TRUNC) == SENT);
            has(0, drops ? 0 : 300, 20000);
            if (drops) {
                has(20000, 0, ROOM - 20000);
            } else {
                CHECK(memcmp(block + 20000, bytes + 300, 100) == 0 && memcmp(block + 40000, bytes + 400, 600) == 0);
                has(20100, 0, 19900);
                has(40600, 0, ROOM - 40600);
            }
        }
        close(s[0]), close(s[1]);
    }
    puts("ok");
    return 0;
}
