/* Buffers and structures that are good at first and then run into memory that is not there, may
 * not be used, or is of another mapping. Each call is made with memory of the kernel's alone
 * (shared, which stays ordinary) and with heap memory in the same shape; answers, what arrived,
 * and what is left to read are compared. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <pty.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

enum { PAGE = 4096, GOOD = 16 * PAGE, WHOLE = 32 * PAGE };

static char log_of[2][1 << 16];
static int which;
static size_t at_log;

static void say(const char *format, ...) {
    va_list more;
    va_start(more, format);
    at_log += vsnprintf(log_of[which] + at_log, sizeof *log_of - at_log, format, more);
    va_end(more);
    CHECK(at_log < sizeof *log_of - 200);
}

static unsigned sum(const void *place, size_t bytes) {
    const unsigned char *p = place;
    unsigned s = 7;
    while (bytes--) s = s * 31 + *p++;
    return s;
}

enum tail { UNMAPPED, CLOSED, READ_ONLY, FILE_OVER, FILE_CLOSED, FILE_READ_ONLY, OTHER_FIRST, TAILS };
static const char *const tails[] = {"unmapped", "closed", "read only", "a file over it",
                                    "a closed file over it", "a file to read over it", "a file before it"};
static int over;

/* Memory whose first GOOD bytes are good (of the file's, where that is first), and what comes
 * behind it. */
static char *shape(int ordinary, enum tail tail) {
    int flags = ordinary ? MAP_SHARED : MAP_PRIVATE;
    char *p = mmap(NULL, WHOLE, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    for (int i = 0; i < GOOD; i++) p[i] = i * 7 + i / PAGE;
    char *end = p + GOOD;
    size_t rest = WHOLE - GOOD;
    CHECK(ftruncate(over, 0) == 0 && ftruncate(over, WHOLE) == 0);
    int fixed = MAP_SHARED | MAP_FIXED;
    if (tail == UNMAPPED) CHECK(munmap(end, rest) == 0);
    if (tail == CLOSED) CHECK(mprotect(end, rest, PROT_NONE) == 0);
    if (tail == READ_ONLY) {
        memset(end, 'r', rest);
        CHECK(mprotect(end, rest, PROT_READ) == 0);
    }
    if (tail == FILE_OVER) CHECK(mmap(end, rest, PROT_READ | PROT_WRITE, fixed, over, 0) == end);
    if (tail == FILE_CLOSED) CHECK(mmap(end, rest, PROT_NONE, fixed, over, 0) == end);
    if (tail == FILE_READ_ONLY) {
        for (size_t at = 0; at < rest; at += PAGE) {
            char page[PAGE];
            memset(page, 'r', PAGE);
            CHECK(pwrite(over, page, PAGE, at) == PAGE);
        }
        CHECK(mmap(end, rest, PROT_READ, MAP_PRIVATE | MAP_FIXED, over, 0) == end);
    }
    if (tail == OTHER_FIRST) {
        CHECK(mmap(p, PAGE, PROT_READ | PROT_WRITE, fixed, over, 0) == p);
        for (int i = 0; i < PAGE; i++) p[i] = i * 7;
        CHECK(munmap(end, rest) == 0);
    }
    return p;
}

static char big[1 << 20];

/* Everything that a descriptor has to read. */
static void drain(const char *what, int fd) {
    size_t got = 0;
    ssize_t n;
    while (got < sizeof big && (n = recv(fd, big + got, sizeof big - got, MSG_DONTWAIT)) != -1 && n > 0) got += n;
    if (errno == ENOTSOCK) {
        fcntl(fd, F_SETFL, O_NONBLOCK);
        while (got < sizeof big && (n = read(fd, big + got, sizeof big - got)) > 0) got += n;
    }
    say("  %s has %zu, %x\n", what, got, sum(big, got));
}

/* How much of a write TCP takes before the memory ends depends on where the kernel's own page for
 * it ends, and that on what was acknowledged by then. So the rule is asked for: what it says has
 * come, and is the beginning of what was good; or nothing has, and it says EFAULT. */
static void took(const char *what, long got, int error, int peer, const struct iovec good[2]) {
    static char wanted[WHOLE];
    memcpy(wanted, good[0].iov_base, good[0].iov_len);
    memcpy(wanted + good[0].iov_len, good[1].iov_base, good[1].iov_len);
    size_t came = 0;
    ssize_t n;
    while ((n = recv(peer, big + came, sizeof big - came, MSG_DONTWAIT)) > 0) came += n;
    int nothing = got == -1 && error == EFAULT && came == 0;
    int part = got > 0 && came == (size_t)got && came <= good[0].iov_len + good[1].iov_len;
    if (nothing || (part && memcmp(big, wanted, came) == 0)) return;
    printf("wrong: %s: %s: %ld, errno %d, peer has %zu\n", which ? "here" : "natively", what, got, error, came);
    exit(1);
}

static void answer(const char *what, long got) { say("%s: %ld, errno %d\n", what, got, got < 0 ? errno : 0); }

static void pair(int kind, int fds[2]) {
    if (kind == 0) CHECK(pipe(fds) == 0);
    if (kind == 1) CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    if (kind == 2) CHECK(socketpair(AF_UNIX, SOCK_DGRAM, 0, fds) == 0);
    if (kind == 3) {
        int listener = socket(AF_INET, SOCK_STREAM, 0);
        struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
        socklen_t bytes = sizeof where;
        CHECK(bind(listener, (void *)&where, bytes) == 0 && listen(listener, 1) == 0);
        CHECK(getsockname(listener, (void *)&where, &bytes) == 0);
        fds[1] = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(fds[1], (void *)&where, bytes) == 0);
        fds[0] = accept(listener, NULL, NULL);
        /* Closed at once: thousands of ports that wait would be all there are. */
        struct linger at_once = {1, 0};
        CHECK(setsockopt(fds[0], SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once) == 0);
        close(listener);
    }
    if (kind == 4) {
        CHECK(openpty(&fds[0], &fds[1], NULL, NULL, NULL) == 0);
        struct termios raw;
        CHECK(tcgetattr(fds[1], &raw) == 0);
        cfmakeraw(&raw);
        CHECK(tcsetattr(fds[1], TCSANOW, &raw) == 0);
    }
}

