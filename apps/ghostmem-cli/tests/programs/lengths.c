/* Lengths that say more than there is, or what no length is: the kernel looks at as much as
 * it uses, and refuses the rest. What a call is given lies at the end of what can be read. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <sched.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/msg.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/xattr.h>
#include <unistd.h>

#define PAGE 4096ul
#define FAILS(call, errno_wanted) do { errno = 0; CHECK((call) == -1 && errno == (errno_wanted)); } while (0)

/* The last bytes before what cannot be read. */
static char *last(size_t bytes) {
    char *block = ghost(16 * PAGE);
    CHECK(mprotect(block + 8 * PAGE, PAGE, PROT_NONE) == 0);
    return block + 8 * PAGE - bytes;
}

/* As many numbers as a process may have, and sets of the usual length. */
static void sets(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = limit.rlim_max < 60000 ? limit.rlim_max : 60000;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    int fds[2];
    CHECK(pipe(fds) == 0 && write(fds[1], "x", 1) == 1);
    for (int way = 0; way < 2; way++) {
        fd_set *reads = (fd_set *)last(sizeof *reads), *writes = (fd_set *)last(sizeof *writes);
        FD_ZERO(reads);
        FD_ZERO(writes);
        FD_SET(fds[0], reads);
        FD_SET(fds[1], reads);
        FD_SET(fds[1], writes);
        evict();
        struct timeval *usual = ghost(sizeof *usual);
        struct timespec *exact = ghost(sizeof *exact);
        int count = getdtablesize();
        CHECK((way ? pselect(count, reads, writes, 0, exact, 0) : select(count, reads, writes, 0, usual)) == 2);
        CHECK(FD_ISSET(fds[0], reads) && !FD_ISSET(fds[1], reads) && FD_ISSET(fds[1], writes));
        evict();
        FAILS(syscall(way ? SYS_pselect6 : SYS_select, -1, reads, 0, 0, 0, 0), EINVAL);
    }
    /* What lies behind a set on the stack is no part of it. */
    for (int way = 0; way < 2; way++) {
        struct { fd_set set; unsigned char behind[1024]; } box;
        memset(&box, 0xff, sizeof box);
        FD_ZERO(&box.set);
        FD_SET(fds[0], &box.set);
        struct timeval usual = {0, 0};
        struct timespec exact = {0, 0};
        int count = getdtablesize();
        CHECK((way ? pselect(count, &box.set, 0, 0, &exact, 0) : select(count, &box.set, 0, 0, &usual)) == 1);
        CHECK(FD_ISSET(fds[0], &box.set));
        for (unsigned i = 0; i < sizeof box.behind; i++) CHECK(box.behind[i] == 0xff);
    }
    /* A descriptor beyond them, and sets that have room for it. */
    for (int way = 0; way < 2; way++) {
        struct timeval *usual = ghost(sizeof *usual);
        struct timespec *exact = ghost(sizeof *exact);
        int high = dup2(fds[0], 3000), count = getdtablesize();
        CHECK(high == 3000);
        fd_set *many = ghost(8000);
        for (int i = 0; i < 8000 / (int)sizeof *many; i++) FD_ZERO(many + i);
        ((char *)many)[high / 8] = 1 << high % 8;
        evict();
        CHECK((way ? pselect(count, many, 0, 0, exact, 0) : select(count, many, 0, 0, usual)) == 1);
        CHECK(((char *)many)[high / 8] == 1 << high % 8);
        close(high);
    }
    close(fds[0]); close(fds[1]);
}

/* What the kernel writes of a socket's address, whatever room it is told of. */
static void addresses(void) {
    int listens = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof at;
    CHECK(bind(listens, (void *)&at, bytes) == 0 && listen(listens, 8) == 0);
    CHECK(getsockname(listens, (void *)&at, &bytes) == 0);
    const unsigned rooms[] = {16, 4, 200, 1 << 20, 0x7ffe1234, -5u};
    for (unsigned i = 0; i < sizeof rooms / sizeof *rooms; i++) {
        int connects = socket(AF_INET, SOCK_STREAM, 0);
        CHECK(connect(connects, (void *)&at, sizeof at) == 0);
        socklen_t *room = ghost(sizeof *room);
        char *address = last(16);
        int few = rooms[i] == 4, none = (int)rooms[i] < 0;
        for (int which = 0; which < 3; which++) {
            memset(address, 0x55, 16);
            *room = rooms[i];
            evict();
            errno = 0;
            int done = which == 0 ? accept(listens, (void *)address, room)
                : which == 1 ? getpeername(connects, (void *)address, room)
                : getsockname(connects, (void *)address, room);
            if (none) { CHECK(done == -1 && errno == EINVAL && address[4] == 0x55); continue; }
            CHECK(done >= 0 && *room == 16 && address[few ? 0 : 4] == (few ? AF_INET : 127));
            if (few) CHECK(address[4] == 0x55);
            if (which == 0) close(done);
        }
        evict();
        FAILS(bind(connects, (void *)address, -1), EINVAL);
        FAILS(bind(connects, (void *)address, 129), EINVAL);
        FAILS(connect(connects, (void *)address, 1 << 30), EINVAL);
        close(connects);
    }
    close(listens);
}

/* Numbers that are an int to the kernel. */
static void numbers(const char *folder) {
    char *room = ghost(4096);
    int set = epoll_create1(0), event = eventfd(1, 0);
    struct epoll_event wanted = {.events = EPOLLIN};
    CHECK(epoll_ctl(set, EPOLL_CTL_ADD, event, &wanted) == 0);
    evict();
    FAILS(epoll_wait(set, (void *)room, -1, 0), EINVAL);
    FAILS(syscall(SYS_epoll_pwait, set, room, -1, 0, 0, 8), EINVAL);
    CHECK(epoll_wait(set, (void *)room, 300, 0) == 1);
    FAILS(syscall(SYS_readlink, "/proc/self/exe", room, -1), EINVAL);
    FAILS(syscall(SYS_readlinkat, AT_FDCWD, "/proc/self/exe", room, -7), EINVAL);
    FAILS(syscall(SYS_getgroups, -1, room), EINVAL);
    FAILS(syscall(SYS_setgroups, -1, room), EINVAL);
    FAILS(syscall(SYS_sethostname, room, -1), EINVAL);
    FAILS(syscall(SYS_syslog, 3, room, -1), EINVAL);
    FAILS(setxattr(folder, "user.long", room, 1ul << 40, 0), E2BIG);
    int queue = msgget(IPC_PRIVATE, 0600);
    CHECK(queue >= 0);
    *(long *)room = 1;
    evict();
    FAILS(msgsnd(queue, room, -1, 0), EINVAL);
    CHECK(msgctl(queue, IPC_RMID, 0) == 0);
    /* A set of processors is as long as it is. */
    cpu_set_t all;
    CHECK(sched_getaffinity(0, sizeof all, &all) == 0);
    memcpy(room, &all, sizeof all);
    evict();
    CHECK(syscall(SYS_sched_setaffinity, 0, 1ul << 31, room) == 0);
    close(set); close(event);
}

/* A name may fill its room to the last byte. */
static void names(void) {
    char *name = last(16), *got = last(16);
    memset(name, 'n', 16);
    evict();
    CHECK(prctl(PR_SET_NAME, name) == 0);
    evict();
    CHECK(prctl(PR_GET_NAME, got) == 0 && memcmp(got, "nnnnnnnnnnnnnnn", 16) == 0);
    FAILS(prctl(PR_SET_NAME, name + 16), EFAULT);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    sets();
    addresses();
    numbers(argv[1]);
    names();
    printf("ok\n");
    return 0;
}
