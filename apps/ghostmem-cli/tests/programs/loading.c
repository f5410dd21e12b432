/* The heap is made while the loader opens an object: at whatever point of that. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
    for (int part = 0; part < 48; part++) {
        pid_t child = fork();
        if (child == 0) {
            /* More each time, until the heap is there before. */
            char *block = part ? malloc((size_t)part * 1400) : NULL;
            if (block) memset(block, part, (size_t)part * 1400);
            void *object = dlopen("libm.so.6", RTLD_NOW);
            double (*root)(double) = object ? (double (*)(double))dlsym(object, "sqrt") : NULL;
            int right = root && root(49.0) == 7.0;
            if (block) right &= block[(size_t)part * 1400 - 1] == (char)part;
            char *more = malloc(2 << 20);
            memset(more, 3, 2 << 20);
            _exit(right && more[1 << 20] == 3 ? 5 : 6);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status != 5 << 8) {
            printf("wrong: part %d, status %x\n", part, status);
            return 1;
        }
    }
    puts("ok");
    return 0;
}
