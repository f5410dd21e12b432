/* What the malloc family says of itself, and gives back. Run with a limit that
 * everything fits in. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <malloc.h>
#include <stdint.h>
#include <unistd.h>

#define COUNT 100000

static size_t in_use(void) { struct mallinfo2 m = mallinfo2(); return m.uordblks + m.hblkhd; }
static long resident_mib(void) {
    long pages = 0;
    FILE *f = fopen("/proc/self/statm", "r");
    CHECK(f && fscanf(f, "%*d %ld", &pages) == 1);
    fclose(f);
    return pages / 256;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    static char *blocks[COUNT], *large[30];
    size_t before = in_use();
    for (int i = 0; i < COUNT; i++) memset(blocks[i] = malloc(500), i, 500);
    size_t now = in_use();
    CHECK(now - before >= 49000000 && now - before <= 80000000);
    for (int i = 0; i < 30; i++) memset(large[i] = malloc(1 << 20), i, 1 << 20);
    CHECK(in_use() - now >= 30 << 20);
    struct mallinfo2 m = mallinfo2();
    CHECK(m.arena + m.hblkhd >= m.uordblks + m.hblkhd);
    struct mallinfo old = mallinfo();
    CHECK((unsigned)old.uordblks >= 40000000 || (unsigned)old.hblkhd >= 30 << 20);

    char *text = NULL;
    size_t bytes = 0;
    FILE *stream = open_memstream(&text, &bytes);
    CHECK(malloc_info(1, stream) == EINVAL);
    CHECK(malloc_info(0, stream) == 0 && fclose(stream) == 0);
    CHECK(strncmp(text, "<malloc version=\"1\">", 20) == 0 && strstr(text, "</malloc>"));
    char *system = strstr(text, "<system type=\"current\" size=\"");
    CHECK(system && atol(system + 29) > 0);
    free(text);
    malloc_stats();

    long full = resident_mib();
    for (int i = 0; i < 30; i++) free(large[i]);
    CHECK(in_use() - now < 4 << 20);
    for (int i = 0; i < COUNT; i++) if (i % 1000) free(blocks[i]);
    CHECK(in_use() - before < 5000000);
    malloc_trim(0);
    long left = resident_mib();
    if (left * 3 > full) { printf("wrong: %ld of %ld MiB left\n", left, full); return 1; }
    for (int i = 0; i < COUNT; i += 1000) for (int k = 0; k < 500; k++) CHECK(blocks[i][k] == (char)i);
    /* A block is left here and there, in most of the pages. */
    static char *scattered[20 * COUNT / 100], *chain;
    for (int i = 0; i < 20 * COUNT; i++) {
        char *p = malloc(100);
        memset(p, i, 100);
        if (i % 100 == 0) { scattered[i / 100] = p; continue; }
        *(char **)p = chain;
        chain = p;
    }
    full = resident_mib();
    for (char *p = chain, *next; p; p = next) { next = *(char **)p; free(p); }
    malloc_trim(0);
    left = resident_mib();
    if (left * 3 > full * 2) { printf("wrong: %ld of %ld MiB left, scattered\n", left, full); return 1; }
    for (int i = 0; i < 20 * COUNT / 100; i++) for (int k = 0; k < 100; k++) CHECK(scattered[i][k] == (char)(i * 100));

    /* C23's, where they are. */
    void (*sized)(void *, size_t) = (void (*)(void *, size_t))dlsym(RTLD_DEFAULT, "free_sized");
    void (*aligned)(void *, size_t, size_t) = (void (*)(void *, size_t, size_t))dlsym(RTLD_DEFAULT, "free_aligned_sized");
    if (sized) { sized(malloc(100), 100); sized(NULL, 0); }
    if (aligned) { aligned(aligned_alloc(64, 640), 64, 640); aligned(aligned_alloc(4096, 1 << 20), 4096, 1 << 20); }
    printf("ok\n");
    return 0;
}
