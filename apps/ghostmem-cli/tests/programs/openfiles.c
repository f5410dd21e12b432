// A low limit on open files, before or while there is memory that has to leave and come back,
// a thread, children and a grandchild: prints "ok".
//
// openfiles WHEN SOFT HARD: WHEN is none, first, or later; HARD 0: as it was
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define BLOCKS 12
#define WORDS (1 << 17)

static void end(const char *what)
{
    fprintf(stderr, "wrong: %s\n", what);
    exit(1);
}

static long word(int salt, int block, int at)
{
    return salt * 1000003L + block * 77 + at / 3;
}

static long **fill(int salt)
{
    long **blocks = calloc(BLOCKS, sizeof *blocks);
    for (int block = 0; block < BLOCKS; block++) {
        if (!(blocks[block] = malloc(WORDS * sizeof(long))))
            end("no memory");
        for (int at = 0; at < WORDS; at++)
            blocks[block][at] = word(salt, block, at);
    }
    return blocks;
}

static int holds(long **blocks, int salt)
{
    for (int block = 0; block < BLOCKS; block++)
        for (int at = 0; at < WORDS; at++)
            if (blocks[block][at] != word(salt, block, at))
                return 0;
    return 1;
}

static void *beside(void *unused)
{
    return holds(fill(3), 3) ? "" : NULL;
}

static void lower(char **argument)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = atol(argument[2]);
    if (atol(argument[3]))
        limit.rlim_max = atol(argument[3]) - 1;
    if (setrlimit(RLIMIT_NOFILE, &limit))
        end("setrlimit");
}

static void is_as_set(char **argument)
{
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (strcmp(argument[1], "none") && limit.rlim_cur != (rlim_t)atol(argument[2]))
        end("the limit is another");
}

static int ends_well(pid_t child)
{
    int status;
    return child > 0 && waitpid(child, &status, 0) == child && status == 0;
}

int main(int count, char **argument)
{
    if (!strcmp(argument[1], "first"))
        lower(argument);
    long **first = fill(1);
    if (!strcmp(argument[1], "later"))
        lower(argument);
    long **second = fill(2);
    pthread_t thread;
    void *answer;
    if (pthread_create(&thread, NULL, beside, NULL) || pthread_join(thread, &answer) || !answer)
        end("the thread");
    pid_t child = fork();
    if (child == 0) {
        long **own = fill(4);
        pid_t grandchild = fork();
        if (grandchild == 0)
            _exit(!holds(own, 4) || !holds(first, 1));
        is_as_set(argument);
        _exit(!ends_well(grandchild) || !holds(second, 2));
    }
    if (!ends_well(child))
        end("the child");
    if (!holds(first, 1) || !holds(second, 2))
        end("the data");
    is_as_set(argument);
    puts("ok");
    return 0;
}
