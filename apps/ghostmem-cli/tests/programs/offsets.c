/* Where looks at a socket begin (SO_PEEK_OFF) is the program's: no other thread and no handler
 * sees it changed by a call that receives, or looks, while that waits or goes on. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <netinet/in.h>
#include <linux/errqueue.h>
#include <pthread.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { LONG = 20 << 20, SENT = 12 << 20, MESSAGE = 1000, TOLD = 400 };
static char *big, *into;
static int fds[2], offset, way, is_over;
static ssize_t got;

static int begins_at(void) {
    int is = 99;
    socklen_t bytes = sizeof is;
    CHECK(getsockopt(fds[1], SOL_SOCKET, SO_PEEK_OFF, &is, &bytes) == 0);
    return is;
}

static void pair(int kind, int begins) {
    int room = 64 << 20;
    CHECK(socketpair(AF_UNIX, kind, 0, fds) == 0);
    CHECK(setsockopt(fds[0], SOL_SOCKET, SO_SNDBUFFORCE, &room, sizeof room) == 0);
    CHECK(setsockopt(fds[1], SOL_SOCKET, SO_PEEK_OFF, &begins, sizeof begins) == 0);
    offset = begins;
}

static ssize_t receives(int way) {
    struct iovec parts[2] = {{into, 10}, {into + 10, LONG - 10}};
    struct mmsghdr message = {.msg_hdr = {.msg_iov = parts, .msg_iovlen = 2}};
    switch (way) {
    case 0: return recv(fds[1], into, LONG, 0);
    case 1: return read(fds[1], into, LONG);
    case 2: return recvmsg(fds[1], &message.msg_hdr, 0);
    case 3: return recvmmsg(fds[1], &message, 1, 0, NULL) == 1 ? (ssize_t)message.msg_len : -1;
    default: return recv(fds[1], into, LONG, MSG_PEEK);
    }
}

static int thread_number;
static void *waits(void *unused) {
    (void)unused;
    __atomic_store_n(&thread_number, syscall(SYS_gettid), __ATOMIC_RELEASE);
    got = receives(way);
    return NULL;
}

/* Until a thread sleeps in a call, as the kernel says a few times. */
static void until_it_sleeps(void) {
    char path[64], line[512];
    int number;
    while (!(number = __atomic_load_n(&thread_number, __ATOMIC_ACQUIRE))) usleep(1000);
    snprintf(path, sizeof path, "/proc/self/task/%d/stat", number);
    for (int times = 0; times < 5;) {
        FILE *file = fopen(path, "r");
        CHECK(file && fgets(line, sizeof line, file));
        fclose(file);
        times = strrchr(line, ')')[2] == 'S' ? times + 1 : 0;
        usleep(3000);
    }
}

static int seen_in_handler;
static void looks(int number) {
    (void)number;
    seen_in_handler = begins_at();
}

/* A call waits for a message, with room for more than any. */
static void waited(int kind, int begins) {
    for (way = 0; way < 5; way++) {
        pair(kind, begins);
        thread_number = 0;
        seen_in_handler = 99;
        memset(into, 0, MESSAGE);
        if (way % 2) evict();
        pthread_t other;
        CHECK(pthread_create(&other, NULL, waits, NULL) == 0);
        until_it_sleeps();
        if (begins_at() != begins) printf("wrong: way %d: looks begin at %d, not %d\n", way, begins_at(), begins);
        CHECK(begins_at() == begins);
        CHECK(pthread_kill(other, SIGUSR1) == 0);
        until_it_sleeps();
        CHECK(seen_in_handler == begins);
        CHECK(send(fds[0], big, MESSAGE, 0) == MESSAGE);
        CHECK(pthread_join(other, NULL) == 0);
        int skips = way == 4 && begins > 0 ? begins : 0;
        if (got != MESSAGE - skips) printf("wrong: way %d: %zd\n", way, got);
        CHECK(got == MESSAGE - skips && memcmp(into, big + skips, got) == 0);
        /* A look moves on; what is taken brings it back by as much. */
        int now = begins < 0 ? -1 : way == 4 ? MESSAGE : 0;
        if (begins_at() != now) printf("wrong: way %d: looks begin at %d, not %d\n", way, begins_at(), now);
        CHECK(begins_at() == now);
        close(fds[0]), close(fds[1]);
    }
}

static void *watches(void *unused) {
    (void)unused;
    while (!__atomic_load_n(&is_over, __ATOMIC_RELAXED)) CHECK(begins_at() == -1);
    return NULL;
}

/* A look at more than a stand-in has room for. */
static void long_looks(void) {
    pair(SOCK_STREAM, -1);
    for (size_t done = 0; done < SENT; done += 1 << 16) CHECK(write(fds[0], big + done, 1 << 16) == 1 << 16);
    pthread_t other;
    CHECK(pthread_create(&other, NULL, watches, NULL) == 0);
    for (int i = 0; i < 3; i++) {
        memset(into, 0, SENT);
        CHECK(recv(fds[1], into, LONG, MSG_PEEK) == SENT && memcmp(into, big, SENT) == 0);
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
    CHECK(pthread_join(other, NULL) == 0);
    close(fds[0]), close(fds[1]);
}

/* What is told of an error is told once, whatever the room for it. */
static void told_of_errors(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof a;
    int on = 1, gone = socket(AF_INET, SOCK_DGRAM, 0), s = socket(AF_INET, SOCK_DGRAM, 0);
    CHECK(bind(gone, (void *)&a, n) == 0 && getsockname(gone, (void *)&a, &n) == 0);
    close(gone);
    CHECK(setsockopt(s, SOL_IP, IP_RECVERR, &on, sizeof on) == 0 && connect(s, (void *)&a, n) == 0);
    CHECK(send(s, big, TOLD, 0) == TOLD);
    usleep(50000);
    char control[512];
    struct iovec part = {into, LONG};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    ssize_t told = recvmsg(s, &message, MSG_ERRQUEUE);
    if (told != TOLD) printf("wrong: of an error %zd bytes are told\n", told);
    CHECK(told == TOLD && memcmp(into, big, TOLD) == 0 && message.msg_flags & MSG_ERRQUEUE);
    CHECK(recvmsg(s, &message, MSG_ERRQUEUE) == -1 && errno == EAGAIN);
    close(s);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(200);
    prepare(argv[2]);
    big = ghost(LONG);
    into = ghost(LONG);
    for (size_t at = 0; at < LONG; at += 4) *(unsigned *)(big + at) = at * 2654435761u;
    struct sigaction action = {.sa_handler = looks, .sa_flags = SA_RESTART};
    CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
    for (int kind = 0; kind < 2; kind++)
        for (int begins = -1; begins < 6; begins += begins < 0 ? 1 : 5) waited(kind ? SOCK_SEQPACKET : SOCK_DGRAM, begins);
    long_looks();
    told_of_errors();
    puts("ok");
    return 0;
}
