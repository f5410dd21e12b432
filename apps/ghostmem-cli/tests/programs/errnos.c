/* errno is the program's: 0 as it begins, in threads too, and as it was behind what does not set
 * it. What it is natively, the first run keeps. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static int found[100], count;
#define KEPT(what) do { errno = 77; what; CHECK(count < 100); found[count++] = errno; } while (0)

static void *first(void *unused) {
    (void)unused;
    int at_first = errno;
    free(malloc(100));
    free(malloc(1 << 20));
    return (void *)(long)(at_first * 1000 + errno);
}

int main(int argc, char **argv) {
    int at_first = errno;
    CHECK(argc == 3 && at_first == 0);
    void *p, *result;
    pthread_t thread;
    int status;
    errno = 0;
    KEPT(p = malloc(10));
    free(p);
    KEPT(p = calloc(10, 300));
    free(p);
    KEPT(p = malloc(5 << 20));
    KEPT(p = realloc(p, 9 << 20));
    KEPT(memset(p, 1, 9 << 20));
    KEPT(free(p));
    KEPT(p = malloc(200 << 20));
    KEPT(free(p));
    KEPT(p = aligned_alloc(1 << 16, 1 << 18));
    free(p);
    prepare(argv[2]);
    KEPT(evict());
    KEPT(p = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    KEPT(memset(p, 2, 4 << 20));
    KEPT(munmap(p, 4 << 20));
    for (int i = 0; i < 3; i++) {
        KEPT(pthread_create(&thread, NULL, first, NULL));
        KEPT(pthread_join(thread, &result));
        CHECK(result == NULL);
    }
    for (int i = 0; i < 2; i++) {
        errno = 77;
        pid_t child = fork();
        if (child == 0) _exit(errno);
        found[count++] = errno;
        CHECK(waitpid(child, &status, 0) == child);
        found[count++] = WEXITSTATUS(status);
    }
    KEPT(p = dlopen("libm.so.6", RTLD_NOW));
    KEPT(p = dlopen("libutil.so.1", RTLD_NOW));
    KEPT(p = dlsym(p, "no such name"));
    KEPT(status = open("/dev/null", O_RDWR));
    KEPT(write(status, pressure, 100000));
    KEPT(close(status));
    CHECK(chdir(argv[1]) == 0);
    FILE *file = fopen("natively", "r");
    if (file) {
        for (int i = 0; i < count; i++) {
            int natively;
            CHECK(fscanf(file, "%d", &natively) == 1);
            if (natively != found[i]) printf("wrong: number %d: natively %d, here %d\n", i, natively, found[i]);
            CHECK(natively == found[i]);
        }
    } else {
        file = fopen("natively", "w");
        for (int i = 0; i < count; i++) fprintf(file, "%d\n", found[i]);
    }
    fclose(file);
    puts("ok");
    return 0;
}
