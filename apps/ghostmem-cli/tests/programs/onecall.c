/* One call stays one call: what the kernel or the peer can tell. Run with a
 * limit of a few MiB, stand-ins are 8 MiB at the most, and the third argument is
 * that number; natively it is LONG. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define LONG (20 << 20)
#ifndef SO_ZEROCOPY
#define SO_ZEROCOPY 60
#endif

static char *big, *other;
/* The most that one call of a device moves, and what a message longer than
 * that may be refused with besides. */
static ssize_t most;
static int refusal;

static void fill(char *p, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i += 64) { *(unsigned *)(p + i) = seed + (unsigned)i * 2654435761u; }
}
static int same(const char *p, size_t bytes, unsigned seed) {
    for (size_t i = 0; i < bytes; i += 64) if (*(unsigned *)(p + i) != seed + (unsigned)i * 2654435761u) return 0;
    return 1;
}

static void devices(void) {
    int zero = open("/dev/zero", O_RDONLY);
    evict();
    CHECK(read(zero, big, 6 << 20) == 6 << 20);
    struct iovec v[2] = {{big, 3 << 20}, {big + (4 << 20), 3 << 20}};
    evict();
    CHECK(readv(zero, v, 2) == 6 << 20);
    /* Beyond a stand-in, a device gives less than was asked for. */
    CHECK(read(zero, big, LONG) == most);
    close(zero);
    CHECK(getrandom(big, 3 << 20, 0) == 3 << 20);
}

static void files(const char *folder) {
    char path[4096];
    snprintf(path, sizeof path, "%s/file", folder);
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    fill(big, LONG, 1);
    CHECK(write(fd, big, LONG) == LONG);
    memset(other, 0, LONG);
    CHECK(pread(fd, other, LONG, 0) == LONG && same(other, LONG, 1));
    CHECK(pread(fd, other, LONG, 4096) == LONG - 4096);
    close(fd);
    fd = open(path, O_WRONLY | O_APPEND | O_TRUNC);
    CHECK(write(fd, big, 5 << 20) == 5 << 20);
    CHECK(write(fd, big, LONG) == most);
    struct stat st;
    CHECK(fstat(fd, &st) == 0 && st.st_size == (5 << 20) + most);
    close(fd);
    fd = open(path, O_RDWR | O_DIRECT | O_TRUNC);
    if (fd >= 0) {
        char *block = ghost(5 << 20);
        fill(block, 5 << 20, 2);
        evict();
        CHECK(write(fd, block, 5 << 20) == 5 << 20);
        memset(block, 0, 5 << 20);
        CHECK(pread(fd, block, 5 << 20, 0) == 5 << 20 && same(block, 5 << 20, 2));
        free(block);
        close(fd);
    }
    unlink(path);
}

struct reader { int fd; size_t bytes; unsigned seed; int good; };
static void *reads_all(void *argument) {
    struct reader *r = argument;
    char *p = ghost(r->bytes);
    size_t done = 0;
    while (done < r->bytes) { ssize_t n = read(r->fd, p + done, r->bytes - done); if (n <= 0) break; done += n; }
    r->good = done == r->bytes && same(p, r->bytes, r->seed);
    free(p);
    return 0;
}

/* A child writes all of it, in pieces. */
static void written_by_a_child(int fd) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child > 0) return;
    for (size_t done = 0; done < LONG;) { ssize_t n = write(fd, big + done, LONG - done < 700000 ? LONG - done : 700000); if (n <= 0) _exit(1); done += n; }
    _exit(0);
}

/* send(2) and its kin on a stream that waits send all of it, and a recvmsg(2) that is to wait
 * for all of it does. */
static void sent_whole(void) {
    struct iovec parts[2] = {{big, LONG / 3}, {big + LONG / 3, LONG - LONG / 3}};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = parts, .msg_iovlen = 2}};
    fill(big, LONG, 5);
    for (int way = 0; way < 4; way++) {
        int fds[2];
        pthread_t t;
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        struct reader r = {fds[0], LONG, 5, 0};
        if (way < 3) CHECK(pthread_create(&t, 0, reads_all, &r) == 0);
        if (way == 0) CHECK(send(fds[1], big, LONG, 0) == LONG);
        if (way == 1) CHECK(sendmsg(fds[1], &message.msg_hdr, 0) == LONG);
        if (way == 2) CHECK(sendmmsg(fds[1], &message, 1, 0) == 1 && message.msg_len == LONG);
        if (way < 3) {
            CHECK(pthread_join(t, 0) == 0 && r.good);
        } else {
            written_by_a_child(fds[1]);
            memset(other, 0, LONG);
            struct iovec into[2] = {{other, 1000}, {other + 1000, LONG - 1000}};
            struct msghdr received = {.msg_iov = into, .msg_iovlen = 2};
            CHECK(recvmsg(fds[0], &received, MSG_WAITALL) == LONG && same(other, LONG, 5));
        }
        close(fds[0]); close(fds[1]);
    }
    /* One that does not wait sends what there is room for; one whose peer leaves is told how
     * much went, and no signal comes. */
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    ssize_t some = send(fds[1], big, LONG, MSG_DONTWAIT);
    CHECK(some > 0 && some < LONG);
    close(fds[0]); close(fds[1]);
}

