/* A process and children that share MIB of a mapping, beside a program that grows as far as
 * it may. The children end in turn, and what they shared is the others' then, without a
 * fault: turns MIB CHILDREN
 * With --mmap=off the mapping is no ghost memory: nobody evicts it. */
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include "noise.h"

#define WORDS (MIB / sizeof(uint64_t))

extern char **environ;

static void pause_ms(long ms) {
    const struct timespec time = {.tv_sec = ms / 1000, .tv_nsec = ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

/* Grows until its input ends, and looks at what it has. */
static int grow(void) {
    static uint64_t *blocks[1 << 14];
    size_t got = 0;
    struct pollfd input = {.fd = 0, .events = POLLIN};
    while (poll(&input, 1, 0) == 0) {
        if (got < sizeof blocks / sizeof *blocks && (blocks[got] = malloc(MIB))) {
            fill_noise(blocks[got], WORDS, got);
            got++;
        } else
            pause_ms(1);
    }
    for (size_t block = 0; block < got; block++)
        look_at_noise(blocks[block], WORDS, block);
    return got < 8;
}

int main(int count, char **arguments) {
    if (count == 2)
        return grow();
    if (count < 3 || strtoul(arguments[2], NULL, 10) > 64)
        return 2;
    size_t words = strtoul(arguments[1], NULL, 10) * WORDS, children = strtoul(arguments[2], NULL, 10);
    int ends[2], status;
    setvbuf(stdout, NULL, _IONBF, 0);
    uint64_t *shared = mmap(NULL, words * sizeof *shared, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    /* A heap of its own, so that it keeps within the bound. */
    char *own = malloc(MIB);
    if (shared == MAP_FAILED || !own || pipe(ends))
        return 3;
    memset(own, 1, MIB);
    fill_noise(shared, words, 77);
    pid_t processes[64];
    for (size_t child = 0; child < children; child++) {
        processes[child] = fork();
        if (processes[child] < 0)
            return 4;
        if (processes[child] == 0) {
            close(ends[1]);
            pause_ms(1000 + 400 * (long)child);
            _exit(0);
        }
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[0], 0);
    posix_spawn_file_actions_addclose(&actions, ends[1]);
    char *words_of_it[] = {arguments[0], "grow", NULL};
    pid_t grower;
    if (posix_spawn(&grower, arguments[0], &actions, NULL, words_of_it, environ))
        return 5;
    for (size_t child = 0; child < children; child++)
        if (waitpid(processes[child], &status, 0) < 0 || status != 0) {
            printf("a child ended with %#x\n", status);
            return 6;
        }
    pause_ms(400);
    close(ends[1]);
    /* What was granted when there was room may be refused when it is touched. */
    if (waitpid(grower, &status, 0) != grower || (status != 0 && status != SIGBUS)) {
        printf("what grows ended with %#x\n", status);
        return 7;
    }
    look_at_noise(shared, words, 77);
    puts("ok");
    return 0;
}
