/* A second C library, in a namespace of its own (dlmopen): its system calls find memory
 * from the first one's malloc that was put away. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define ALL (300 * 1000)

static void *library;
static void *named(const char *name) {
    void *found = dlsym(library, name);
    CHECK(found != NULL && found != dlsym(RTLD_DEFAULT, name));
    return found;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    /* As a program does that loads and unloads one again and again. */
    for (int round = 0; round < 70; round++) {
        library = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
        CHECK(library != NULL && dlclose(library) == 0);
    }
    for (int round = 0; round < 3; round++) {
        library = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
        CHECK(library != NULL);
        int (*open_)(const char *, int, ...) = named("open");
        ssize_t (*write_)(int, const void *, size_t) = named("write");
        ssize_t (*pread_)(int, void *, size_t, off_t) = named("pread");
        ssize_t (*readv_)(int, const struct iovec *, int) = named("readv");
        int (*stat_)(const char *, struct stat *) = named("stat");
        pid_t (*fork_)(void) = named("fork");
        int *(*errno_)(void) = named("__errno_location");
        pid_t (*waitpid_)(pid_t, int *, int) = named("waitpid");
        char *path = ghost(40000), *from = ghost(ALL), *to = ghost(ALL);
        struct stat *status = ghost(40000);
        struct iovec *parts = ghost(40000);
        int *ended = ghost(40000);
        sprintf(path, "%s/second-%d", argv[1], round);
        for (size_t at = 0; at < ALL; at++) from[at] = (char)(at * 7 + at / 4096 + round);
        parts[0] = (struct iovec){to, 1000};
        parts[1] = (struct iovec){to + 1000, ALL - 1000};
        evict();
        int file = open_(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
        errno = *errno_();
        CHECK(file >= 0);
        evict();
        CHECK(write_(file, from, ALL) == ALL);
        evict();
        CHECK(pread_(file, to, ALL, 0) == ALL);
        CHECK(memcmp(from, to, ALL) == 0);
        evict();
        CHECK(lseek(file, 0, SEEK_SET) == 0 && readv_(file, parts, 2) == ALL);
        CHECK(memcmp(from, to, ALL) == 0);
        evict();
        CHECK(stat_(path, status) == 0 && status->st_size == ALL);
        evict();
        pid_t child = fork_();
        if (child == 0) _exit(memcmp(from, to, ALL) == 0 ? 5 : 6);
        evict();
        CHECK(waitpid_(child, ended, 0) == child && WEXITSTATUS(*ended) == 5);
        close(file);
        dlclose(library);
    }
    puts("ok");
    return 0;
}
