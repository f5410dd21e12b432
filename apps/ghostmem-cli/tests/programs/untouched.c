/* What the kernel does not write is not written: structures that lie where no store is allowed,
 * and bytes beside those that are written. */
#define _GNU_SOURCE
#include "twice.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <time.h>

/* A copy of so many bytes at the end of a page that can only be read. */
static char *sealed(const void *what, size_t bytes) {
    char *p = memory(2 * PAGE);
    memcpy(p + PAGE - bytes, what, bytes);
    CHECK(mprotect(p, PAGE, PROT_READ) == 0);
    return p + PAGE - bytes;
}

static void connected(int *s) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(l, (void *)&a, n) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
    s[0] = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(connect(s[0], (void *)&a, n) == 0);
    s[1] = accept(l, NULL, NULL);
    CHECK(s[1] >= 0);
    close(l);
}

static void rings(int number) { (void)number; }

static void sealed_ones(const char *folder) {
    char name[300];
    sprintf(name, "%s/locked", folder);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600), other = open(folder, O_TMPFILE | O_RDWR, 0600);
    CHECK(file >= 0 && write(file, "0123456789", 10) == 10);

    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 2, .l_len = 3};
    void *place = sealed(&lock, sizeof lock);
    ANSWER(fcntl(file, F_SETLK, place));
    ANSWER(fcntl(file, F_SETLKW, place));
    ANSWER(fcntl(file, F_GETLK, place));
    ANSWER(fcntl(file, 37 /* F_OFD_SETLK */, place));
    lock.l_type = F_UNLCK;
    ANSWER(fcntl(file, F_SETLK, sealed(&lock, sizeof lock)));
    struct { int type, pid; } owner = {1, getpid()};
    ANSWER(fcntl(file, 15 /* F_SETOWN_EX */, sealed(&owner, sizeof owner)));
    ANSWER(fcntl(file, 16 /* F_GETOWN_EX */, sealed(&owner, sizeof owner)));

    if (other >= 0) {
        loff_t end = 10, start = 0;
        ANSWER(syscall(SYS_copy_file_range, file, sealed(&end, 8), other, sealed(&start, 8), 5ul, 0));
        ANSWER(syscall(SYS_copy_file_range, file, &start, other, sealed(&end, 8), 5ul, 0));
        close(other);
    }

    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct data[2];
    ANSWER(syscall(SYS_capget, sealed(&head, sizeof head), data));
    head.version = 7;
    ANSWER(syscall(SYS_capget, sealed(&head, sizeof head), data));
    head.version = _LINUX_CAPABILITY_VERSION_1;
    char *two = memory(2 * PAGE);
    memset(two, 3, PAGE);
    CHECK(mprotect(two + PAGE, PAGE, PROT_NONE) == 0);
    ANSWER(syscall(SYS_capget, &head, two + PAGE - 12));
    head.version = 7;
    memcpy(two, &head, sizeof head);
    ANSWER(syscall(SYS_capget, two, data));
    memcpy(&head, two, sizeof head);
    note("version %x\n", head.version);

    /* A time that is not told. */
    struct sigaction action = {.sa_handler = rings};
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    struct itimerval soon = {.it_value = {.tv_usec = 30000}};
    struct timespec until, rest = {5, 6};
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_sec += 20;
    place = sealed(&rest, sizeof rest);
    CHECK(setitimer(ITIMER_REAL, &soon, NULL) == 0);
    ANSWER(syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, sealed(&until, sizeof until), place));
    struct timeval none = {0, 0};
    struct timespec nothing = {0, 0};
    struct pollfd one = {.fd = file, .events = POLLIN};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(file, &set);
    char *rw = memory(PAGE);
    memcpy(rw, &set, sizeof set);
    ANSWER(syscall(SYS_select, file + 1, rw, NULL, NULL, sealed(&none, sizeof none)));
    memcpy(rw, &set, sizeof set);
    ANSWER(syscall(SYS_pselect6, file + 1, rw, NULL, NULL, sealed(&nothing, sizeof nothing), NULL));
    memcpy(rw, &one, sizeof one);
    ANSWER(syscall(SYS_ppoll, rw, 1, sealed(&nothing, sizeof nothing), NULL, 8));

    int s[2];
    connected(s);
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t n = sizeof a;
    int l = socket(AF_INET, SOCK_STREAM, 0), c = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(bind(l, (void *)&a, n) == 0 && listen(l, 1) == 0 && getsockname(l, (void *)&a, &n) == 0);
    CHECK(connect(c, (void *)&a, n) == 0);
    int got = syscall(SYS_accept4, l, NULL, sealed(&n, sizeof n), 0);
    note("accept: %d\n", got >= 0 ? 0 : errno);
    close(got), close(c), close(l);

    struct timespec later = {1, 0};
    struct iovec part = {rw, 100};
    struct mmsghdr *many = (void *)memory(PAGE);
    many->msg_hdr = (struct msghdr){.msg_iov = &part, .msg_iovlen = 1};
    ANSWER(syscall(SYS_recvmmsg, s[1], many, 1, MSG_DONTWAIT, sealed(&later, sizeof later)));

    /* What TCP throws away. */
    CHECK(send(s[0], "thrown away", 11, 0) == 11);
    ANSWER(recv(s[1], sealed("some bytes", 11), 11, MSG_TRUNC | MSG_WAITALL));
    close(s[0]), close(s[1]);

    /* A child that goes on, and then none. */
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(ends[1]);
        char byte;
        _exit(read(ends[0], &byte, 1) != 0);
    }
    struct rusage used;
    memset(&used, 0x11, sizeof used);
    memset(rw, 0xee, 256);
    ANSWER(syscall(SYS_waitid, P_ALL, 0, rw, WEXITED | WNOHANG, sealed(&used, sizeof used)));
    for (int i = 0; i < 160; i++) note("%02x", rw[i] & 255);
    close(ends[1]), close(ends[0]);
    memset(rw, 0xee, 256);
    char *usage = memory(PAGE);
    memset(usage, 0x11, PAGE);
    ANSWER(syscall(SYS_waitid, P_ALL, 0, rw, WEXITED, usage));
    for (int i = 0; i < 16; i++) note("%02x", rw[i] & 255);
    for (int i = 24; i < 160; i++) note("%02x", rw[i] & 255);
    pid_t told;
    memcpy(&told, rw + 16, sizeof told);
    note("\nthe child: %d, %d, %d\n", told == child, usage[0] != 0x11 || usage[8] != 0x11, usage[sizeof used]);
    memset(rw, 0xee, 256);
    ANSWER(syscall(SYS_waitid, P_ALL, 0, rw, WEXITED, sealed(&used, sizeof used)));
    for (int i = 0; i < 160; i++) note("%02x", rw[i] & 255);
    note("\n");
    ANSWER(syscall(SYS_waitid, P_ALL, 0, sealed(&used, 128), WEXITED, NULL));
    close(file);
}