static const char *const kinds[] = {"pipe", "stream", "datagram", "tcp", "terminal"};
/* How much of a buffer is good before it ends. */
static const int goods[] = {0, 1, 100, 1000, PAGE, PAGE + 50, 3 * PAGE, 3 * PAGE + 10};

static void writes(char *end, int readable, const char *folder) {
    char text[64];
    for (int kind = 0; kind < 5; kind++)
        for (int g = 0; g < 8; g++)
            for (int way = 0; way < 4; way++) {
                if (kind == 4 && goods[g] > 2000) continue;
                int fds[2];
                pair(kind, fds);
                fcntl(fds[1], F_SETFL, O_NONBLOCK);
                char *from = end - goods[g];
                size_t bytes = goods[g] + 2 * PAGE;
                sprintf(text, "write %s, %d, way %d", kinds[kind], goods[g], way);
                struct iovec parts[3] = {{end - GOOD, 10}, {from, bytes}, {end - GOOD, 10}};
                struct msghdr message = {.msg_iov = parts, .msg_iovlen = 3};
                long got = -1;
                errno = 0;
                if (way == 0) got = write(fds[1], from, bytes);
                if (way == 1) got = writev(fds[1], parts, 3);
                if (way == 2 && kind % 4) got = send(fds[1], from, bytes, MSG_DONTWAIT);
                if (way == 3 && kind % 4) got = sendmsg(fds[1], &message, MSG_DONTWAIT);
                int error = errno;
                usleep(kind == 3 ? 200 : 0);
                if (kind == 3 && !readable) {
                    struct iovec good[2] = {{end - GOOD, way % 2 ? 10 : 0}, {from, goods[g]}};
                    took(text, got, error, fds[0], good);
                } else {
                    errno = error;
                    answer(text, got);
                    drain("peer", fds[0]);
                }
                close(fds[0]);
                close(fds[1]);
            }
    char name[300];
    sprintf(name, "%s/written", folder);
    for (int append = 0; append < 2; append++)
        for (int g = 0; g < 8; g++)
            for (int way = 0; way < 4; way++) {
                int file = open(name, O_RDWR | O_CREAT | O_TRUNC | (append ? O_APPEND : 0), 0600);
                CHECK(file >= 0);
                char *from = end - goods[g];
                size_t bytes = goods[g] + 2 * PAGE;
                struct iovec parts[3] = {{end - GOOD, 10}, {from, bytes}, {end - GOOD, 10}};
                sprintf(text, "file %d, way %d, %d", goods[g], way, append);
                if (way == 0) answer(text, write(file, from, bytes));
                if (way == 1) answer(text, writev(file, parts, 3));
                if (way == 2) answer(text, pwrite(file, from, bytes, 100));
                if (way == 3) answer(text, pwritev(file, parts, 3, 100));
                struct stat now;
                CHECK(fstat(file, &now) == 0);
                memset(big, 0, 8 * PAGE);
                CHECK(pread(file, big, 8 * PAGE, 0) == now.st_size);
                say("  %ld bytes at %ld, %x\n", (long)now.st_size, (long)lseek(file, 0, SEEK_CUR), sum(big, now.st_size));
                close(file);
            }
}

