/* recvmmsg: an error that comes behind messages is kept for the next call on the socket, and
 * what came before it is there. */
#define _GNU_SOURCE
#include "twice.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>

enum { ROOM = 3000, MANY = 90, LONG = 60000 };

/* s[1] is connected to s[0], and s[0] to s[1]. */
static void connected(int *s) {
    struct sockaddr_in a[2];
    for (int i = 0; i < 2; i++) {
        socklen_t n = sizeof a[i];
        memset(&a[i], 0, n);
        a[i].sin_family = AF_INET, a[i].sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        s[i] = socket(AF_INET, SOCK_DGRAM, 0);
        CHECK(s[i] >= 0 && bind(s[i], (void *)&a[i], n) == 0 && getsockname(s[i], (void *)&a[i], &n) == 0);
    }
    for (int i = 0; i < 2; i++) CHECK(connect(s[i], (void *)&a[1 - i], sizeof a[0]) == 0);
}

static void sends(int s, int count) {
    char bytes[1000];
    for (int i = 0; i < count; i++) {
        memset(bytes, 'a' + i, sizeof bytes);
        CHECK(send(s, bytes, sizeof bytes - i, 0) == (ssize_t)sizeof bytes - i);
    }
}

static struct mmsghdr *list;
static struct iovec *parts;
static char *rooms;

/* A list of three messages with rooms of their own. */
static void lists(void) {
    list = (void *)memory(PAGE), parts = (void *)memory(PAGE), rooms = memory(3 * ROOM);
    memset(rooms, '.', 3 * ROOM);
    memset(list, 0, 3 * sizeof *list);
    for (int i = 0; i < 3; i++) {
        parts[i] = (struct iovec){rooms + i * ROOM, ROOM};
        list[i].msg_hdr = (struct msghdr){.msg_iov = parts + i, .msg_iovlen = 1};
        list[i].msg_len = 77;
    }
    if (which == 1) evict();
}

static void has_come(void) {
    for (int i = 0; i < 3; i++) {
        int same = 1;
        for (int at = 0; at < ROOM; at++) same &= rooms[i * ROOM + at] == (at < 1000 - i && list[i].msg_len != 77 ? 'a' + i : '.');
        note("message %d: %u, %s\n", i, list[i].msg_len, same ? "as it should be" : "other bytes");
    }
}

static void kept(int s, int asks) {
    int is = -1;
    socklen_t n = sizeof is;
    if (asks) {
        ANSWER(getsockopt(s, SOL_SOCKET, SO_ERROR, &is, &n));
        note("kept: %d\n", is);
    }
    for (int i = 0; i < 4; i++) ANSWER(recv(s, rooms, ROOM, MSG_DONTWAIT));
}

/* What the kernel finds at the second message, or the third. */
static void refused(int at, int kind, int asks) {
    int s[2];
    connected(s);
    lists();
    sends(s[0], 3);
    char *none = memory(PAGE);
    CHECK(mprotect(none, PAGE, PROT_NONE) == 0);
    note("refused: message %d, kind %d\n", at, kind);
    struct msghdr *bad = &list[at].msg_hdr;
    if (kind == 0) bad->msg_iovlen = 1025;
    if (kind == 1) parts[at].iov_len = -1ul;
    if (kind == 2) bad->msg_iov = (void *)none;
    if (kind == 3) parts[at].iov_base = none;
    if (kind == 4) bad->msg_iov = (void *)8;
    if (kind == 5) bad->msg_name = rooms, bad->msg_namelen = -1;
    ANSWER(recvmmsg(s[1], list, 3, 0, NULL));
    has_come();
    kept(s[1], asks);
    close(s[0]), close(s[1]);
}

/* The list itself ends. */
static void ends(int asks) {
    int s[2];
    connected(s);
    lists();
    sends(s[0], 3);
    char *pages = memory(2 * PAGE);
    struct mmsghdr *last = (struct mmsghdr *)(pages + PAGE) - 2;
    memcpy(last, list, 2 * sizeof *last);
    CHECK(mprotect(pages + PAGE, PAGE, PROT_NONE) == 0);
    ANSWER(recvmmsg(s[1], last, 3, MSG_WAITFORONE, NULL));
    memcpy(list, last, 2 * sizeof *last);
    has_come();
    kept(s[1], asks);
    close(s[0]), close(s[1]);
}

static void *disturbs(void *socket) {
    int s = *(int *)socket, left = 1;
    while (left) CHECK(ioctl(s, FIONREAD, &left) == 0);
    usleep(20000);
    CHECK(send(s, "", 1, 0) == 1);
    return NULL;
}

