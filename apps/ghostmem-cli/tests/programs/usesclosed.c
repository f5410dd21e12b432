/* Numbers that are not the program's are closed to calls that use them, wait for them or send
 * them on: nothing is read from what is behind them, and nothing written to it. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

enum { NUMBERS = 4200 };
static int pair[2], pipes[2], null, set, highest;

#define CLOSED(call) do { errno = 0; if ((call) != -1 || errno != EBADF) { printf("wrong: %d is open to %s (errno %d)\n", fd, #call, errno); exit(1); } } while (0)

static int selected(int fd, fd_set *bits, int which, int is_new) {
    struct timespec none = {0, 0};
    struct timeval no_time = {0, 0};
    memset(bits, 0, NUMBERS / 8 + 64);
    ((char *)bits)[fd / 8] |= 1 << fd % 8;
    fd_set *sets[3] = {NULL, NULL, NULL};
    sets[which] = bits;
    return is_new ? syscall(SYS_pselect6, fd + 1, sets[0], sets[1], sets[2], &none, NULL) : syscall(SYS_select, fd + 1, sets[0], sets[1], sets[2], &no_time);
}

/* A message with a number, behind another piece of control data. */
static int sends(int fd, char *place, int many) {
    memset(place, 0, 4096);
    struct iovec *part = (void *)place;
    *part = (struct iovec){"x", 1};
    char *control = place + 512;
    struct cmsghdr *one = (void *)control;
    *one = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(one), &null, sizeof null);
    struct cmsghdr *other = (void *)(control + CMSG_SPACE(sizeof(int)));
    *other = (struct cmsghdr){.cmsg_len = CMSG_LEN(2 * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    int both[2] = {null, fd};
    memcpy(CMSG_DATA(other), both, sizeof both);
    struct mmsghdr *list = (void *)(place + 1024);
    list[0].msg_hdr = list[1].msg_hdr = (struct msghdr){.msg_iov = part, .msg_iovlen = 1};
    struct msghdr *it = &list[many == 2].msg_hdr;
    it->msg_control = control, it->msg_controllen = CMSG_SPACE(sizeof(int)) + CMSG_SPACE(2 * sizeof(int));
    return many ? sendmmsg(pair[0], list, 2, 0) : sendmsg(pair[0], it, 0);
}

static void all_are_closed(void) {
    static char on_data[8192];
    char *in_the_heap = aligned_alloc(4096, 40960);
    int closed = 0, open = 0;
    struct iovec part;
    struct epoll_event event = {.events = EPOLLIN};
    for (int fd = 3; fd < NUMBERS; fd++) {
        if (fcntl(fd, F_GETFD) != -1) {
            open++;
            continue;
        }
        closed++;
        for (int place = 0; place < 2; place++) {
            char *block = place ? in_the_heap : on_data;
            part = (struct iovec){block, 8};
            for (int which = 0; which < 3; which++) {
                CLOSED(selected(fd, (void *)block, which, 0));
                CLOSED(selected(fd, (void *)block, which, 1));
            }
            CLOSED(readv(fd, &part, 1));
            CLOSED(writev(fd, &part, 1));
            CLOSED(preadv(fd, &part, 1, 0));
            CLOSED(pwritev(fd, &part, 1, 0));
            CLOSED(fstat(fd, (void *)block));
            CLOSED(fstatfs(fd, (void *)block));
            CLOSED(fcntl(fd, F_GETFL));
            CLOSED(fcntl(fd, F_DUPFD, 0));
            CLOSED(fcntl(fd, F_DUPFD_CLOEXEC, 0));
            CLOSED(fcntl(fd, F_SETFD, 0));
            CLOSED(fcntl(fd, F_GETLK, block));
            memcpy(block, &event, sizeof event);
            CLOSED(epoll_ctl(set, EPOLL_CTL_ADD, fd, (void *)block));
            CLOSED(epoll_ctl(fd, EPOLL_CTL_ADD, null, (void *)block));
            CLOSED(epoll_ctl(set, EPOLL_CTL_DEL, fd, NULL));
            CLOSED(sends(fd, block, 0));
            CLOSED(sends(fd, block, 1));
            CHECK(sends(fd, block, 2) == 1);
            CHECK(recv(pair[1], block, 8, MSG_DONTWAIT) == 1);
            CHECK(recv(pair[1], block, 8, MSG_DONTWAIT) == -1 && errno == EAGAIN);
            /* From 3072 on, whatever the memory is. */
            if (fd < 3072 && !place) continue;
            memset(block, 0, 8);
            CLOSED(recv(fd, block, 8, MSG_DONTWAIT));
            CLOSED(send(fd, block, 8, MSG_DONTWAIT));
            CLOSED(read(fd, block, 8));
            CLOSED(write(fd, block, 8));
            CLOSED(pread(fd, block, 8, 0));
            CLOSED(pwrite(fd, block, 8, 0));
        }
        CLOSED(sendfile(fd, null, NULL, 1));
        CLOSED(sendfile(pair[0], fd, NULL, 1));
        CLOSED(splice(fd, NULL, pipes[1], NULL, 1, SPLICE_F_NONBLOCK));
        CLOSED(copy_file_range(fd, NULL, null, NULL, 1, 0));
        CLOSED((long)mmap(NULL, 4096, PROT_READ, MAP_PRIVATE, fd, 0));
    }
    CHECK(closed > 4000 && open < 25);
    /* The program's own are open. */
    char *block = in_the_heap;
    CHECK(write(highest, block, 8) == 8 && read(highest, block, 8) == 0 && epoll_ctl(set, EPOLL_CTL_ADD, pair[1], &event) == 0);
    CHECK(epoll_ctl(set, EPOLL_CTL_DEL, pair[1], NULL) == 0 && sends(highest, block, 0) == 1 && recv(pair[1], block, 8, 0) == 1);
    CHECK(selected(highest, (void *)block, 1, 0) == 1 && selected(highest, (void *)block, 1, 1) == 1);
    free(in_the_heap);
}

/* Numbers that the table has no room for are not looked at. */
static void beyond_the_table(void) {
    char *bits = calloc(1, NUMBERS / 8 + 64), *same = malloc(NUMBERS / 8 + 64);
    for (int fd = 1100; fd < NUMBERS; fd++) bits[fd / 8] |= 1 << fd % 8;
    memcpy(same, bits, NUMBERS / 8 + 64);
    struct timeval none = {0, 0};
    CHECK(syscall(SYS_select, NUMBERS, bits, NULL, NULL, &none) == 0 && memcmp(bits, same, NUMBERS / 8 + 64) == 0);
    free(bits), free(same);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < NUMBERS + 10) {
        limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= NUMBERS + 10);
    }
    prepare(argv[2]);
    null = open("/dev/null", O_RDWR), set = epoll_create1(0);
    CHECK(null >= 0 && set >= 0 && pipe(pipes) == 0 && socketpair(AF_UNIX, SOCK_DGRAM, 0, pair) == 0);
    beyond_the_table();
    evict();
    beyond_the_table();
    /* The kernel's table has room for all of them, natively, too. */
    highest = dup2(null, NUMBERS + 1);
    CHECK(highest == NUMBERS + 1);
    all_are_closed();
    evict();
    all_are_closed();
    puts("ok");
    return 0;
}
