/* A handler that comes in the midst of malloc, free and realloc of large and small blocks, and
 * makes a child: by fork(3), _Fork(3) where there is one, and the system calls. The process has
 * one thread of its own. Parent and child find all they had, the child goes on in malloc when
 * its handler returns, and nobody waits for ever. With "small" blocks are small, and libc's where
 * the command line says so: there a child may be refused. With "early" the handler is set before
 * there is a heap, by a constructor. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

enum { BLOCKS = 40, BYTES = 50000, FORKS = 160 };
static unsigned char *blocks[BLOCKS];
static volatile int forks, refused, may_be_refused, is_child;
static const char *volatile wrong;
static int (*short_fork)(void);

static int all_there(void) {
    for (int i = 0; i < BLOCKS; i++)
        for (int at = 0; at < BYTES; at += 1000)
            if (blocks[i][at] != (unsigned char)(i * 3 + at / 1000)) return 0;
    return 1;
}

static int make_child(int way) {
    if (way == 0 || (way == 1 && !short_fork)) return fork();
    if (way == 1) return short_fork();
    if (way == 2) return syscall(SYS_fork);
    return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void on_tick(int signal) {
    (void)signal;
    if (is_child || forks >= FORKS) return;
    int before = errno;
    int way = forks++ % 4;
    int child = make_child(way);
    if (child == 0) {
        is_child = 1;
        /* Every second one ends here, the others where they were interrupted. */
        if (forks % 8 < 4) _exit(all_there() ? 7 : 8);
        alarm(60);
    } else if (child < 0) {
        refused++;
        if (!may_be_refused || errno != EAGAIN) wrong = "no child";
    } else {
        int status = 0;
        if (waitpid(child, &status, 0) != child) wrong = "no status";
        else if (!WIFEXITED(status) || WEXITSTATUS(status) != 7) {
            printf("wrong: way %d, a child's status is %#x\n", way, status);
            wrong = "a child";
        }
    }
    errno = before;
}

/* What a child does that goes on: the heap works as before. */
static void end_child(void **kept) {
    for (int i = 0; i < 50; i++) {
        free(kept[i]);
        kept[i] = malloc(i % 2 ? 100 : 60000);
        if (!kept[i]) _exit(9);
        memset(kept[i], i, i % 2 ? 100 : 60000);
    }
    _exit(all_there() ? 7 : 8);
}

static void set_handler(void) {
    struct sigaction tick = {0};
    tick.sa_handler = on_tick;
    tick.sa_flags = SA_RESTART;
    CHECK(sigaction(SIGPROF, &tick, NULL) == 0);
}

static int is_early(int argc, char **argv) { return argc > 3 && strcmp(argv[3], "early") == 0; }

__attribute__((constructor)) static void before_main(int argc, char **argv) {
    if (is_early(argc, argv)) set_handler();
}

int main(int argc, char **argv) {
    CHECK(argc >= 3);
    may_be_refused = argc > 3 && !is_early(argc, argv);
    alarm(500);
    short_fork = dlsym(RTLD_DEFAULT, "_Fork");
    prepare(argv[2]);
    for (int i = 0; i < BLOCKS; i++) {
        blocks[i] = malloc(BYTES);
        for (int at = 0; at < BYTES; at += 1000) blocks[i][at] = i * 3 + at / 1000;
    }
    evict();
    CHECK(all_there());
    if (!is_early(argc, argv)) set_handler();
    struct itimerval often = {{0, 1500}, {0, 1500}}, never = {{0, 0}, {0, 0}};
    CHECK(setitimer(ITIMER_PROF, &often, NULL) == 0);
    void *kept[50] = {0};
    for (long i = 0; forks < FORKS && !wrong; i++) {
        int which = i % 50;
        if (may_be_refused) {
            free(kept[which]);
            kept[which] = malloc(1 + i * 7919 % 30000);
        } else if (i % 3) {
            free(kept[which]);
            kept[which] = malloc(i % 5 ? 200000 + i * 977 % 300000 : 1 + i * 7919 % 3000);
        } else {
            kept[which] = realloc(kept[which], 100000 + i * 7919 % 400000);
        }
        CHECK(kept[which]);
        if (i % 7 == 0 && !may_be_refused) {
            char *mapped = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            CHECK(mapped != MAP_FAILED);
            mapped[5000] = 1;
            CHECK(munmap(mapped, 1 << 20) == 0);
        }
        if (is_child) end_child(kept);
    }
    CHECK(setitimer(ITIMER_PROF, &never, NULL) == 0);
    if (is_child) end_child(kept);
    if (wrong) printf("wrong: %s, errno %d\n", wrong, errno);
    CHECK(!wrong && all_there() && refused < FORKS);
    puts("ok");
    return 0;
}