static void streams(void) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    struct reader r = {fds[0], LONG, 3, 0};
    pthread_t t;
    fill(big, LONG, 3);
    CHECK(pthread_create(&t, 0, reads_all, &r) == 0);
    CHECK(write(fds[1], big, LONG) == LONG);
    CHECK(pthread_join(t, 0) == 0 && r.good);
    close(fds[0]); close(fds[1]);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    r = (struct reader){fds[0], LONG, 4, 0};
    fill(big, LONG, 4);
    CHECK(pthread_create(&t, 0, reads_all, &r) == 0);
    CHECK(write(fds[1], big, LONG) == LONG);
    CHECK(pthread_join(t, 0) == 0 && r.good);
    /* All of it, in one call, by way of several stand-ins. */
    written_by_a_child(fds[1]);
    memset(other, 0, LONG);
    CHECK(recv(fds[0], other, LONG, MSG_WAITALL) == LONG && same(other, LONG, 4));
    close(fds[0]); close(fds[1]);
    sent_whole();
}

static void messages(void) {
    int fds[2];
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds) == 0);
    int room = 64 << 20;
    int forced = setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0;
    size_t bytes = forced ? 3 << 19 : 100000;
    fill(big, bytes, 5);
    struct iovec v[3] = {{big, bytes / 2 & ~63}, {big + (bytes / 2 & ~63), 640}, {big + (bytes / 2 & ~63) + 640, bytes - (bytes / 2 & ~63) - 640}};
    evict();
    CHECK(writev(fds[0], v, 3) == (ssize_t)bytes);
    struct iovec w[2] = {{other, 4096}, {other + 4096, LONG - 4096}};
    evict();
    CHECK(readv(fds[1], w, 2) == (ssize_t)bytes && same(other, bytes, 5));
    CHECK(send(fds[0], big, bytes, 0) == (ssize_t)bytes);
    CHECK(recv(fds[1], other, LONG, 0) == (ssize_t)bytes && same(other, bytes, 5));
    /* Longer than a stand-in: refused before it is sent. */
    errno = 0;
    CHECK(send(fds[0], big, LONG, 0) == -1 && (errno == ENOBUFS || errno == refusal));
    CHECK(write(fds[0], big, LONG) == -1 && (errno == ENOBUFS || errno == refusal));
    CHECK(recv(fds[1], other, LONG, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    close(fds[0]); close(fds[1]);

    /* Many at once: as many as were asked for, time limit or not. */
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) == 0);
    struct mmsghdr *many = ghost(sizeof *many * 8);
    struct iovec *parts = ghost(sizeof *parts * 8);
    struct timespec *limit = ghost(sizeof *limit);
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 8; i++) {
            memset(&many[i], 0, sizeof many[i]);
            parts[i] = (struct iovec){big + i * 5000, 1000 + i};
            many[i].msg_hdr.msg_iov = &parts[i]; many[i].msg_hdr.msg_iovlen = 1;
        }
        evict();
        CHECK(sendmmsg(fds[0], many, 8, 0) == 8 && many[7].msg_len == 1007);
        for (int i = 0; i < 8; i++) { parts[i] = (struct iovec){other + i * 5000, 2000}; many[i].msg_len = 0; }
        memset(other, 0, 40000);
        *limit = (struct timespec){5, 0};
        evict();
        CHECK(recvmmsg(fds[1], many, 8, 0, round ? limit : 0) == 8);
        for (int i = 0; i < 8; i++) CHECK(many[i].msg_len == 1000u + i && memcmp(big + i * 5000, other + i * 5000, 1000 + i) == 0);
    }
    CHECK(limit->tv_sec < 5);
    close(fds[0]); close(fds[1]);
}

/* Pages that the kernel keeps beyond the call. */
static void kept_pages(void) {
    int l = socket(AF_INET, SOCK_STREAM, 0), s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof a;
    CHECK(bind(l, (void *)&a, n) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
    CHECK(connect(s, (void *)&a, n) == 0);
    int t = accept(l, 0, 0);
    CHECK(t >= 0);
    if (setsockopt(s, SOL_SOCKET, SO_ZEROCOPY, &one, sizeof one) == 0) {
        fill(big, 512 << 10, 6);
        size_t sent = 0;
        for (int i = 0; i < 4; i++) {
            evict();
            ssize_t m = send(s, big + sent, 128 << 10, MSG_ZEROCOPY | MSG_DONTWAIT);
            if (m < 0) break;
            sent += m;
        }
        CHECK(sent > 0);
        /* Stand-ins of the same size, with other bytes. */
        memset(other, 0x77, 128 << 10);
        int null = open("/dev/null", O_WRONLY);
        for (int i = 0; i < 100; i++) CHECK(write(null, other, 128 << 10) == 128 << 10);
        close(null);
        for (size_t done = 0; done < sent;) { ssize_t m = recv(t, other + done, sent - done, 0); CHECK(m > 0); done += m; }
        CHECK(same(other, sent, 6));
    }
    close(l); close(s); close(t);
}

int main(int argc, char **argv) {
    CHECK(argc == 3 || argc == 4);
    most = argc == 4 ? atol(argv[3]) : LONG;
    refusal = argc == 4 ? ENOBUFS : EMSGSIZE;
    prepare(argv[2]);
    big = ghost(LONG);
    other = ghost(LONG);
    devices();
    files(argv[1]);
    streams();
    messages();
    kept_pages();
    printf("ok\n");
    return 0;
}
