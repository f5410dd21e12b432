/* Lists of buffers that are read into, of which some cannot be written: what they answer, what
 * is written, and what is left to be read. */
#define _GNU_SOURCE
#include "twice.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/uio.h>

enum { SENT = 300, KINDS = 6, LISTS = 9 };
static const char *kinds[KINDS] = {"pipe", "unix stream", "unix datagrams", "tcp", "udp", "file"};
static char given[SENT];

static void connected(int kind, int *fds, const char *folder) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof a;
    if (kind == 0) CHECK(pipe(fds) == 0);
    if (kind == 1 || kind == 2) CHECK(socketpair(AF_UNIX, kind == 1 ? SOCK_STREAM : SOCK_DGRAM, 0, fds) == 0);
    if (kind == 3 || kind == 4) {
        int type = kind == 3 ? SOCK_STREAM : SOCK_DGRAM, l = socket(AF_INET, type, 0);
        CHECK(bind(l, (void *)&a, n) == 0 && getsockname(l, (void *)&a, &n) == 0);
        if (kind == 3) CHECK(listen(l, 1) == 0);
        fds[1] = socket(AF_INET, type, 0);
        CHECK(connect(fds[1], (void *)&a, n) == 0);
        fds[0] = kind == 3 ? accept(l, NULL, NULL) : l;
        CHECK(fds[0] >= 0);
        if (kind == 3) close(l);
    }
    if (kind == 5) {
        char name[300];
        sprintf(name, "%s/file", folder);
        fds[1] = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        fds[0] = open(name, O_RDONLY);
        CHECK(fds[0] >= 0 && fds[1] >= 0);
    }
    CHECK(write(fds[1], given, SENT) == SENT);
    if (kind == 2 || kind == 4) CHECK(write(fds[1], given + 7, 200) == 200);
    fcntl(fds[0], F_SETFL, O_NONBLOCK);
    /* It is there, whole. */
    if (kind == 3) {
        char all[SENT];
        while (recv(fds[0], all, SENT, MSG_PEEK) < SENT) usleep(100);
    }
}

static void shown(const char *what, const char *p, size_t bytes) {
    unsigned sum = 0;
    size_t dots = 0;
    for (size_t i = 0; i < bytes; i++) sum = sum * 31 + (unsigned char)p[i], dots += p[i] == '.';
    note("  %s %x, %zu left alone\n", what, sum, dots);
}

static void drained(int fd) {
    static char rest[4096];
    for (int tries = 0; tries < 8; tries++) {
        ssize_t n = read(fd, rest, sizeof rest);
        if (n > 0) shown("to be read", rest, n);
        /* recvmmsg tells of an error at the next call, or it does not. */
        else if (n == 0 || errno != EFAULT) break;
    }
}

static void lists(const char *folder) {
    char *heap = memory(4 * PAGE), *heads = memory(4 * PAGE);
    char *plain = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *closed = plain + PAGE, *edge = closed - 20;
    CHECK(plain != MAP_FAILED);
    for (int kind = 0; kind < KINDS; kind++)
        for (int list = 0; list < LISTS; list++)
            for (int way = 0; way < 5; way++) {
                int is_socket = kind > 0 && kind < 5, fds[2];
                if ((way == 1 || way == 2) && !is_socket) continue;
                if (way == 3 && kind != 0) continue;
                if (way == 4 && kind != 5) continue;
                CHECK(mprotect(closed, PAGE, PROT_READ | PROT_WRITE) == 0);
                memset(heap, '.', 4 * PAGE);
                memset(plain, '.', 4 * PAGE);
                CHECK(mprotect(closed, PAGE, list == 8 ? PROT_NONE : PROT_READ) == 0);
                struct iovec all[LISTS][4] = {
                    {{heap, 100}, {closed, 50}, {heap + PAGE, 200}},
                    {{closed, 50}, {heap, 100}, {heap + PAGE, 200}},
                    {{heap, 100}, {closed, 0}, {heap + PAGE, 250}},
                    {{heap, 100}, {plain, 50}, {heap + PAGE, 200}},
                    {{heap, 50}, {edge, 40}, {heap + PAGE, 200}},
                    {{plain, 50}, {heap, 100}, {edge, 200}},
                    {{plain, 70}, {plain + 100, 100}, {edge, 200}},
                    {{heap, SENT}, {closed, 50}, {heap + PAGE, 20}},
                    {{heap, 100}, {closed, 50}, {heap + PAGE, 200}},
                };
                struct iovec *parts = (void *)heads;
                struct mmsghdr *many = (void *)(heads + PAGE);
                memcpy(parts, all[list], sizeof all[list]);
                memset(many, 0, 2 * sizeof *many);
                many[0].msg_hdr = (struct msghdr){.msg_iov = parts, .msg_iovlen = 3};
                many[1].msg_hdr = many[0].msg_hdr;
                connected(kind, fds, folder);
                if (which == 1 && way == 0) evict();
                note("%s, list %d\n", kinds[kind], list);
                if (way == 0) ANSWER(readv(fds[0], parts, 3));
                if (way == 1) ANSWER(recvmsg(fds[0], &many[0].msg_hdr, MSG_DONTWAIT));
                if (way == 2) ANSWER(recvmmsg(fds[0], many, 2, MSG_DONTWAIT, NULL));
                if (way == 3) ANSWER(vmsplice(fds[0], parts, 3, SPLICE_F_NONBLOCK));
                if (way == 4) ANSWER(preadv(fds[0], parts, 3, 11));
                shown("heap", heap, 4 * PAGE);
                shown("plain", plain, PAGE);
                drained(fds[0]);
                close(fds[0]);
                close(fds[1]);
            }
    munmap(plain, 4 * PAGE);
}

