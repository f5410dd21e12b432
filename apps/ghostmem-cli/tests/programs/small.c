/* What a process has that asked for little so far: "tasks N maps N files N", and
 * then, with an argument, what it has after that happened. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static int entries(const char *path) {
    DIR *folder = opendir(path);
    int count = 0;
    while (readdir(folder)) count++;
    closedir(folder);
    return count - 2;
}

/* Megabytes of address space. */
static long mapped(void) {
    long pages = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (fscanf(file, "%ld", &pages) != 1) exit(9);
    fclose(file);
    return pages >> 8;
}

/* The engine's reservations are gigabytes. */
static int has_heap(void) { return mapped() > 2048; }

static void say(const char *when) {
    printf("%s: %s, %d task%s\n", when, has_heap() ? "heap" : "no heap", entries("/proc/self/task"),
           entries("/proc/self/task") > 1 ? "s" : "");
    fflush(stdout);
}

static void *nothing(void *argument) { return argument; }

static volatile sig_atomic_t handled;
static char *from_handler;

/* Asks for much, on a small stack, with its signal blocked. */
static void handler(int signal) {
    handled = signal;
    for (int block = 0; block < 64; block++) from_handler = malloc(60000);
    memset(from_handler, 1, 60000);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "";
    say("start");
    if (strcmp(what, "much") == 0) {
        for (int block = 0; block < 300; block++) memset(malloc(4000), 1, 4000);
    } else if (strcmp(what, "large") == 0) {
        memset(malloc(8 << 20), 1, 8 << 20);
    } else if (strcmp(what, "thread") == 0) {
        pthread_t thread;
        if (pthread_create(&thread, 0, nothing, 0) || pthread_join(thread, 0)) return 2;
    } else if (strcmp(what, "limit") == 0) {
        struct rlimit limit;
        getrlimit(RLIMIT_NOFILE, &limit);
        if (has_heap()) return 3;
        limit.rlim_cur = 16;
        if (setrlimit(RLIMIT_NOFILE, &limit)) return 4;
    } else if (strcmp(what, "filter") == 0) {
        /* No such request: the rules stay. */
        if (prctl(PR_SET_SECCOMP, 77, 0, 0, 0) == 0) return 5;
    } else if (strcmp(what, "fork") == 0 || strcmp(what, "rawfork") == 0) {
        int child = strcmp(what, "fork") ? syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0) : fork();
        if (child == 0) {
            say("child");
            memset(malloc(8 << 20), 1, 8 << 20);
            say("child");
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) return 6;
    } else if (strcmp(what, "vfork") == 0) {
        char *volatile block = 0;
        int child = vfork();
        if (child == 0) {
            block = malloc(8 << 20);
            _exit(block == 0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) return 7;
        memset(block, 1, 8 << 20);
        say("after vfork");
        free(block);
        memset(malloc(8 << 20), 1, 8 << 20);
    } else if (strcmp(what, "handler") == 0) {
        static char stack[16384];
        stack_t alternate = {.ss_sp = stack, .ss_size = sizeof stack}, now;
        struct sigaction action = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
        if (sigaltstack(&alternate, 0) || sigaction(SIGSEGV, &action, 0)) return 8;
        raise(SIGSEGV);
        memset(malloc(8 << 20), 1, 8 << 20);
        say("later");
        /* What it set before is still its own, and its handler runs again. */
        if (sigaltstack(0, &now) || now.ss_sp != stack || now.ss_flags) return 10;
        struct sigaction set;
        if (sigaction(SIGSEGV, 0, &set) || set.sa_handler != handler) return 11;
        handled = 0;
        raise(SIGSEGV);
        if (handled != SIGSEGV) return 12;
    } else if (strcmp(what, "blocked") == 0) {
        sigset_t set, now;
        sigfillset(&set);
        sigprocmask(SIG_BLOCK, &set, 0);
        memset(malloc(8 << 20), 1, 8 << 20);
        if (sigprocmask(SIG_BLOCK, 0, &now) || !sigismember(&now, SIGSEGV)) return 13;
    } else if (strcmp(what, "addresses") == 0) {
        char *bad = (char *)8, *words[] = {"x", bad, 0};
        errno = 0;
        if (execve(bad, words, words) != -1 || errno != EFAULT) return 14;
        if (execve("/bin/true", words, words) != -1 || errno != EFAULT) return 15;
        if (execve("/bin/true", (char **)bad, words) != -1 || errno != EFAULT) return 16;
    }
    say("end");
    return 0;
}
