/* Addresses that the kernel would refuse: EFAULT, and nobody's handler runs. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static volatile int handled;
static void handler(int signal) { handled++; signal = 0; }

#define REFUSED(call) do { errno = 0; long r_ = (long)(call); if (r_ != -1 || errno != EFAULT) { printf("wrong: line %d, address %p: %s = %ld (errno %d)\n", __LINE__, bad, #call, r_, errno); exit(1); } } while (0)

/* A buffer that can be written in part: what a read cannot give stays where it is. */
static void in_part(const char *folder) {
    const size_t page = 4096, good = 3 * page;
    char path[300], *data = ghost(20 * page);
    snprintf(path, sizeof path, "%s/in-part", folder);
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600), fds[2];
    CHECK(file >= 0 && write(file, data, 20 * page) == 20 * (ssize_t)page && pipe(fds) == 0);
    for (int access = PROT_NONE; access <= PROT_READ; access++) {
        char *p = ghost(16 * page);
        memset(p, 9, 16 * page);
        CHECK(mprotect(p + good, page, access) == 0);
        evict();
        CHECK(lseek(file, 0, SEEK_SET) == 0 && read(file, p, 8 * page) == (ssize_t)good);
        CHECK(lseek(file, 0, SEEK_CUR) == (off_t)good && p[good - 1] == 0);
        CHECK(read(file, p + good, 10) == -1 && errno == EFAULT && lseek(file, 0, SEEK_CUR) == (off_t)good);
        struct iovec v[3] = {{p, 100}, {p + good - 50, 100}, {p + 200, 100}};
        CHECK(lseek(file, 0, SEEK_SET) == 0 && readv(file, v, 3) == 150 && lseek(file, 0, SEEK_CUR) == 150);
        CHECK(pread(file, p + good - 7, 100, 0) == 7);
        CHECK(write(fds[1], "beginning", 9) == 9);
        CHECK(read(fds[0], p + good, 9) == -1 && errno == EFAULT);
        CHECK(read(fds[0], p, 9) == 9 && memcmp(p, "beginning", 9) == 0);
        CHECK(mprotect(p + good, page, PROT_READ | PROT_WRITE) == 0);
        CHECK(pread(file, p, 8 * page, 0) == 8 * (ssize_t)page && p[good] == 0);
        free(p);
    }
    close(file); close(fds[0]); close(fds[1]);
    unlink(path);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    in_part(argv[1]);
    struct sigaction action = {.sa_handler = handler, .sa_flags = SA_NODEFER};
    CHECK(sigaction(SIGSEGV, &action, 0) == 0 && sigaction(SIGBUS, &action, 0) == 0);
    char *gone = malloc(9 << 20), *closed = aligned_alloc(4096, 1 << 20), *good = ghost(8192);
    memset(gone, 1, 9 << 20);
    memset(closed, 1, 1 << 20);
    free(gone);
    CHECK(mprotect(closed, 1 << 20, PROT_NONE) == 0);
    int fds[2], pair[2];
    CHECK(pipe(fds) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    char *bads[] = {(char *)0x1000, (char *)0xffff800000000000, (char *)0x8000000000000000, (char *)0x7000000000f0, gone + (4 << 20), closed + 4096};
    /* A monitor ends the process for a page of no block, whoever touches it. */
    const char *backend = getenv("BACKEND");
    for (unsigned i = 0; i < sizeof bads / sizeof *bads; i++) {
        char *bad = bads[i];
        if (i == 4 && backend && strcmp(backend, "monitor") == 0) continue;
        evict();
        struct iovec *v = ghost(sizeof *v * 2);
        v[0] = (struct iovec){bad, 100};
        v[1] = (struct iovec){bad, 100};
        REFUSED(syscall(SYS_writev, fds[1], v, 2));
        REFUSED(syscall(SYS_writev, fds[1], bad, 2));
        REFUSED(syscall(SYS_readv, fds[0], bad, 2));
        struct msghdr *m = ghost(sizeof *m);
        m->msg_iov = v; m->msg_iovlen = 2;
        REFUSED(syscall(SYS_sendmsg, pair[0], m, MSG_DONTWAIT));
        REFUSED(syscall(SYS_sendmsg, pair[0], bad, MSG_DONTWAIT));
        m->msg_iov = (void *)bad;
        REFUSED(syscall(SYS_sendmsg, pair[0], m, MSG_DONTWAIT));
        REFUSED(syscall(SYS_recvmmsg, pair[1], bad, 2, MSG_DONTWAIT, 0));
        REFUSED(syscall(SYS_write, fds[1], bad, 100));
        REFUSED(syscall(SYS_open, bad, O_RDONLY));
        REFUSED(syscall(SYS_stat, bad, good));
        REFUSED(syscall(SYS_stat, "/", bad));
        REFUSED(syscall(SYS_execve, bad, 0, 0));
        REFUSED(syscall(SYS_execve, "/bin/true", bad, 0));
        REFUSED(syscall(SYS_execve, "/bin/true", (char *[]){bad, 0}, 0));
        REFUSED(syscall(SYS_rt_sigprocmask, SIG_BLOCK, bad, 0, 8));
        REFUSED(syscall(SYS_rt_sigprocmask, SIG_BLOCK, 0, bad, 8));
        REFUSED(syscall(SYS_rt_sigaction, SIGUSR1, bad, 0, 8));
        REFUSED(syscall(SYS_rt_sigaction, SIGSEGV, 0, bad, 8));
        REFUSED(syscall(SYS_sigaltstack, bad, 0));
        REFUSED(syscall(SYS_poll, bad, 2, 0));
        REFUSED(syscall(SYS_ppoll, good, 0, bad, 0, 8));
        REFUSED(syscall(SYS_ppoll, 0, 0, 0, bad, 8));
        REFUSED(syscall(SYS_select, 64, bad, 0, 0, 0));
        REFUSED(syscall(SYS_pselect6, 0, 0, 0, 0, 0, bad));
        REFUSED(syscall(SYS_nanosleep, bad, 0));
        REFUSED(syscall(SYS_futex, bad, 0, 1, 0, 0, 0));
        REFUSED(syscall(SYS_clock_gettime, CLOCK_MONOTONIC, bad));
        REFUSED(syscall(SYS_pipe, bad));
        REFUSED(syscall(SYS_bind, pair[0], bad, 20));
        REFUSED(syscall(SYS_connect, pair[0], bad, 20));
        REFUSED(syscall(SYS_setsockopt, pair[0], SOL_SOCKET, SO_RCVTIMEO, bad, 16));
        REFUSED(syscall(SYS_ioctl, fds[0], 0x541b, bad));
        CHECK(handled == 0);
    }
    /* What is there before a bad address is still sent. */
    CHECK(mprotect(closed, 1 << 20, PROT_READ | PROT_WRITE) == 0 && closed[5000] == 1);
    CHECK(write(fds[1], closed + 100, 3000) == 3000);
    printf("ok\n");
    return 0;
}