/* The same behind what a stand-in holds, of a call that waits for all. */
enum { FIRST = 9 << 20, LONG = 12 << 20 };

static void long_ones(const char *folder) {
    (void)folder;
    int fds[2], room = 64 << 20;
    char *all = memory(LONG), *closed = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(closed != MAP_FAILED && socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
    /* From ordinary memory: what is sent in one call is in the same pieces then. */
    static char sent[LONG];
    for (size_t at = 0; at < LONG; at++) sent[at] = at * 7 / 5000;
    CHECK(write(fds[1], sent, LONG) == LONG);
    memset(all, '.', LONG);
    struct iovec parts[3] = {{all, FIRST}, {closed, 100}, {all + FIRST, LONG - FIRST - 100}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    ssize_t got = recvmsg(fds[0], &message, MSG_WAITALL);
    note("%zd\n", got);
    shown("all", all, got < 0 ? 0 : got);
    size_t left = 0;
    for (ssize_t n; (n = recv(fds[0], all, LONG, MSG_DONTWAIT)) > 0; left += n);
    note("%zu left\n", left);
    close(fds[0]), close(fds[1]);
    munmap(closed, PAGE);
}

/* What another thread stores to a buffer of the heap's while a call waits for such a list stays,
 * but for what comes. */
static char *shared_part, *beside;
static int waits_on, waits_way;

static void *waits(void *unused) {
    (void)unused;
    struct iovec parts[3] = {{shared_part, 3 * PAGE}, {beside, 100}, {shared_part + 4 * PAGE, 100}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
    if (waits_way == 0) return (void *)readv(waits_on, parts, 3);
    return (void *)recvmsg(waits_on, &message, 0);
}

static void stores_of_others(void) {
    beside = mmap(NULL, PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (waits_way = 0; waits_way < 2; waits_way++) {
        int fds[2];
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        shared_part = ghost(8 * PAGE);
        memset(shared_part, 'a', 8 * PAGE);
        waits_on = fds[0];
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
        usleep(50000);
        memset(shared_part, 'b', 8 * PAGE);
        CHECK(write(fds[1], "zzzzzzz", 7) == 7);
        void *result;
        CHECK(pthread_join(thread, &result) == 0 && (long)result == 7);
        for (size_t at = 0; at < 8 * PAGE; at++) CHECK(shared_part[at] == (at < 7 ? 'z' : 'b'));
        free(shared_part);
        close(fds[0]);
        close(fds[1]);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(300);
    signal(SIGPIPE, SIG_IGN);
    prepare(argv[2]);
    for (int i = 0; i < SENT; i++) given[i] = 'A' + i * 7 % 50;
    both(lists, argv[1]);
    both(long_ones, argv[1]);
    stores_of_others();
    puts("ok");
    return 0;
}
