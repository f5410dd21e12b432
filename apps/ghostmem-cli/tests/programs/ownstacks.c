/* Children on stacks from malloc: by clone and clone3, with their own memory and
 * with the parent's. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char *data;
static volatile int shared;

static int child(void *argument) {
    volatile char deep[6000];
    for (unsigned i = 0; i < sizeof deep; i += 64) deep[i] = (char)i;
    for (int i = 0; i < 1 << 20; i += 4096) if (data[i] != (char)(i >> 12)) return 2;
    char *more = malloc(200000);
    if (!more) return 3;
    memset(more, 1, 200000);
    free(more);
    for (unsigned i = 0; i < sizeof deep; i += 64) if (deep[i] != (char)i) return 4;
    shared = *(int *)argument;
    return shared;
}

static int looks(void *argument) {
    volatile char deep[6000];
    for (unsigned i = 0; i < sizeof deep; i += 64) deep[i] = (char)i;
    for (int i = 0; i < 1 << 20; i += 4096) if (data[i] != (char)(i >> 12)) return 2;
    shared = *(int *)argument;
    return shared;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    data = ghost(1 << 20);
    for (int i = 0; i < 1 << 20; i += 4096) data[i] = (char)(i >> 12);
    int *number = ghost(4), status;
    for (int round = 0; round < 6; round++) {
        size_t bytes = round % 2 ? 30000 : 1 << 17;
        char *stack = malloc(bytes);
        char *top = (char *)((size_t)(stack + bytes) & ~63ul);
        *number = 10 + round;
        shared = 0;
        evict();
        pid_t pid = clone(child, top, SIGCHLD, number);
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 10 + round) { printf("wrong: round %d: %x\n", round, status); return 1; }
        CHECK(shared == 0);
        pid_t *place = ghost(4);
        evict();
        pid = clone(looks, top, CLONE_VM | CLONE_PARENT_SETTID | SIGCHLD, number, place);
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && *place == pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 10 + round) { printf("wrong: shared, round %d: %x\n", round, status); return 1; }
        CHECK(shared == 10 + round);
        free(stack);
        /* A raw call, on this stack. */
        struct clone_args *a = ghost(sizeof *a);
        a->exit_signal = SIGCHLD;
        a->flags = CLONE_PARENT_SETTID;
        a->parent_tid = (size_t)place;
        *place = 0;
        evict();
        pid = (pid_t)syscall(SYS_clone3, a, sizeof *a);
        if (pid == 0) _exit(data[70 << 12] == 70 ? 5 : 6);
        CHECK(pid > 0 && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 5 && *place == pid);
        /* One that is to have a number: that of the one before, which is free. */
        pid_t *chosen = ghost(4);
        *chosen = pid;
        a->set_tid = (size_t)chosen;
        a->set_tid_size = 1;
        evict();
        pid = (pid_t)syscall(SYS_clone3, a, sizeof *a);
        if (pid == 0) _exit(data[70 << 12] == 70 ? 5 : 6);
        if (pid < 0) { CHECK(errno == EPERM || errno == EEXIST); continue; }
        CHECK(pid == *chosen && waitpid(pid, &status, 0) == pid && WEXITSTATUS(status) == 5);
    }
    printf("ok\n");
    return 0;
}
