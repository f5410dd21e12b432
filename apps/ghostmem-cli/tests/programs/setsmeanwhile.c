/* A thread sets the limit on open files while others fork under a low one: what it sets stays,
 * and is the children's from then on, and every child comes to be. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LEAST = 20, MOST = 50, ROUNDS = 150, CHILDREN = 2 };
static int is_over;

static int soft(void) {
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    return limit.rlim_cur;
}

static void *sets(void *unused) {
    (void)unused;
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (int i = 0; !__atomic_load_n(&is_over, __ATOMIC_RELAXED); i++) {
        limit.rlim_cur = LEAST + i % (MOST - LEAST);
        CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
        for (int times = 0; times < 20; times++) {
            int is = soft();
            if (is != (int)limit.rlim_cur) printf("wrong: set to %d, and is %d\n", (int)limit.rlim_cur, is);
            CHECK(is == (int)limit.rlim_cur);
        }
        /* The kernel's refusals are the answers. */
        struct rlimit wrong = {30, 29}, is;
        CHECK(setrlimit(RLIMIT_NOFILE, &wrong) == -1 && errno == EINVAL);
        CHECK(prlimit(0, RLIMIT_NOFILE, &limit, &is) == 0 && is.rlim_cur == limit.rlim_cur && is.rlim_max == limit.rlim_max);
    }
    return NULL;
}

static void *forks(void *unused) {
    (void)unused;
    for (int i = 0; i < ROUNDS; i++) {
        pid_t child = fork();
        if (child == 0) {
            pressure[4096 * (i % 100)]++;
            int is = soft();
            _exit(is < LEAST || is >= MOST);
        }
        if (child < 0) printf("wrong: no child in round %d: errno %d\n", i, errno);
        int status;
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        if (status) printf("wrong: child of round %d: %x\n", i, status);
        CHECK(status == 0);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(250);
    struct rlimit limit;
    CHECK(getrlimit(RLIMIT_NOFILE, &limit) == 0);
    limit.rlim_cur = MOST - 1;
    CHECK(setrlimit(RLIMIT_NOFILE, &limit) == 0);
    prepare(argv[2]);
    evict();
    pthread_t threads[CHILDREN + 1];
    for (int i = 0; i <= CHILDREN; i++) CHECK(pthread_create(&threads[i], NULL, i == CHILDREN ? sets : forks, NULL) == 0);
    for (int i = 0; i <= CHILDREN; i++) {
        if (i == CHILDREN) __atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
        CHECK(pthread_join(threads[i], NULL) == 0);
    }
    int is = soft();
    CHECK(is >= LEAST && is < MOST);
    puts("ok");
    return 0;
}
