/* A forked child gives memory back, does nothing while its parent takes that, and then fills as
 * much again at once: how much both take when it has. The parent's heap and the child's are
 * bound together. */
#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s\n", __LINE__, #what); exit(1); } } while (0)
#define PAGE 4096ul
#define MIB (1ul << 20)

static double seconds(void) {
    struct timespec now;
    CHECK(clock_gettime(CLOCK_MONOTONIC, &now) == 0);
    return now.tv_sec + now.tv_nsec / 1e9;
}

static unsigned char *mapped(size_t bytes) {
    unsigned char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

/* What shrinks to about a third. */
static void fill(unsigned char *p, size_t bytes) {
    static unsigned seed = 1;
    for (size_t at = 0; at < bytes; at += 16) {
        seed = seed * 1103515245 + 12345;
        memcpy(p + at, &seed, 4);
        memset(p + at + 4, 'a', 12);
    }
}

/* KiB that a process takes. */
static unsigned long taken(pid_t process) {
    char name[64], line[256];
    unsigned long all = 0, some;
    snprintf(name, sizeof name, "/proc/%d/status", process);
    FILE *file = fopen(name, "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lu", &some) == 1 || sscanf(line, "VmPTE: %lu", &some) == 1) all += some;
    fclose(file);
    return all;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    size_t little = atol(argv[1]) * MIB, much = atol(argv[2]) * MIB;
    atomic_int *stage = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(stage != MAP_FAILED);
    pid_t child = fork();
    if (child == 0) {
        alarm(60);
        unsigned char *p = mapped(little);
        fill(p, little);
        CHECK(munmap(p, little) == 0);
        atomic_store(stage, 1);
        while (atomic_load(stage) < 2) usleep(1000);
        p = mapped(little);
        fill(p, little);
        printf("%lu KiB\n", taken(getppid()) + taken(getpid()));
        fflush(stdout);
        atomic_store(stage, 3);
        _exit(0);
    }
    alarm(60);
    while (atomic_load(stage) < 1) usleep(1000);
    unsigned char *p = mapped(much);
    fill(p, much);
    double begun = seconds();
    while (atomic_load(stage) < 3) {
        for (size_t at = 0; at < much; at += PAGE) p[at]++;
        if (atomic_load(stage) < 2 && seconds() - begun > 2) atomic_store(stage, 2);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return 0;
}