static void reads(char *end, const char *folder) {
    char text[64];
    static char given[5 * PAGE];
    for (int i = 0; i < sizeof given; i++) given[i] = i * 3 + i / 1000;
    for (int kind = 0; kind < 5; kind++)
        for (int g = 0; g < 8; g++)
            for (int way = 0; way < 4; way++) {
                if (kind == 4 && goods[g] > 2000) continue;
                int fds[2];
                pair(kind, fds);
                int most = kind == 4 ? 2000 : 5 * PAGE;
                CHECK(write(fds[kind == 4 ? 0 : 1], given, most) == most);
                if (kind == 3) usleep(300);
                int from = fds[kind == 4];
                char *to = end - goods[g];
                size_t bytes = goods[g] + 2 * PAGE;
                memset(to, 'x', goods[g]);
                sprintf(text, "read %s, %d, way %d", kinds[kind], goods[g], way);
                static char first[16];
                struct iovec parts[2] = {{first, 10}, {to, bytes}};
                struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
                memset(first, 0, sizeof first);
                if (way == 0) answer(text, read(from, to, bytes));
                if (way == 1) answer(text, readv(from, parts, 2));
                if (way == 2 && kind % 4) answer(text, recv(from, to, bytes, MSG_DONTWAIT));
                if (way == 3 && kind % 4) answer(text, recvmsg(from, &message, MSG_DONTWAIT));
                say("  %x %x\n", sum(to, goods[g]), sum(first, 10));
                drain("left", from);
                close(fds[0]);
                close(fds[1]);
            }
    char name[300];
    sprintf(name, "%s/read", folder);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(write(file, given, sizeof given) == sizeof given);
    for (int g = 0; g < 8; g++) {
        char *to = end - goods[g];
        memset(to, 'x', goods[g]);
        lseek(file, 0, SEEK_SET);
        answer("read file", read(file, to, goods[g] + PAGE));
        say("  at %ld, %x\n", (long)lseek(file, 0, SEEK_CUR), sum(to, goods[g]));
        answer("pread file", pread(file, to, goods[g] + PAGE, 9));
        say("  %x\n", sum(to, goods[g]));
    }
    close(file);
    answer("getrandom", getrandom(end - 100, 100 + PAGE, 0));
    int folder_of = open(folder, O_RDONLY | O_DIRECTORY);
    long total = 0, n;
    while ((n = syscall(SYS_getdents64, folder_of, end - 300, 300 + PAGE)) > 0) total += n;
    answer("getdents", n);
    say("  %ld\n", total);
    close(folder_of);
}

