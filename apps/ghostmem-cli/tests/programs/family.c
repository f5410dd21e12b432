/* Every member of the malloc family, before and after start-up. */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *early;
static char *early_large;
__attribute__((constructor)) static void before_main(void) {
    early = malloc(100);
    strcpy(early, "from a constructor");
    early_large = malloc(1 << 20);
    memset(early_large, 7, 1 << 20);
}

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s\n", __LINE__, #what); return 1; } } while (0)

int main(void) {
    CHECK(strcmp(early, "from a constructor") == 0);
    early = realloc(early, 200000);
    CHECK(early && strcmp(early, "from a constructor") == 0);
    free(early);
    early_large = realloc(early_large, 100);
    for (int i = 0; i < 100; i++) CHECK(early_large[i] == 7);
    free(early_large);

    void *a = malloc(0), *b = malloc(0);
    CHECK(a && b && a != b);
    free(a); free(b); free(NULL);

    for (size_t size = 1; size < (1 << 22); size = size * 3 + 1) {
        unsigned char *p = malloc(size);
        CHECK(p && (uintptr_t)p % 16 == 0 && malloc_usable_size(p) >= size);
        memset(p, 0xa5, malloc_usable_size(p));
        p = realloc(p, size * 2);
        for (size_t i = 0; i < size; i++) CHECK(p[i] == 0xa5);
        p = realloc(p, size / 2 + 1);
        for (size_t i = 0; i < size / 2 + 1; i++) CHECK(p[i] == 0xa5);
        free(p);
        unsigned char *z = calloc(size, 3);
        for (size_t i = 0; i < size * 3; i++) CHECK(z[i] == 0);
        memset(z, 1, size * 3);
        free(z);
        z = calloc(3, size);
        for (size_t i = 0; i < size * 3; i++) CHECK(z[i] == 0);
        free(z);
    }
    for (size_t align = 8; align <= (1 << 21); align *= 2) {
        void *p = NULL;
        errno = 77;
        CHECK(posix_memalign(&p, align, 1000) == 0 && (uintptr_t)p % align == 0 && errno == 77);
        memset(p, 1, 1000);
        free(p);
        p = aligned_alloc(align, align * 2);
        CHECK(p && (uintptr_t)p % align == 0);
        free(p);
        p = memalign(align, 50000);
        CHECK(p && (uintptr_t)p % align == 0);
        memset(p, 2, 50000);
        free(p);
    }
    void *p = (void *)1;
    CHECK(posix_memalign(&p, 24, 100) == EINVAL && p == (void *)1);
    p = valloc(10); CHECK(p && (uintptr_t)p % 4096 == 0); free(p);
    p = pvalloc(10); CHECK(p && (uintptr_t)p % 4096 == 0 && malloc_usable_size(p) >= 4096); free(p);

    errno = 0; CHECK(malloc(SIZE_MAX / 2 + 10) == NULL && errno == ENOMEM);
    errno = 0; CHECK(calloc(SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
    p = malloc(64); memset(p, 3, 64);
    errno = 0; CHECK(reallocarray(p, SIZE_MAX / 2, 3) == NULL && errno == ENOMEM);
    errno = 0; CHECK(realloc(p, SIZE_MAX - 4096) == NULL && errno == ENOMEM);
    CHECK(((char *)p)[63] == 3);
    p = reallocarray(p, 1000, 100); CHECK(p && ((char *)p)[63] == 3);
    CHECK(realloc(p, 0) == NULL);
    errno = 5; p = malloc(1 << 20); free(p); CHECK(errno == 5);
    CHECK(malloc_usable_size(NULL) == 0);
    char *text = strdup("a copy");
    char *printed = NULL;
    CHECK(asprintf(&printed, "%s and %d", text, 42) == 13 && strcmp(printed, "a copy and 42") == 0);
    free(text); free(printed);
    printf("ok\n");
    return 0;
}
