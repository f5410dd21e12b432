/* Blocks passed between code that finds GhostMem's malloc family and code that
 * finds libc's: a library opened with RTLD_DEEPBIND, and dlsym(3) on libc. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition)                                             \
    do {                                                             \
        if (!(condition)) {                                          \
            printf("line %d: %s\n", __LINE__, #condition);           \
            exit(1);                                                 \
        }                                                            \
    } while (0)

static void fill(unsigned char *block, size_t size, int seed) {
    for (size_t i = 0; i < size; i++) block[i] = (unsigned char)(i / 16 * 7 + seed);
}

static void check(const unsigned char *block, size_t size, int seed) {
    for (size_t i = 0; i < size; i++) CHECK(block[i] == (unsigned char)(i / 16 * 7 + seed));
}

/* Pushes everything else out. */
static void press(size_t bytes) {
    unsigned char *other = malloc(bytes);
    CHECK(other);
    fill(other, bytes, 3);
    check(other, bytes, 3);
    free(other);
}

int main(int count, char **arguments) {
    CHECK(count == 3);
    size_t pressure = strtoul(arguments[2], 0, 10);
    void *plugin = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL | RTLD_DEEPBIND);
    if (!plugin) printf("%s\n", dlerror());
    CHECK(plugin);
    void *libc = dlopen("libc.so.6", RTLD_NOW | RTLD_NOLOAD);
    CHECK(libc);
    void *(*their_malloc)(size_t) = dlsym(plugin, "plugin_malloc");
    void *(*their_realloc)(void *, size_t) = dlsym(plugin, "plugin_realloc");
    size_t (*their_usable)(void *) = dlsym(plugin, "plugin_usable");
    void (*frees[3])(void *) = {dlsym(plugin, "plugin_free"), dlsym(libc, "free"), free};
    CHECK(their_malloc && their_realloc && their_usable && frees[0] && frees[1]);
    /* Otherwise nothing is tested here. */
    CHECK(dlsym(libc, "free") != (void *)free);

    static const size_t sizes[] = {1, 24, 500, 5000, 40000, 70000, 300000};
    for (int round = 0; round < 3; round++) {
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            size_t size = sizes[i];
            unsigned char *ours = malloc(size), *theirs = their_malloc(size);
            CHECK(ours && theirs);
            fill(ours, size, 1);
            fill(theirs, size, 2);
            press(pressure);
            CHECK(their_usable(ours) == malloc_usable_size(ours) && their_usable(ours) >= size);
            CHECK(their_usable(theirs) == malloc_usable_size(theirs) && their_usable(theirs) >= size);
            ours = their_realloc(ours, size * 2);
            theirs = realloc(theirs, size * 2);
            CHECK(ours && theirs);
            check(ours, size, 1);
            check(theirs, size, 2);
            frees[round](ours);
            frees[(round + 1) % 3](theirs);
        }
    }
    CHECK(their_usable(0) == 0);
    frees[0](0);
    frees[1](their_realloc(0, 100));
    CHECK(dlclose(plugin) == 0);
    puts("ok");
    return 0;
}
