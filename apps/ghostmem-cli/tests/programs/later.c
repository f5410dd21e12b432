/* What the kernel reads and writes by itself, when nobody calls it: the number of a thread
 * made by hand, which it clears at the thread's end; the line of arguments in /proc; the word
 * of a lock. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <linux/futex.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static char stack[1 << 16] __attribute__((aligned(64)));
static int go;

static int works(void *told) {
    while (!__atomic_load_n(&go, __ATOMIC_SEQ_CST)) usleep(1000);
    __atomic_store_n((int *)told, 7, __ATOMIC_SEQ_CST);
    syscall(SYS_exit, 0);
    return 0;
}

static void threads(void) {
    for (int round = 0; round < 4; round++) {
        int *number = round % 2 ? malloc(4) : ghost(4), *told = ghost(4);
        const int flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM
            | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        *number = 1;
        evict();
        go = 0;
        CHECK(clone(works, stack + sizeof stack, flags, told, 0, 0, number) > 0);
        evict();
        __atomic_store_n(&go, 1, __ATOMIC_SEQ_CST);
        /* Who joins waits for it: natively at once. */
        struct timespec limit = {20, 0};
        for (int value; (value = __atomic_load_n(number, __ATOMIC_SEQ_CST)) != 0;)
            CHECK(syscall(SYS_futex, number, FUTEX_WAIT, value, &limit, 0, 0) == 0 || errno == EAGAIN);
        CHECK(*told == 7);
        free(number);
    }
}

/* What others see in /proc. */
static void see(const char *what) {
    char line[64] = {0};
    int file = open("/proc/self/cmdline", O_RDONLY);
    CHECK(file >= 0 && read(file, line, sizeof line - 1) == (ssize_t)strlen(what) + 1);
    CHECK(strcmp(line, what) == 0);
    close(file);
}

static void lines(void) {
    /* What is not to change is as it was. */
    unsigned long of[60] = {0};
    char stat[2000] = {0};
    int file = open("/proc/self/stat", O_RDONLY);
    CHECK(file >= 0 && read(file, stat, sizeof stat - 1) > 0);
    close(file);
    int field = 2;
    for (char *word = strtok(strrchr(stat, ')') + 2, " "); word; word = strtok(0, " ")) of[++field] = strtoul(word, 0, 10);
    char *title = ghost(64);
    strcpy(title, "a name of its own");
    struct prctl_mm_map *map = ghost(sizeof *map);
    *map = (struct prctl_mm_map){
        .start_code = of[26], .end_code = of[27], .start_stack = of[28], .start_data = of[45], .end_data = of[46],
        .start_brk = of[47], .brk = (size_t)sbrk(0), .arg_start = (size_t)title,
        .arg_end = (size_t)title + strlen(title) + 1, .env_start = of[50], .env_end = of[51], .exe_fd = -1};
    evict();
    if (prctl(PR_SET_MM, PR_SET_MM_MAP, map, sizeof *map, 0) != 0) {
        CHECK(errno == EPERM || errno == EINVAL);
        printf("SKIPPED: the kernel takes no map of a process's memory\n");
        return;
    }
    evict();
    see("a name of its own");
    memcpy(title, "A NAME", 6);
    evict();
    see("A NAME of its own");
}

/* A word that the kernel changes when a lock is taken and given back. */
static void locked(void) {
    int *word = ghost(4);
    for (int round = 0; round < 3; round++) {
        evict();
        CHECK(syscall(SYS_futex, word, FUTEX_LOCK_PI | FUTEX_PRIVATE_FLAG, 0, 0, 0, 0) == 0);
        CHECK((*word & FUTEX_TID_MASK) == syscall(SYS_gettid));
        evict();
        CHECK(syscall(SYS_futex, word, FUTEX_UNLOCK_PI | FUTEX_PRIVATE_FLAG, 0, 0, 0, 0) == 0 && *word == 0);
        evict();
        CHECK(syscall(SYS_futex, word, FUTEX_WAKE_OP | FUTEX_PRIVATE_FLAG, 1, 1, word, FUTEX_OP(FUTEX_OP_ADD, 3, FUTEX_OP_CMP_EQ, 0)) == 0);
        CHECK(*word == 3);
        *word = 0;
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    threads();
    lines();
    locked();
    printf("ok\n");
    return 0;
}