/* Structures and strings that end where the good part does. */
static void structures(char *end, const char *folder) {
    int len = strlen(folder) + 1;
    memcpy(end - len, folder, len);
    struct stat now;
    answer("stat", stat(end - len, &now));
    memcpy(end - 20, "/no such file, no en", 20);
    answer("stat without an end", stat(end - 20, &now));
    answer("stat to the edge", stat(folder, (void *)(end - sizeof now)));
    answer("stat over it", stat(folder, (void *)(end - sizeof now + 8)));
    struct pollfd asked[3] = {{-1}, {-1}, {0, POLLOUT}};
    memcpy(end - sizeof asked, asked, sizeof asked);
    answer("poll", poll((void *)(end - sizeof asked), 3, 0));
    answer("poll over it", poll((void *)(end - sizeof asked), 4, 0));
    struct sockaddr_un name = {.sun_family = AF_UNIX, .sun_path = "\0edges"};
    socklen_t bytes = 8;
    int fd = socket(AF_UNIX, SOCK_DGRAM, 0), other = socket(AF_UNIX, SOCK_DGRAM, 0);
    sprintf(name.sun_path + 1, "edges%d", getpid());
    bytes = 2 + 1 + strlen(name.sun_path + 1);
    memcpy(end - bytes, &name, bytes);
    answer("bind", bind(fd, (void *)(end - bytes), bytes));
    answer("bind over it", bind(other, (void *)(end - bytes), bytes + 4));
    answer("sendto", sendto(other, "abc", 3, 0, (void *)(end - bytes), bytes));
    answer("sendto over it", sendto(other, "abc", 3, 0, (void *)(end - bytes), bytes + 4));
    answer("connect", connect(other, (void *)(end - bytes), bytes));
    answer("send", send(other, end - 3, 3, 0));
    char *place = end - 8 - 40;
    socklen_t *room = (socklen_t *)(end - 200);
    *room = 120;
    /* The address is shorter than there is said to be room for. */
    ssize_t got = recvfrom(fd, place, 3, MSG_DONTWAIT, (void *)(end - 12), room);
    answer("recvfrom", got);
    if (got >= 0) say("  %d\n", *room);
    struct msghdr message = {.msg_name = end - 16, .msg_namelen = 120};
    struct iovec part = {place, 3};
    message.msg_iov = &part;
    message.msg_iovlen = 1;
    answer("recvmsg", got = recvmsg(fd, &message, MSG_DONTWAIT));
    if (got >= 0) say("  %d\n", message.msg_namelen);
    answer("getsockname", (bytes = 120, getsockname(fd, (void *)(end - 20), &bytes)));
    say("  %d %x\n", bytes > 0, sum(end - 20, 3));
    close(fd);
    close(other);
    int fds[2];
    CHECK(pipe(fds) == 0);
    struct iovec list[4] = {{"one", 3}, {"two", 3}, {"three", 5}, {"four", 4}};
    memcpy(end - sizeof list, list, sizeof list);
    answer("writev", writev(fds[1], (void *)(end - sizeof list), 4));
    answer("writev over it", writev(fds[1], (void *)(end - sizeof list), 5));
    drain("pipe", fds[0]);
    int set = epoll_create1(0);
    for (int i = 0; i < 4; i++) {
        int one[2];
        CHECK(pipe(one) == 0);
        struct epoll_event event = {EPOLLOUT | EPOLLET, {.u32 = 7}};
        CHECK(epoll_ctl(set, EPOLL_CTL_ADD, one[1], &event) == 0);
    }
    answer("epoll_wait", epoll_wait(set, (void *)(end - 2 * sizeof(struct epoll_event)), 10, 0));
    static struct epoll_event rest[10];
    answer("what is left", epoll_wait(set, rest, 10, 0));
    close(set);
    close(fds[0]);
    close(fds[1]);
    answer("getcwd", syscall(SYS_getcwd, end - 3, 100) > 0);
    answer("nanosleep", nanosleep((void *)(end - 8), NULL));
}