/* The peer is gone: that is told while the second message is waited for. */
static void waited(int asks, struct timespec *limit) {
    int s[2];
    pthread_t other;
    connected(s);
    lists();
    sends(s[0], 1);
    close(s[0]);
    CHECK(pthread_create(&other, NULL, disturbs, &s[1]) == 0);
    ANSWER(recvmmsg(s[1], list, 3, 0, limit));
    CHECK(pthread_join(other, NULL) == 0);
    has_come();
    kept(s[1], asks);
    close(s[1]);
}

/* An error that is there before any message. */
static void before(void) {
    int s[2];
    connected(s);
    lists();
    sends(s[0], 2);
    close(s[0]);
    CHECK(send(s[1], "", 1, 0) == 1);
    usleep(20000);
    ANSWER(recvmmsg(s[1], list, 3, MSG_DONTWAIT, NULL));
    has_come();
    ANSWER(recvmmsg(s[1], list, 3, MSG_DONTWAIT, NULL));
    has_come();
    kept(s[1], 1);
    close(s[1]);
}

/* More than there are stand-ins for at once, each with its address and its bytes. */
static void many(void) {
    int s[2], room = 16 << 20;
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, s) == 0);
    CHECK(setsockopt(s[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
    char *bytes = malloc(LONG), *into = memory((size_t)MANY * 2 * LONG);
    struct mmsghdr *list = (void *)memory(MANY * sizeof *list);
    struct iovec *parts = (void *)memory(2 * MANY * sizeof *parts);
    char *beside = mmap(NULL, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(beside != MAP_FAILED);
    memset(list, 0, MANY * sizeof *list);
    for (int i = 0; i < MANY; i++) {
        memset(bytes, i + 1, LONG);
        CHECK(send(s[0], bytes, LONG - i, 0) == LONG - i);
        parts[2 * i] = (struct iovec){beside + i * PAGE, i % 3 ? PAGE : 0};
        parts[2 * i + 1] = (struct iovec){into + (size_t)i * 2 * LONG, 2 * LONG};
        list[i].msg_hdr = (struct msghdr){.msg_iov = parts + 2 * i, .msg_iovlen = 2};
    }
    if (which == 1) evict();
    struct timespec *limit = (void *)memory(sizeof *limit);
    *limit = (struct timespec){1000, 0};
    ANSWER(recvmmsg(s[1], list, MANY, 0, limit));
    note("time is left: %d\n", limit->tv_sec > 900 && limit->tv_sec < 1000);
    for (int i = 0; i < MANY; i++) {
        size_t first = i % 3 ? PAGE : 0, rest = LONG - i - first;
        int same = 1;
        for (size_t at = 0; at < first; at++) same &= beside[i * PAGE + at] == (char)(i + 1);
        for (size_t at = 0; at < 2 * LONG; at++) same &= into[(size_t)i * 2 * LONG + at] == (at < rest ? (char)(i + 1) : 0);
        CHECK(list[i].msg_len == (unsigned)(LONG - i) && same);
    }
    ANSWER(recvmmsg(s[1], list, MANY, MSG_DONTWAIT, NULL));
    free(bytes);
    close(s[0]), close(s[1]);
}

/* Of the second message the sender cannot be told: the third stays where it is. */
static void untold(void) {
    int s[2];
    connected(s);
    lists();
    sends(s[0], 3);
    list[1].msg_hdr.msg_name = (void *)8, list[1].msg_hdr.msg_namelen = 16;
    ANSWER(recvmmsg(s[1], list, 3, 0, NULL));
    ssize_t next = recv(s[1], rooms, ROOM, MSG_DONTWAIT);
    if (next < 0) next = recv(s[1], rooms, ROOM, MSG_DONTWAIT);
    note("behind it: %ld of %c\n", (long)next, rooms[0]);
    close(s[0]), close(s[1]);
}

static void all(const char *folder) {
    (void)folder;
    for (int asks = 0; asks < 2; asks++) {
        for (int kind = 0; kind < 6; kind++)
            for (int at = 0; at < 3; at++) refused(at, kind, asks);
        ends(asks);
        waited(asks, NULL);
        struct timespec *limit = (void *)memory(sizeof *limit);
        *limit = (struct timespec){60, 0};
        waited(asks, limit);
    }
    before();
    untold();
    many();
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(200);
    prepare(argv[2]);
    both(all, argv[1]);
    puts("ok");
    return 0;
}
