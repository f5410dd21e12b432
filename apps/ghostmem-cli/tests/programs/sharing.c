/* Children with their own memory on the parent's table of descriptors (CLONE_FILES
 * without CLONE_VM): what either opens and closes the other sees, and nothing else, and
 * both keep their data, while they live side by side and after. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dirent.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define DATA (3 << 20)

static unsigned char *data;

static unsigned char value(size_t at, int by) { return (unsigned char)((at >> 12) * 7 + by); }
static void fill(int by) { for (size_t at = 0; at < DATA; at += 4096) data[at] = value(at, by); }
static int good(int by) {
    for (size_t at = 0; at < DATA; at += 4096) if (data[at] != value(at, by)) return 0;
    return 1;
}

/* The numbers that are open, as the kernel lists them; those above are all closed here. */
#define NUMBERS 100
static void list(char *open) {
    memset(open, 0, NUMBERS);
    DIR *all = opendir("/proc/self/fd");
    CHECK(all);
    for (struct dirent *one; (one = readdir(all));) {
        int number = atoi(one->d_name);
        if (one->d_name[0] != '.' && number != dirfd(all) && number < NUMBERS) open[number] = 1;
    }
    closedir(all);
}
static char before[NUMBERS], after[NUMBERS];

struct job { int ready[2], go[2], file, generation; };

static int child(void *argument) {
    struct job *job = argument;
    char byte;
    evict();
    if (!good(1)) return 2;
    fill(job->generation);
    /* A file for the parent, at a number both know, and one less. */
    if (dup2(job->ready[1], 60) != 60 || close(job->file)) return 3;
    /* As daemons do: nothing of the parent's engine goes. */
    if (syscall(SYS_close_range, 100, ~0u, 0)) return 4;
    if (write(job->ready[1], "a", 1) != 1 || read(job->go[0], &byte, 1) != 1) return 5;
    evict();
    if (!good(job->generation)) return 6;
    free(malloc(1 << 20));
    /* Its own child has a table of its own. */
    pid_t own = fork();
    if (own == 0) { evict(); _exit(good(job->generation) ? 0 : 7); }
    int status;
    if (waitpid(own, &status, 0) != own || status != 0) return 8;
    return 10;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare("6000000");
    data = ghost(DATA);
    struct job *job = ghost(sizeof *job);
    for (int round = 0; round < 2; round++) {
        int status;
        char byte;
        CHECK(pipe(job->ready) == 0 && pipe(job->go) == 0);
        job->file = open("/dev/null", O_RDWR);
        CHECK(job->file >= 0);
        job->generation = 20 + round;
        fill(1);
        evict();
        char *stack = mmap(NULL, 1 << 17, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
        CHECK(stack != MAP_FAILED);
        list(before);
        pid_t pid = clone(child, stack + (1 << 17), CLONE_FILES | SIGCHLD, job);
        CHECK(pid > 0);
        CHECK(read(job->ready[0], &byte, 1) == 1);
        CHECK(fcntl(job->file, F_GETFD) == -1 && errno == EBADF);
        CHECK(fcntl(60, F_GETFD) >= 0 && close(60) == 0);
        CHECK(syscall(SYS_close_range, 100, ~0u, 0) == 0);
        evict();
        CHECK(good(1));
        fill(2);
        evict();
        CHECK(write(job->go[1], "b", 1) == 1);
        CHECK(waitpid(pid, &status, 0) == pid);
        if (!WIFEXITED(status) || WEXITSTATUS(status) != 10) { printf("wrong: round %d: %x\n", round, status); return 1; }
        evict();
        CHECK(good(2));
        /* It has closed one file, and left none. */
        before[job->file] = 0;
        list(after);
        for (int number = 0; number < NUMBERS; number++)
            if (before[number] != after[number]) { printf("wrong: round %d: number %d\n", round, number); return 1; }
        /* A child without the flag, and one that could not be made. */
        pid = fork();
        CHECK(pid >= 0);
        if (pid == 0) { evict(); _exit(good(2) ? 0 : 9); }
        CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        CHECK(syscall(SYS_clone, CLONE_FILES | CLONE_NEWNS | CLONE_FS | SIGCHLD, 0, 0, 0, 0) == -1 && errno == EINVAL);
        evict();
        CHECK(good(2));
        munmap(stack, 1 << 17);
        for (int end = 0; end < 2; end++) CHECK(close(job->ready[end]) == 0 && close(job->go[end]) == 0);
    }
    puts("ok");
    return 0;
}
