/* System calls with ghost buffers, through libc's own insides and directly,
 * each after its buffers were pushed out of memory. Run with a small limit. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/utsname.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s (errno %d)\n", __LINE__, #what, errno); exit(1); } } while (0)

static char *pressure;
static size_t pressure_bytes;
/* Pushes everything else out: touches more than the limit. */
static void evict(void) {
    for (int round = 0; round < 3; round++)
        for (size_t at = 0; at < pressure_bytes; at += 4096) pressure[at] += (char)at + 1;
}
static void *ghost(size_t bytes) {
    /* Blocks of their own pages, so that nothing else keeps them warm. */
    char *p = malloc(bytes < 40000 ? 40000 : bytes);
    CHECK(p);
    memset(p, 0, bytes);
    return p;
}
static char *ghost_text(const char *text) {
    return strcpy(ghost(strlen(text) + 1), text);
}

static void files(const char *folder) {
    char *path = ghost(4096);
    snprintf(path, 4096, "%s/a file", folder);
    evict();
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(fd >= 0);
    size_t bytes = 3 << 20;
    unsigned char *out = ghost(bytes), *in = ghost(bytes);
    for (size_t i = 0; i < bytes; i++) out[i] = (unsigned char)(i * 31 + i / 4096);
    evict();
    CHECK(write(fd, out, bytes) == (ssize_t)bytes);
    evict();
    CHECK(pread(fd, in, bytes, 0) == (ssize_t)bytes);
    CHECK(memcmp(in, out, bytes) == 0);
    memset(in, 0, bytes);
    CHECK(lseek(fd, 0, SEEK_SET) == 0);
    evict();
    struct iovec *v = ghost(sizeof *v * 3);
    v[0] = (struct iovec){in, 1000};
    v[1] = (struct iovec){in + 1000, bytes / 2};
    v[2] = (struct iovec){in + 1000 + bytes / 2, bytes - bytes / 2 - 1000};
    evict();
    CHECK(readv(fd, v, 3) == (ssize_t)bytes && memcmp(in, out, bytes) == 0);
    evict();
    CHECK(pwritev(fd, v, 3, 4096) == (ssize_t)bytes);
    memset(in, 0, bytes);
    evict();
    CHECK(pread(fd, in, bytes, 4096) == (ssize_t)bytes && memcmp(in, out, bytes) == 0);
    CHECK(pread(fd, in, bytes, bytes) == 4096);
    struct stat *st = ghost(sizeof *st);
    evict();
    CHECK(fstat(fd, st) == 0 && st->st_size == (off_t)(bytes + 4096));
    evict();
    CHECK(stat(path, st) == 0 && st->st_size == (off_t)(bytes + 4096));
    struct statfs *fs = ghost(sizeof *fs);
    evict();
    CHECK(statfs(path, fs) == 0 && fs->f_bsize > 0);
    char *other = ghost(4096);
    snprintf(other, 4096, "%s/another", folder);
    evict();
    CHECK(rename(path, other) == 0);
    char *link = ghost(4096);
    snprintf(link, 4096, "%s/link", folder);
    evict();
    CHECK(symlink(other, link) == 0);
    char *target = ghost(4096);
    evict();
    CHECK(readlink(link, target, 4096) == (ssize_t)strlen(other) && strcmp(target, other) == 0);
    char *cwd = ghost(4096);
    evict();
    CHECK(chdir(folder) == 0 && getcwd(cwd, 4096) == cwd && strcmp(cwd, folder) == 0);

    /* stdio: its buffers and its system calls are libc's own. */
    evict();
    FILE *f = fopen("lines", "w+");
    CHECK(f);
    char *big = ghost(1 << 20);
    memset(big, 'x', (1 << 20) - 1);
    evict();
    fprintf(f, "%s\n", big);
    for (int i = 0; i < 20000; i++) { fprintf(f, "line %d\n", i); if (i % 4000 == 0) evict(); }
    CHECK(fflush(f) == 0);
    rewind(f);
    char *line = NULL;
    size_t room = 0;
    CHECK(getline(&line, &room, f) == 1 << 20);
    for (int i = 0; i < 20000; i++) {
        char want[32];
        snprintf(want, sizeof want, "line %d\n", i);
        CHECK(getline(&line, &room, f) == (ssize_t)strlen(want) && strcmp(line, want) == 0);
        if (i % 4000 == 0) evict();
    }
    free(line);
    rewind(f);
    memset(big, 0, 1 << 20);
    evict();
    CHECK(fread(big, 1, 1 << 20, f) == 1 << 20 && big[12345] == 'x');
    fclose(f);
    DIR *d = opendir(folder);
    CHECK(d);
    int found = 0;
    for (struct dirent *e; evict(), (e = readdir(d));) found += e->d_name[0] != '.';
    CHECK(found == 3);
    closedir(d);
    CHECK(unlink("lines") == 0 && unlink(link) == 0);
    evict();
    CHECK(unlink(other) == 0);
    close(fd);
}