/* A call that waits to fill a buffer which is good in part: what another thread stores there
 * meanwhile stays, but for the few bytes that come. */
enum { PART = 3 * PAGE, COMES = 7 };
static char *shared_part;
static int waits_on, waits_way, waits_fails;

static void *waits(void *unused) {
    (void)unused;
    static char first[4];
    struct iovec parts[2] = {{first, sizeof first}, {shared_part, PART + PAGE}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    long got = 0;
    if (waits_way == 0) got = read(waits_on, shared_part, PART + PAGE);
    if (waits_way == 1) got = readv(waits_on, parts, 2);
    if (waits_way == 2) got = recv(waits_on, shared_part, PART + PAGE, 0);
    if (waits_way == 3) got = recvmsg(waits_on, &message, 0);
    if (got == -1) return (void *)(long)-errno;
    return (void *)got;
}

static void stores_of_others(void) {
    char *place = shape(0, CLOSED);
    shared_part = place + GOOD - PART;
    for (int i = 0; i < 8; i++) {
        waits_way = i % 4;
        waits_fails = i / 4;
        int fds[2];
        if (waits_way < 2) CHECK(pipe(fds) == 0);
        else CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
        waits_on = fds[0];
        memset(shared_part, 'a', PART);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, waits, NULL) == 0);
        usleep(50000);
        memset(shared_part, 'b', PART);
        if (waits_fails) close(fds[1]);
        else CHECK(write(fds[1], "zzzzzzz", COMES) == COMES);
        void *result;
        CHECK(pthread_join(thread, &result) == 0);
        CHECK((long)result == (waits_fails ? 0 : COMES));
        int came = waits_fails ? 0 : COMES - 4 * (waits_way % 2);
        for (int at = 0; at < PART; at++)
            if (shared_part[at] != (at < came ? 'z' : 'b')) {
                printf("wrong: way %d: byte %d is %c\n", i, at, shared_part[at]);
                exit(1);
            }
        if (!waits_fails) close(fds[1]);
        close(fds[0]);
    }
    munmap(place, WHOLE);
}

/* An answer says no more than what came to its place. */
enum { LONG_PART = 9 << 20, LONG = 12 << 20 };