/* Control data: the bytes that align one message are not the kernel's. */
static void between_messages(const char *folder) {
    (void)folder;
    int s[2], on = 1;
    CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, s) == 0);
    CHECK(setsockopt(s[1], SOL_SOCKET, SO_PASSCRED, &on, sizeof on) == 0);
    char control[64] = {0}, byte = 'x';
    struct iovec part = {&byte, 1};
    struct msghdr sent = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = CMSG_SPACE(sizeof(int))};
    struct cmsghdr *head = CMSG_FIRSTHDR(&sent);
    *head = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int))};
    memcpy(CMSG_DATA(head), &s[0], sizeof(int));
    char *room = memory(PAGE);
    for (int length = 0; length < 80; length += 3) {
        CHECK(sendmsg(s[0], &sent, 0) == 1);
        memset(room, 0xee, PAGE);
        struct iovec *into = (void *)(room + 1024);
        *into = (struct iovec){room + 2048, 10};
        struct msghdr received = {.msg_iov = into, .msg_iovlen = 1, .msg_control = room, .msg_controllen = length};
        ANSWER(recvmsg(s[1], &received, 0));
        note("of %d: %zu, %x:", length, received.msg_controllen, received.msg_flags & MSG_CTRUNC);
        for (struct cmsghdr *c = CMSG_FIRSTHDR(&received); c; c = CMSG_NXTHDR(&received, c)) {
            note(" %d of %zu", c->cmsg_type, c->cmsg_len);
            int fd;
            if (c->cmsg_type == SCM_RIGHTS && c->cmsg_len >= CMSG_LEN(sizeof fd)) memcpy(&fd, CMSG_DATA(c), sizeof fd), close(fd);
            /* What it says differs; where it says it does not. */
            if (c->cmsg_len > CMSG_LEN(0)) memset(CMSG_DATA(c), 1, c->cmsg_len - CMSG_LEN(0) > 64 ? 64 : c->cmsg_len - CMSG_LEN(0));
        }
        for (int i = 0; i < 100; i++) note(" %02x", room[i] & 255);
        note("\n");
    }
    close(s[0]), close(s[1]);
}

/* A thread stores to a buffer while another waits for what TCP throws away. */
static char *buffer;
static int waits_on, waits_way;
static void *waits(void *unused) {
    (void)unused;
    struct iovec parts[2] = {{buffer, 100}, {buffer + PAGE, PAGE}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    if (waits_way) return (void *)recvmsg(waits_on, &message, MSG_TRUNC);
    return (void *)recv(waits_on, buffer, 2 * PAGE, MSG_TRUNC);
}

static void thrown_away(void) {
    for (waits_way = 0; waits_way < 2; waits_way++) {
        int s[2];
        connected(s);
        buffer = ghost(3 * PAGE);
        memset(buffer, 'a', 3 * PAGE);
        waits_on = s[1];
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
        usleep(50000);
        memset(buffer, 'b', 3 * PAGE);
        CHECK(send(s[0], "zzzzzzz", 7, 0) == 7);
        void *result;
        CHECK(pthread_join(thread, &result) == 0 && (long)result == 7);
        for (size_t at = 0; at < 3 * PAGE; at++) CHECK(buffer[at] == 'b');
        close(s[0]), close(s[1]);
        free(buffer);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    both(sealed_ones, argv[1]);
    both(between_messages, argv[1]);
    thrown_away();
    puts("ok");
    return 0;
}