static void sockets(void) {
    int *pair = ghost(8);
    evict();
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    char *out = ghost(60000), *in = ghost(60000);
    memset(out, 'q', 60000);
    evict();
    CHECK(send(pair[0], out, 60000, 0) == 60000);
    evict();
    CHECK(recv(pair[1], in, 60000, MSG_WAITALL) == 60000 && memcmp(in, out, 60000) == 0);
    struct msghdr *m = ghost(sizeof *m);
    struct iovec *v = ghost(sizeof *v * 2);
    v[0] = (struct iovec){out, 100}; v[1] = (struct iovec){out + 200, 300};
    m->msg_iov = v; m->msg_iovlen = 2;
    char *control = ghost(CMSG_SPACE(4));
    m->msg_control = control; m->msg_controllen = CMSG_SPACE(4);
    struct cmsghdr *c = CMSG_FIRSTHDR(m);
    c->cmsg_level = SOL_SOCKET; c->cmsg_type = SCM_RIGHTS; c->cmsg_len = CMSG_LEN(4);
    memcpy(CMSG_DATA(c), &pair[0], 4);
    evict();
    CHECK(sendmsg(pair[0], m, 0) == 400);
    memset(control, 0, CMSG_SPACE(4));
    v[0].iov_base = in; v[1].iov_base = in + 100; memset(in, 0, 400);
    evict();
    CHECK(recvmsg(pair[1], m, 0) == 400 && memcmp(in, out, 400) == 0);
    c = CMSG_FIRSTHDR(m);
    CHECK(c && c->cmsg_type == SCM_RIGHTS);
    int passed; memcpy(&passed, CMSG_DATA(c), 4);
    CHECK(fcntl(passed, F_GETFD) >= 0);
    close(passed);

    /* A datagram is gone after a failed receive: the first must succeed. */
    struct sockaddr_in *a = ghost(sizeof *a);
    a->sin_family = AF_INET; a->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_DGRAM, 0), t = socket(AF_INET, SOCK_DGRAM, 0);
    evict();
    CHECK(bind(s, (struct sockaddr *)a, sizeof *a) == 0);
    socklen_t *n = ghost(sizeof *n);
    *n = sizeof *a;
    evict();
    CHECK(getsockname(s, (struct sockaddr *)a, n) == 0 && a->sin_port != 0);
    evict();
    CHECK(sendto(t, out, 5000, 0, (struct sockaddr *)a, sizeof *a) == 5000);
    *n = sizeof *a; memset(in, 0, 5000);
    struct sockaddr_in *from = ghost(sizeof *from);
    evict();
    CHECK(recvfrom(s, in, 60000, 0, (struct sockaddr *)from, n) == 5000);
    CHECK(memcmp(in, out, 5000) == 0 && from->sin_family == AF_INET && *n == sizeof *from);
    struct mmsghdr *many = ghost(sizeof *many * 2);
    for (int i = 0; i < 2; i++) {
        many[i].msg_hdr.msg_name = a; many[i].msg_hdr.msg_namelen = sizeof *a;
        many[i].msg_hdr.msg_iov = &v[i]; many[i].msg_hdr.msg_iovlen = 1;
        v[i] = (struct iovec){out, 100 + i};
    }
    evict();
    CHECK(sendmmsg(t, many, 2, 0) == 2 && many[1].msg_len == 101);
    for (int i = 0; i < 2; i++) { v[i] = (struct iovec){in + i * 1000, 1000}; many[i].msg_len = 0; many[i].msg_hdr.msg_name = NULL; many[i].msg_hdr.msg_namelen = 0; }
    evict();
    CHECK(recvmmsg(s, many, 2, 0, NULL) == 2 && many[0].msg_len == 100 && many[1].msg_len == 101);
    int *value = ghost(4); *n = 4;
    evict();
    CHECK(getsockopt(s, SOL_SOCKET, SO_TYPE, value, n) == 0 && *value == SOCK_DGRAM);
    close(s); close(t);

    struct pollfd *p = ghost(sizeof *p * 2);
    p[0] = (struct pollfd){pair[0], POLLIN, 0}; p[1] = (struct pollfd){pair[1], POLLOUT, 0};
    evict();
    CHECK(poll(p, 2, 1000) == 1 && p[1].revents == POLLOUT && p[0].revents == 0);
    struct timespec *ts = ghost(sizeof *ts); ts->tv_sec = 1;
    evict();
    CHECK(ppoll(p, 2, ts, NULL) == 1);
    fd_set *set = ghost(sizeof *set); FD_ZERO(set); FD_SET(pair[1], set);
    struct timeval *tv = ghost(sizeof *tv); tv->tv_sec = 1;
    evict();
    CHECK(select(pair[1] + 1, NULL, set, NULL, tv) == 1 && FD_ISSET(pair[1], set));
    evict();
    CHECK(pselect(pair[1] + 1, NULL, set, NULL, ts, NULL) == 1);
    int ep = epoll_create1(0);
    struct epoll_event *e = ghost(sizeof *e * 8);
    e->events = EPOLLOUT; e->data.u64 = 0x1234567890;
    evict();
    CHECK(epoll_ctl(ep, EPOLL_CTL_ADD, pair[1], e) == 0);
    memset(e, 0, sizeof *e * 8);
    evict();
    CHECK(epoll_wait(ep, e, 8, 1000) == 1 && e->data.u64 == 0x1234567890);
    close(ep);
    /* An eventfd's count is gone after a failed read. */
    int ev = eventfd(5, 0);
    uint64_t *count = ghost(8);
    evict();
    CHECK(read(ev, count, 8) == 8 && *count == 5);
    close(ev);
    int *fds = ghost(8);
    evict();
    CHECK(pipe(fds) == 0);
    int *ready = ghost(4);
    evict();
    CHECK(write(fds[1], out, 123) == 123 && ioctl(fds[0], FIONREAD, ready) == 0 && *ready == 123);
    close(fds[0]); close(fds[1]); close(pair[0]); close(pair[1]);
}

