/* Lengths that are errors, or end beyond all memory that there can be. Each call is made with
 * memory of the kernel's alone (shared, which stays ordinary) and with heap memory; answers,
 * and what files and sockets have afterwards, are compared. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { PAGE = 4096, GOOD = 64 * PAGE };

static char log_of[2][1 << 18];
static int which;
static size_t at_log;

static void say(const char *format, ...) {
    va_list more;
    va_start(more, format);
    at_log += vsnprintf(log_of[which] + at_log, sizeof *log_of - at_log, format, more);
    va_end(more);
    CHECK(at_log < sizeof *log_of - 200);
}

/* Memory that ends where nothing is. */
static char *shape(int ordinary) {
    int flags = ordinary ? MAP_SHARED : MAP_PRIVATE;
    char *p = mmap(NULL, 2 * GOOD, PROT_READ | PROT_WRITE, flags | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    for (int i = 0; i < GOOD; i++) p[i] = i * 7 + i / PAGE;
    CHECK(munmap(p + GOOD, GOOD) == 0);
    return p;
}

static unsigned sum(const void *place, size_t bytes) {
    const unsigned char *p = place;
    unsigned s = 7;
    while (bytes--) s = s * 31 + *p++;
    return s;
}

static int file, ends[2], sides[2];

/* Everything afresh: a file of three pages, read up to its middle, a pipe and sockets with some
 * bytes. */
static void afresh(void) {
    static char some[3 * PAGE];
    for (unsigned i = 0; i < sizeof some; i++) some[i] = 'a' + i % 26;
    file = open("toolong.bin", O_CREAT | O_TRUNC | O_RDWR, 0600);
    CHECK(file >= 0 && write(file, some, sizeof some) == sizeof some && lseek(file, 5000, SEEK_SET) == 5000);
    CHECK(pipe2(ends, O_NONBLOCK) == 0 && write(ends[1], some, 1000) == 1000);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, sides) == 0 && write(sides[0], some, 1000) == 1000);
}

/* What a call answered, what it left, and the end of everything. */
static void done(const char *what, long length, long answer, char *block) {
    static char rest[1 << 20];
    say("%s %lx: %ld, errno %d; ", what, length, answer, answer < 0 ? errno : 0);
    say("file %ld at %ld, ", (long)lseek(file, 0, SEEK_END), (long)lseek(file, 0, SEEK_CUR));
    struct stat stat;
    CHECK(fstat(file, &stat) == 0);
    say("%ld bytes, pipe %zd, ", (long)stat.st_size, read(ends[0], rest, sizeof rest));
    say("here %zd, there %zd, ", recv(sides[0], rest, sizeof rest, 0), recv(sides[1], rest, sizeof rest, 0));
    say("block %x\n", sum(block, GOOD));
    close(file), close(ends[0]), close(ends[1]), close(sides[0]), close(sides[1]);
}

#define TRY(call) do { char *b = shape(which == 0); afresh(); evict(); errno = 0; long r = (call); \
    done(#call, n, r, b); munmap(b, GOOD); } while (0)

/* Two buffers in a list, and a message of them. */
static struct iovec *two(char *base, size_t bytes, char *other, size_t more) {
    static struct iovec list[2];
    list[0] = (struct iovec){base, bytes};
    list[1] = (struct iovec){other, more};
    return list;
}

/* The same in a given place. */
static struct iovec *fill(struct iovec *list, char *base, size_t bytes) {
    list[0] = (struct iovec){base + PAGE, 20};
    list[1] = (struct iovec){base, bytes};
    return list;
}

static struct msghdr *of(struct iovec *vectors, int count) {
    static struct msghdr message;
    message = (struct msghdr){.msg_iov = vectors, .msg_iovlen = count};
    return &message;
}

static void lengths(long n) {
    TRY(write(file, b, n));
    TRY(write(-1, b, n));
    TRY(write(ends[0], b, n));
    TRY(write(ends[1], b, n));
    TRY(pwrite(file, b, n, 0));
    TRY(pwrite(file, b, n, -1));
    TRY(pwrite(ends[1], b, n, 0));
    TRY(read(file, b, n));
    TRY(read(-1, b, n));
    TRY(read(ends[0], b, n));
    TRY(read(ends[1], b, n));
    TRY(read(sides[1], b, n));
    TRY(pread(file, b, n, 100));
    TRY(pread(file, b, n, -1));
    TRY(readv(file, two(b, n, b, 10), 2));
    TRY(readv(file, two(b, 10, b, n), 2));
    TRY(readv(ends[0], two(b, 10, b, n), 2));
    TRY(readv(-1, two(b, 10, b, n), 2));
    TRY(writev(file, two(b, n, b, 10), 2));
    TRY(writev(file, two(b, 10, b, n), 2));
    TRY(writev(ends[1], two(b, 10, b, n), 2));
    TRY(pwritev(file, two(b, 10, b, n), 2, 50));
    TRY(preadv2(file, two(b, 10, b, n), 2, 50, 0));
    TRY(sendmsg(sides[0], of(two(b, 10, b, n), 2), 0));
    TRY(sendmsg(-1, of(two(b, 10, b, n), 2), 0));
    TRY(recvmsg(sides[1], of(two(b, 10, b, n), 2), 0));
    TRY(vmsplice(ends[1], two(b, 10, b, n), 2, 0));
    for (int i = 0; i < 2; i++) {
        struct iovec bad[2], good[2];
        TRY(process_vm_readv(getpid(), i ? fill(good, b, 10) : fill(bad, b, n), 2, i ? fill(bad, b, n) : fill(good, b, 10), 2, 0));
    }
    if (n < 0) {
        TRY(readv(file, two(b, n, b, 10), 1));
        TRY(writev(file, two(b, n, b, 10), 1));
        TRY(sendmsg(sides[0], of(two(b, n, b, 10), 1), 0));
    }
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    prepare("4000000");
    for (which = 0; which < 2; which++) {
        at_log = 0;
        lengths(-1);
        lengths(LONG_MIN);
        lengths(LONG_MAX);
        lengths(LONG_MAX - (1l << 47));
        lengths(1l << 56);
        /* As much as every process may have memory from first to last. */
        lengths(1l << 47);
    }
    char *one = log_of[0], *other = log_of[1];
    while (*one && *other) {
        char *end = strchr(one, '\n'), *its = strchr(other, '\n');
        CHECK(end && its);
        *end = *its = 0;
        if (strcmp(one, other)) {
            printf("wrong:\nthe kernel's: %s\nours:         %s\n", one, other);
            return 1;
        }
        one = end + 1, other = its + 1;
    }
    CHECK(*one == *other);
    puts("ok");
    return 0;
}
