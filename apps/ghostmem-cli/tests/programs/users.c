// A service changes its user and groups while its threads wait for pages: libc makes such calls
// on each thread of the process, those of the engine among them, by a signal of its own.
//   users FILE    FILE is written, and stands for /etc/group where that can be done
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#define BYTES (8 << 20)
#define GROUPS 20000
#define WALKERS 3

static volatile int over;
static int wrong;

// Its pages leave and come back all the time, and it computes with them.
static void *walk(void *nothing) {
    unsigned char *bytes = calloc(1, BYTES);
    for (unsigned char round = 0; !over; round++) {
        for (size_t at = 0; at < BYTES; at += 4096) {
            if (bytes[at]++ != round) {
                __atomic_store_n(&wrong, 1, __ATOMIC_RELAXED);
            }
        }
    }
    return NULL;
}

// Many groups for root, in a name space of this thread's own; whether it could be done.
static int has_groups(const char *path) {
    FILE *file = fopen(path, "w");
    fprintf(file, "root:x:0:\n");
    for (int i = 1; i < GROUPS; i++) {
        fprintf(file, "group%d:x:%d:root\n", i, 100000 + i);
    }
    return fclose(file) == 0 && unshare(CLONE_NEWNS) == 0 &&
           mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0 &&
           mount(path, "/etc/group", NULL, MS_BIND, NULL) == 0;
}

static int works(int root, int groups) {
    if (seteuid(geteuid()) != 0 || setegid(getegid()) != 0) {
        printf("seteuid, setegid: %s\n", strerror(errno));
        return 0;
    }
    if (!root) {
        return 1;
    }
    if (initgroups("root", 0) != 0) {
        printf("initgroups: %s\n", strerror(errno));
        return 0;
    }
    int got = getgroups(0, NULL);
    if (groups && got != GROUPS) {
        printf("initgroups set %d groups\n", got);
        return 0;
    }
    gid_t list[] = {0, 100, 200};
    if (setgroups(3, list) != 0 || getgroups(0, NULL) != 3) {
        printf("setgroups: %s\n", strerror(errno));
        return 0;
    }
    return 1;
}

int main(int count, char **words) {
    int root = geteuid() == 0;
    int groups = root && has_groups(words[1]);
    pthread_t walkers[WALKERS];
    for (int i = 0; i < WALKERS; i++) {
        pthread_create(&walkers[i], NULL, walk, NULL);
    }
    int right = 1;
    for (int round = 0; round < 40 && right; round++) {
        right = works(root, groups);
    }
    over = 1;
    for (int i = 0; i < WALKERS; i++) {
        pthread_join(walkers[i], NULL);
    }
    if (wrong) {
        puts("a thread found other bytes than it wrote");
    }
    if (right && !wrong) {
        puts("ok");
    }
    return !right || wrong;
}
