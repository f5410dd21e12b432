// Data that has to leave and come back, while limits of the process are low: prints "ok".
//
// limits MIB [fsize | data | as | memlock]: how much data, and a limit to set in between
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

static int fails(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return 1;
}

int main(int count, char **argument)
{
    long pages = atol(argument[1]) * 256;
    unsigned char *data = malloc(pages * 4096);
    if (!data)
        return fails("no memory");
    for (long i = 0; i < pages; i++) {
        memset(data + i * 4096, i % 251, 4096);
        data[i * 4096 + i % 4096] = i % 13;
    }
    if (count > 2) {
        int which = RLIMIT_FSIZE;
        struct rlimit limit = {0, 0}, now;
        if (!strcmp(argument[2], "data"))
            which = RLIMIT_DATA;
        if (!strcmp(argument[2], "as"))
            which = RLIMIT_AS;
        if (!strcmp(argument[2], "memlock"))
            which = RLIMIT_MEMLOCK;
        if (setrlimit(which, &limit) || getrlimit(which, &now) || now.rlim_cur || now.rlim_max)
            return fails("setrlimit");
    }
    for (int round = 0; round < 3; round++)
        for (long i = 0; i < pages; i++) {
            unsigned char *page = data + i * 4096;
            if (page[i % 4096] != (unsigned char)(i % 13 + round) ||
                page[(i + 1) % 4096] != i % 251)
                return fails("wrong data");
            page[i % 4096]++;
        }
    if (count <= 2) {
        char *more[64];
        for (int i = 0; i < 64; i++)
            if (!(more[i] = calloc(1, 100000)) || more[i][50000])
                return fails("no more memory");
        for (int i = 0; i < 64; i++)
            free(more[i]);
        int child = fork(), status = -1;
        if (child == 0) {
            for (long i = 0; i < pages; i++)
                if (data[i * 4096 + (i + 1) % 4096] != i % 251)
                    _exit(1);
            _exit(0);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status)
            return fails("the child");
    }
    puts("ok");
    return 0;
}
