/* Every descriptor number below the limit is the program's, whatever the limit was at
 * the start: a file of its own can be put there, and be read back. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static void limit_to(rlim_t soft) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (soft > limit.rlim_max) soft = limit.rlim_max;
    limit.rlim_cur = soft;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
}

/* The limit is what the program set, and all numbers below it can be had. */
static void all(int null, int top) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == (rlim_t)top);
    for (int number = null + 1; number < top; number++) CHECK(dup2(null, number) == number);
    CHECK(dup(null) == -1 && errno == EMFILE);
    CHECK(dup2(null, top) == -1 && errno == EBADF);
    char byte;
    for (int number = null + 1; number < top; number++) {
        CHECK(read(number, &byte, 1) == 0);
        CHECK(close(number) == 0);
    }
}

int main(int argc, char **argv) {
    prepare(argv[2]);
    if (argc == 3) {
        char limits[][8] = {"256", "1024", "4096", "8192"};
        for (int i = 0; i < 4; i++) {
            pid_t child = fork();
            CHECK(child >= 0);
            if (child == 0) {
                limit_to((rlim_t)atoi(limits[i]));
                execl("/proc/self/exe", argv[0], argv[1], argv[2], limits[i], NULL);
                _exit(8);
            }
            int status;
            CHECK(waitpid(child, &status, 0) == child && status == 0);
        }
        puts("ok");
        return 0;
    }
    int top = atoi(argv[3]);
    int null = open("/dev/null", O_RDWR);
    CHECK(null > 2 && null < 20);
    /* A hard limit as low as that leaves no place above it. */
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    if (limit.rlim_max < 8192) return 0;
    /* A number of ours may lie here where the limit was this high at the start. */
    if (top < 3072) all(null, top);
    evict();
    limit_to(200);
    all(null, 200);
    limit_to(1024);
    all(null, 1024);
    evict();
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        evict();
        all(null, 1024);
        evict();
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    evict();
    return 0;
}