static void clocks_and_others(void) {
    struct timespec *ts = ghost(sizeof *ts);
    evict();
    CHECK(clock_gettime(CLOCK_MONOTONIC, ts) == 0 && ts->tv_nsec < 1000000000);
    evict();
    CHECK(syscall(SYS_clock_gettime, CLOCK_REALTIME, ts) == 0 && ts->tv_sec > 1000000000);
    ts->tv_sec = 0; ts->tv_nsec = 1000;
    evict();
    CHECK(nanosleep(ts, NULL) == 0);
    evict();
    CHECK(clock_nanosleep(CLOCK_MONOTONIC, 0, ts, NULL) == 0);
    struct utsname *u = ghost(sizeof *u);
    evict();
    CHECK(uname(u) == 0 && strcmp(u->sysname, "Linux") == 0);
    struct rlimit *r = ghost(sizeof *r);
    evict();
    CHECK(getrlimit(RLIMIT_NOFILE, r) == 0 && r->rlim_cur > 0);
    struct rusage *ru = ghost(sizeof *ru);
    evict();
    CHECK(getrusage(RUSAGE_SELF, ru) == 0 && ru->ru_maxrss > 0);
    unsigned char *random = ghost(100000);
    evict();
    CHECK(getrandom(random, 256, 0) == 256);
    int nonzero = 0;
    for (int i = 0; i < 256; i++) nonzero += random[i] != 0;
    CHECK(nonzero > 200);
    sigset_t *set = ghost(sizeof *set), *old = ghost(sizeof *old);
    sigfillset(set);
    evict();
    CHECK(sigprocmask(SIG_BLOCK, set, old) == 0 && !sigismember(old, SIGBUS));
    evict();
    CHECK(sigprocmask(SIG_SETMASK, old, set) == 0 && sigismember(set, SIGBUS) && sigismember(set, SIGUSR1));
    struct sigaction *sa = ghost(sizeof *sa);
    evict();
    CHECK(sigaction(SIGBUS, NULL, sa) == 0 && sa->sa_handler == SIG_DFL);
    struct timespec *far = ghost(sizeof *far);
    unsigned *word = ghost(4);
    *word = 7; far->tv_nsec = 1000000;
    evict();
    CHECK(syscall(SYS_futex, word, 0, 7, far, NULL, 0) == -1 && errno == ETIMEDOUT);
    evict();
    CHECK(syscall(SYS_futex, word, 0, 8, far, NULL, 0) == -1 && errno == EAGAIN);
    /* A call that is in nobody's list. */
    int *cpu = ghost(4);
    *cpu = -1;
    evict();
    CHECK(syscall(SYS_getcpu, cpu, NULL, NULL) == 0 && *cpu >= 0);
    CHECK(madvise((void *)(((size_t)random + 4095) & ~4095ul), 8192, MADV_DONTNEED) == 0);
    for (int i = 0; i < 4096; i++) CHECK(((unsigned char *)(((size_t)random + 4095) & ~4095ul))[i] == 0);
}

