/* Descriptors of the program's with high numbers, on a table that a child shares (CLONE_FILES
 * without CLONE_VM): they are as open as others, in both, and are closed when they are closed. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { KINDS = 6, FIRST = 3500, TOP = 4090 };
static const char *folder;
static int go[2], came[2];

static int open_one(int kind) {
    char name[300];
    int pair[2];
    switch (kind) {
    case 0: return open("/dev/null", O_RDWR);
    case 1:
        snprintf(name, sizeof name, "%s/ownhigh.txt", folder);
        return open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    case 2: return eventfd(0, 0);
    case 3: return open(folder, O_RDONLY | O_DIRECTORY);
    case 4: return epoll_create1(0);
    default:
        CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
        close(pair[1]);
        return pair[0];
    }
}

static int is_listed(int number) {
    DIR *all = opendir("/proc/self/fd");
    int found = 0;
    CHECK(all);
    for (struct dirent *one; (one = readdir(all));) found |= one->d_name[0] != '.' && atoi(one->d_name) == number;
    closedir(all);
    return found;
}

static void uses(int number, int kind) {
    struct stat about;
    struct pollfd one = {.fd = number, .events = POLLIN};
    int flags;
    if (fcntl(number, F_GETFD) < 0) printf("wrong: a number of kind %d looks closed\n", kind);
    CHECK((flags = fcntl(number, F_GETFD)) >= 0 && fcntl(number, F_SETFD, flags) == 0);
    CHECK(fstat(number, &about) == 0 && poll(&one, 1, 0) >= 0 && !(one.revents & POLLNVAL));
    int copy = dup(number);
    CHECK(copy >= 0 && close(copy) == 0);
    CHECK(is_listed(number));
    if (kind == 0) {
        char byte;
        CHECK(write(number, "abc", 3) == 3 && read(number, &byte, 1) == 0);
    }
    if (kind == 1) {
        char text[8] = "";
        CHECK(pwrite(number, "abc", 3, 0) == 3 && pread(number, text, 8, 0) == 3 && !strcmp(text, "abc"));
    }
}

static void all(int first) {
    for (int kind = 0; kind < KINDS; kind++) {
        int low = open_one(kind), number = first + kind;
        CHECK(low >= 0 && low < 1000 && dup2(low, number) == number && close(low) == 0);
        uses(number, kind);
        /* Put over it, and closed in two ways. */
        CHECK(dup2(go[0], number) == number);
        CHECK(kind % 2 ? close(number) == 0 : close_range(number, number, 0) == 0);
        CHECK(fcntl(number, F_GETFD) == -1 && errno == EBADF && !is_listed(number));
    }
}

static int child(void *unused) {
    (void)unused;
    char byte;
    evict();
    all(FIRST + 50);
    evict();
    CHECK(write(came[1], "a", 1) == 1 && read(go[0], &byte, 1) == 1);
    return 7;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(100);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_cur < TOP) {
        limit.rlim_cur = limit.rlim_max < 8192 ? limit.rlim_max : 8192;
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur >= TOP);
    }
    folder = argv[1];
    prepare("6000000");
    CHECK(pipe(go) == 0 && pipe(came) == 0);
    evict();
    all(FIRST);
    char *stack = mmap(NULL, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
    CHECK(stack != MAP_FAILED);
    pid_t pid = clone(child, stack + (1 << 17), CLONE_FILES | SIGCHLD, NULL);
    char byte;
    CHECK(pid > 0 && read(came[0], &byte, 1) == 1);
    evict();
    all(FIRST);
    CHECK(write(go[1], "b", 1) == 1);
    int status;
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 7);
    all(FIRST);
    evict();
    puts("ok");
    return 0;
}
