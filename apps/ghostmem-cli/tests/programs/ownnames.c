/* A program with functions of its own by names of libc's: nobody but it calls them, and what
 * they do has nothing to do with what libc's do. */
#define _GNU_SOURCE
#include <stdarg.h>
#include <stddef.h>

int printf(const char *, ...);
int puts(const char *);
void *malloc(size_t);
void *aligned_alloc(size_t, size_t);
void free(void *);
long atol(const char *);
int fork(void);
void _exit(int);
int wait(int *);
void exit(int);

static int calls;
static const char *last = "none";

/* Each counts, and answers what would be of no use. */
#define OWN(name) long name(long first) { calls++; last = #name; return -first - 7; }
OWN(read) OWN(write) OWN(close) OWN(open64) OWN(poll) OWN(pause) OWN(sleep) OWN(raise)
OWN(mmap) OWN(mmap64) OWN(munmap) OWN(mprotect) OWN(madvise) OWN(prctl) OWN(syscall)
OWN(clock_gettime) OWN(clock_nanosleep) OWN(sysconf) OWN(sysinfo) OWN(statx) OWN(stat64)
OWN(fstat64) OWN(lseek) OWN(lseek64) OWN(fcntl) OWN(flock) OWN(fchmod) OWN(getcwd)
OWN(getpid) OWN(getppid) OWN(geteuid) OWN(getrusage) OWN(readlink) OWN(realpath) OWN(rename)
OWN(unlink) OWN(mkdir) OWN(opendir) OWN(readdir64) OWN(closedir) OWN(dirfd) OWN(statfs64)
OWN(writev) OWN(sigaction) OWN(sigaltstack) OWN(sigfillset) OWN(sigaddset) OWN(sigdelset)
OWN(sigismember) OWN(sched_getcpu) OWN(sched_getaffinity) OWN(strtol) OWN(fputs)
OWN(getauxval) OWN(pthread_once) OWN(pthread_join) OWN(pthread_mutex_lock)
OWN(pthread_mutex_unlock) OWN(pthread_sigmask) OWN(pthread_key_create) OWN(mallopt)

static void end(const char *what) {
    printf("wrong: %s, %d calls, last of %s\n", what, calls, last);
    exit(1);
}

/* Fills blocks of all sizes beyond the limit, looks at them, and frees them. */
static void use(long bytes) {
    enum { BLOCKS = 3000 };
    static unsigned char *blocks[BLOCKS];
    long each = bytes / BLOCKS;
    for (int round = 0; round < 2; round++) {
        for (long i = 0; i < BLOCKS; i++) {
            blocks[i] = i % 3 ? malloc((size_t)(i % 7 * each / 3 + 1)) : aligned_alloc(4096, 40960);
            if (!blocks[i]) end("no memory");
            long size = i % 3 ? i % 7 * each / 3 + 1 : 40960;
            for (long at = 0; at < size; at += 100) blocks[i][at] = (unsigned char)(i + at);
        }
        for (long i = 0; i < BLOCKS; i++) {
            long size = i % 3 ? i % 7 * each / 3 + 1 : 40960;
            for (long at = 0; at < size; at += 100)
                if (blocks[i][at] != (unsigned char)(i + at)) end("another byte");
            free(blocks[i]);
        }
    }
}

int main(int count, char **words) {
    long bytes = count > 2 ? atol(words[2]) : 20000000;
    use(bytes);
    int child = fork(), status = -1;
    if (child == 0) {
        use(bytes);
        if (calls) end("called by others, in the child");
        _exit(0);
    }
    if (wait(&status) != child || status != 0) end("the child");
    if (calls) end("called by others");
    if (read(5) != -12 || close(1) != -8) end("another function than its own");
    if (calls != 2) end("not called by itself");
    puts("ok");
    return 0;
}