static char *long_part(void) {
    char *place = mmap(NULL, LONG, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(place != MAP_FAILED && mprotect(place + LONG_PART, LONG - LONG_PART, PROT_NONE) == 0);
    return place;
}

static void *sends_long(void *to) {
    static char bytes[1 << 16];
    memset(bytes, 's', sizeof bytes);
    for (int sent = 0; sent < LONG; sent += sizeof bytes)
        if (send((int)(long)to, bytes, sizeof bytes, MSG_NOSIGNAL) != sizeof bytes) break;
    shutdown((int)(long)to, SHUT_WR);
    return NULL;
}

static void no_more_than_came(void) {
    for (int way = 0; way < 2; way++) {
        char *place = long_part();
        int fds[2];
        pair(1, fds);
        pthread_t thread;
        CHECK(pthread_create(&thread, NULL, sends_long, (void *)(long)fds[1]) == 0);
        struct iovec one = {place, LONG};
        struct msghdr message = {.msg_iov = &one, .msg_iovlen = 1};
        ssize_t got = way ? recvmsg(fds[0], &message, MSG_WAITALL) : recv(fds[0], place, LONG, MSG_WAITALL);
        if (got <= LONG_PART / 2 || got > LONG_PART) printf("wrong: way %d: %zd\n", way, got);
        CHECK(got > LONG_PART / 2 && got <= LONG_PART);
        for (ssize_t i = 0; i < got; i += 1000) CHECK(place[i] == 's');
        close(fds[0]);
        CHECK(pthread_join(thread, NULL) == 0);
        close(fds[1]);
        munmap(place, LONG);
    }
    char *place = shape(0, CLOSED);
    char *theirs = mmap(NULL, WHOLE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memset(theirs, 't', WHOLE);
    int ends[2];
    CHECK(pipe(ends) == 0);
    pid_t child = fork();
    if (child == 0) {
        char byte;
        close(ends[1]);
        _exit(read(ends[0], &byte, 1) != 0);
    }
    close(ends[0]);
    struct iovec ours = {place + GOOD - PART, PART + PAGE}, other = {theirs, PART + PAGE};
    ssize_t got = process_vm_readv(child, &ours, 1, &other, 1, 0);
    CHECK(got > 0 && got <= PART);
    close(ends[1]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(pipe(ends) == 0 && write(ends[1], theirs, PART + PAGE) == PART + PAGE);
    got = vmsplice(ends[0], &ours, 1, 0);
    CHECK(got > 0 && got <= PART);
    close(ends[0]);
    close(ends[1]);
    munmap(theirs, WHOLE);
    munmap(place, WHOLE);
}

/* Buffers in ordinary memory beside those of the heap are not touched for nothing. */
static void nothing_for_nothing(void) {
    char *place = shape(0, CLOSED);
    char *fresh = mmap(NULL, WHOLE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    int ends[2];
    CHECK(fresh != MAP_FAILED && pipe(ends) == 0 && fcntl(ends[0], F_SETFL, O_NONBLOCK) == 0);
    struct iovec parts[2] = {{place, 100}, {fresh, WHOLE}};
    CHECK(readv(ends[0], parts, 2) == -1 && errno == EAGAIN);
    unsigned char there[WHOLE / PAGE];
    CHECK(mincore(fresh, WHOLE, there) == 0);
    int pages = 0;
    for (int i = 0; i < WHOLE / PAGE; i++) pages += there[i] & 1;
    if (pages > 2) printf("wrong: %d pages are there\n", pages);
    CHECK(pages <= 2);
    close(ends[0]);
    close(ends[1]);
    munmap(fresh, WHOLE);
    munmap(place, WHOLE);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(300);
    signal(SIGPIPE, SIG_IGN);
    prepare(argv[2]);
    char name[300];
    sprintf(name, "%s/over", argv[1]);
    int wrong = 0;
    over = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(over >= 0);
    stores_of_others();
    no_more_than_came();
    nothing_for_nothing();
    close(over);
    for (int tail = 0; tail < TAILS; tail++) {
        over = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
        CHECK(over >= 0);
        for (int part = 0; part < 3; part++) {
            for (which = 0; which < 2; which++) {
                at_log = 0;
                char *place = shape(which == 0, tail);
                char *end = place + (tail == OTHER_FIRST ? PAGE : GOOD);
                if (which == 1) evict();
                int readable = tail == READ_ONLY || tail == FILE_OVER || tail == FILE_READ_ONLY;
                if (part == 0 && tail != OTHER_FIRST) writes(end, readable, argv[1]);
                if (part == 1 && tail != OTHER_FIRST) reads(end, argv[1]);
                if (part == 2) structures(end, argv[1]);
                munmap(place, WHOLE);
            }
            char *one = log_of[0], *other = log_of[1];
            int shown = 0;
            while (*one && *other && shown < 8) {
                size_t n = strcspn(one, "\n") + 1, m = strcspn(other, "\n") + 1;
                if (n != m || memcmp(one, other, n)) {
                    printf("wrong: %s: natively %.*s   here %.*s", tails[tail], (int)n, one, (int)m, other);
                    wrong = 1;
                    shown++;
                }
                one += n;
                other += m;
            }
        }
        close(over);
    }
    if (!wrong) puts("ok");
    return wrong;
}
