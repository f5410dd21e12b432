// A limit of 200 MiB that the program sets on its data or its address space, and threads then.
//
// lowered data|as MIB: the length of a thread's stack; prints "ok", or "no thread"
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>

static void *beside(void *given)
{
    return given;
}

int main(int count, char **argument)
{
    long length = 20 << 20;
    char *data = malloc(length);
    memset(data, 3, length);
    struct rlimit limit = {200 << 20, 200 << 20};
    if (setrlimit(!strcmp(argument[1], "as") ? RLIMIT_AS : RLIMIT_DATA, &limit))
        return 2;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, (size_t)atol(argument[2]) << 20);
    for (int round = 0; round < 3; round++) {
        pthread_t thread;
        void *answer = NULL;
        if (pthread_create(&thread, &attributes, beside, data)) {
            puts("no thread");
            return 1;
        }
        pthread_join(thread, &answer);
        if (answer != data)
            return 3;
    }
    for (long at = 0; at < length; at++)
        if (data[at] != 3)
            return 4;
    puts("ok");
    return 0;
}