static void children(void) {
    /* A parent's status is gone after a failed wait. */
    int *status = ghost(4);
    struct rusage *ru = ghost(sizeof *ru);
    pid_t pid = fork();
    if (pid == 0) { evict(); _exit(33); }
    evict();
    CHECK(wait4(pid, status, 0, ru) == pid && WIFEXITED(*status) && WEXITSTATUS(*status) == 33);
    char **argv = ghost(sizeof *argv * 4), **envp = ghost(sizeof *envp * 3);
    argv[0] = ghost_text("sh"); argv[1] = ghost_text("-c");
    argv[2] = ghost_text("test \"$WORD\" = 'from ghost memory' && exit 9"); argv[3] = NULL;
    envp[0] = ghost_text("WORD=from ghost memory"); envp[1] = ghost_text("PATH=/usr/bin:/bin"); envp[2] = NULL;
    char *path = ghost_text("/bin/sh");
    evict();
    CHECK(posix_spawn(&pid, path, NULL, NULL, argv, envp) == 0);
    CHECK(waitpid(pid, status, 0) == pid && WEXITSTATUS(*status) == 9);
    evict();
    pid = vfork();
    if (pid == 0) { execve(path, argv, envp); _exit(1); }
    CHECK(waitpid(pid, status, 0) == pid && WEXITSTATUS(*status) == 9);
    evict();
    CHECK(WEXITSTATUS(system("exit 5")) == 5);
    evict();
    FILE *p = popen("echo piped", "r");
    char *word = ghost(100);
    CHECK(p && fgets(word, 100, p) && strcmp(word, "piped\n") == 0 && pclose(p) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    pressure_bytes = (size_t)atol(argv[2]);
    pressure = malloc(pressure_bytes);
    CHECK(pressure);
    files(argv[1]);
    sockets();
    clocks_and_others();
    children();
    printf("ok\n");
    return 0;
}
