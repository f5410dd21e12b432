/* Numbers that are not the program's are open to none of its calls, before it has a heap and
 * with one. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { NUMBERS = 4200 };
static struct pollfd asked[NUMBERS];

static void all_are_closed(void) {
    int closed = 0, open = 0;
    struct pollfd *in_the_heap = malloc(sizeof asked);
    for (int fd = 0; fd < NUMBERS; fd++) {
        struct stat about;
        int flags, spare = fd == 150 ? 151 : 150;
        struct pollfd one = {.fd = fd, .events = POLLIN};
        asked[fd] = in_the_heap[fd] = one;
        if (fcntl(fd, F_GETFD) != -1) {
            open++;
            CHECK(fstat(fd, &about) == 0 && poll(&one, 1, 0) >= 0 && !(one.revents & POLLNVAL));
            continue;
        }
        closed++;
        CHECK(errno == EBADF);
        CHECK(fstat(fd, &about) == -1 && errno == EBADF);
        CHECK(lseek(fd, 0, SEEK_CUR) == -1 && errno == EBADF);
        CHECK(ioctl(fd, FIONREAD, &flags) == -1 && errno == EBADF);
        CHECK(!isatty(fd) && errno == EBADF);
        CHECK(dup(fd) == -1 && errno == EBADF);
        CHECK(dup2(fd, spare) == -1 && errno == EBADF);
        CHECK(dup2(fd, fd) == -1 && errno == EBADF);
        CHECK(dup3(fd, spare, O_CLOEXEC) == -1 && errno == EBADF);
        CHECK(poll(&one, 1, 0) == 1 && one.revents == POLLNVAL && one.fd == fd);
        one.revents = 0;
        CHECK(ppoll(&one, 1, NULL, NULL) == 1 && one.revents == POLLNVAL && one.fd == fd);
    }
    CHECK(poll(asked, NUMBERS, 0) >= closed && poll(in_the_heap, NUMBERS, 0) >= closed);
    for (int fd = 0; fd < NUMBERS; fd++) {
        CHECK(asked[fd].fd == fd && in_the_heap[fd].fd == fd && in_the_heap[fd].events == POLLIN);
        int is_open = fcntl(fd, F_GETFD) != -1;
        CHECK(!(asked[fd].revents & POLLNVAL) == is_open && !(in_the_heap[fd].revents & POLLNVAL) == is_open);
    }
    CHECK(open < 20);
    free(in_the_heap);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < NUMBERS) {
        /* poll(2) looks at no more. */
        limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= NUMBERS);
    }
    all_are_closed();
    prepare(argv[2]);
    evict();
    all_are_closed();
    puts("ok");
    return 0;
}
