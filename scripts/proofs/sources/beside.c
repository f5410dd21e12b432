/* A process that does much beside some that do nothing, as the servers of a data base: all
 * are forks of one, map SHARED MiB of shared memory and look at it. The last one, which comes
 * some time later, goes over GROW MiB of text of its own: beside SHARED IDLE GROW ROUNDS */
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include "noise.h"

#define WORDS (MIB / sizeof(uint64_t))
#define OWN_MIB 1

/* Text of a process's own, a block for each MiB; the caller has it until it ends. */
static uint64_t **text(size_t mib, size_t key) {
    uint64_t **blocks = malloc(mib * sizeof *blocks);
    for (size_t at = 0; blocks && at < mib; at++) {
        if (!(blocks[at] = malloc(MIB)))
            exit(3);
        fill_text(blocks[at], WORDS, key + at);
    }
    return blocks;
}

static void look(uint64_t *const *blocks, size_t mib, size_t key) {
    for (size_t at = 0; at < mib; at++)
        look_at_text(blocks[at], WORDS, key + at);
}

static void pause_ms(long ms) {
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static pid_t forked(void) {
    fflush(stdout);
    pid_t process = fork();
    if (process < 0)
        exit(4);
    return process;
}

static void ends_well(pid_t process, const char *name) {
    int status;
    if (waitpid(process, &status, 0) != process || status != 0) {
        printf("%s ends with %#x\n", name, status);
        exit(5);
    }
}

int main(int count, char **arguments) {
    if (count < 5)
        return 2;
    size_t shared_mib = strtoul(arguments[1], NULL, 10), idle = strtoul(arguments[2], NULL, 10);
    size_t grow = strtoul(arguments[3], NULL, 10), rounds = strtoul(arguments[4], NULL, 10);
    int ready[2], end[2];
    char byte = 0;
    pid_t processes[64];
    uint64_t *shared = mmap(NULL, shared_mib * MIB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || idle > 64 || pipe(ready) || pipe(end))
        return 3;
    fill_noise(shared, shared_mib * WORDS, 7);
    uint64_t **first = text(OWN_MIB, 1);
    for (size_t child = 0; child < idle; child++) {
        processes[child] = forked();
        if (processes[child] == 0) {
            close(end[1]);
            look_at_noise(shared, shared_mib * WORDS, 7);
            uint64_t **own = text(OWN_MIB, 1000 * (child + 1));
            if (write(ready[1], &byte, 1) != 1 || read(end[0], &byte, 1) != 0)
                _exit(6);
            look(own, OWN_MIB, 1000 * (child + 1));
            look(first, OWN_MIB, 1);
            _exit(0);
        }
    }
    for (size_t child = 0; child < idle; child++)
        if (read(ready[0], &byte, 1) != 1)
            return 7;
    pause_ms(500);
    pid_t last = forked();
    if (last == 0) {
        look_at_noise(shared, shared_mib * WORDS, 7);
        uint64_t **own = text(grow, 1 << 20);
        for (size_t round = 0; round < rounds; round++)
            look(own, grow, 1 << 20);
        _exit(0);
    }
    ends_well(last, "the last one");
    close(end[1]);
    for (size_t child = 0; child < idle; child++)
        ends_well(processes[child], "one that does nothing");
    look(first, OWN_MIB, 1);
    puts("ok");
    return 0;
}
