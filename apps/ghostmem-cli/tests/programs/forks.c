/* Forks of a program with threads. Around the system call libc touches what it
 * allocated (open files, the name service, the loader's lists, the locale);
 * memory that is pushed out all the time, and must be there. */
#define _GNU_SOURCE
#include <linux/sched.h>
#include <locale.h>
#include <pthread.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define FORKS 48
#define FILES 50
#define BYTES (6u << 20)

static unsigned char *big;
static volatile int stop;
static FILE *files[FILES];

static unsigned char at(size_t i) { return (unsigned char)(i * 7 + (i >> 12)); }

static int all_there(void) {
    for (size_t i = 0; i < BYTES; i += 512) if (big[i] != at(i)) return 0;
    return 1;
}

/* Everything resident, by the kernel's count. */
static long resident_kib(void) {
    char text[8192];
    FILE *status = fopen("/proc/self/status", "r");
    size_t got = status ? fread(text, 1, sizeof text - 1, status) : 0;
    if (status) fclose(status);
    text[got] = 0;
    char *line = strstr(text, "VmRSS:");
    return line ? atol(line + 6) : 0;
}

static void *churn(void *unused) {
    (void)unused;
    unsigned seed = 1;
    while (!stop) {
        size_t i = rand_r(&seed) % BYTES;
        if (big[i] != at(i)) { puts("wrong: seen by a thread"); exit(1); }
    }
    return NULL;
}

static void *in_child(void *unused) { (void)unused; return all_there() ? big : NULL; }

/* A child without libc's knowing, in which no handlers run. */
static pid_t raw_fork(int way) {
    if (way == 0) return syscall(SYS_clone, SIGCHLD, NULL, NULL, NULL, NULL);
    if (way == 1) return syscall(SYS_fork);
    struct clone_args *args = calloc(1, 5000);
    args->exit_signal = SIGCHLD;
    pid_t pid = syscall(SYS_clone3, args, sizeof *args);
    free(args);
    return pid;
}

static int raw_child(void) {
    if (!all_there()) return 6;
    memset(big, 1, BYTES / 2);
    pid_t pid = fork();
    if (pid == 0) _exit(big[0] == 1 && big[BYTES - 512] == at(BYTES - 512) ? 0 : 7);
    int status = 0;
    if (pid < 0 || waitpid(pid, &status, 0) != pid) return 8;
    return WEXITSTATUS(status) | (WIFSIGNALED(status) ? 9 : 0);
}

static long parent_kib;

static int child(void) {
    char line[100];
    void *answer = NULL;
    pthread_t thread;
    for (int i = 0; i < FILES; i++) if (!fgets(line, sizeof line, files[i])) return 2;
    if (!getpwuid(0)) return 3;
    /* It has no background thread: its limit is kept all the same. */
    for (int i = 0; i < 3; i++) {
        for (size_t k = 0; k < BYTES; k += 4096) big[k] = at(k);
        if (!all_there()) return 4;
    }
    if (resident_kib() > parent_kib + 1024) return 8;
    if (pthread_create(&thread, NULL, in_child, NULL) || pthread_join(thread, &answer) || !answer) return 5;
    /* A child of the child's. */
    pid_t pid = fork();
    if (pid == 0) _exit(all_there() ? 0 : 1);
    int status = 0;
    if (waitpid(pid, &status, 0) != pid || status != 0) return 6;
    return strcmp(setlocale(LC_ALL, NULL), "C.UTF-8") == 0 ? 0 : 7;
}

int main(void) {
    if (!setlocale(LC_ALL, "C.UTF-8") || !getpwuid(0)) { puts("wrong: no locale or no root"); return 1; }
    for (int i = 0; i < FILES; i++) {
        /* Each on pages of its own. */
        if (!malloc(5000) || !(files[i] = fopen("/proc/self/maps", "r")) || fgetc(files[i]) == EOF) return 1;
    }
    big = malloc(BYTES);
    for (size_t i = 0; i < BYTES; i++) big[i] = at(i);
    pthread_t thread;
    if (pthread_create(&thread, NULL, churn, NULL)) return 1;
    for (int i = 0; i < FORKS; i++) {
        if (!all_there()) { puts("wrong: in the parent"); return 1; }
        parent_kib = resident_kib();
        int raw = i % 4 < 3;
        pid_t pid = raw ? raw_fork(i % 4) : fork();
        if (pid == 0) { alarm(60); _exit(raw ? raw_child() : child()); }
        int status = 0;
        if (pid < 0 || waitpid(pid, &status, 0) != pid || status != 0) {
            printf("wrong: child %d ended with status %x\n", i, status);
            return 1;
        }
    }
    stop = 1;
    pthread_join(thread, NULL);
    puts("ok");
    return 0;
}
