/* Reservations at a place of the program's choice. One that goes on with any place after 128
 * tries has memory that is put away; one that insists gets its place.
 *
 * insists FOLDER MIB */
#define _GNU_SOURCE
#include "ghosts.h"
#include <sys/mman.h>
#include <unistd.h>

#define FLAGS (MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE)

/* Pages that are in memory. */
static size_t there(char *from, size_t bytes) {
    unsigned char pages[1024];
    size_t count = 0;
    CHECK(bytes / 4096 <= sizeof pages && mincore(from, bytes, pages) == 0);
    for (size_t page = 0; page < bytes / 4096; page++) count += pages[page] & 1;
    return count;
}

static char *place(size_t tried) { return (char *)(0x200000000000 + (tried << 30)); }

/* The pages of a reservation at the place asked for; NULL: there was none in so many tries. */
static char *reserve(size_t bytes, size_t tries, size_t first) {
    for (size_t tried = 0; tried < tries; tried++) {
        char *wanted = place(first + tried), *got = mmap(wanted, bytes, PROT_NONE, FLAGS, -1, 0);
        CHECK(got != MAP_FAILED);
        if (got == wanted) return got;
        CHECK(munmap(got, bytes) == 0);
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    prepare(argv[2]);
    int under = getenv("BACKEND") != NULL;
    size_t bytes = 4 << 20;
    char *any = reserve(bytes, 128, 0);
    CHECK((any == NULL) == under);
    if (!any) any = mmap(NULL, bytes, PROT_NONE, FLAGS, -1, 0);
    CHECK(any != MAP_FAILED && mprotect(any, bytes, PROT_READ | PROT_WRITE) == 0);
    for (size_t at = 0; at < bytes; at += 4096) memset(any + at, (int)(at / 4096 % 251 + 1), 4096);
    evict();
    if (under) CHECK(there(any, bytes) < bytes / 4096 / 2);
    /* One that is kept in between begins anew. */
    CHECK(!under || reserve(8 << 20, 500, 1000) == NULL);
    char *kept = mmap(place(5000), 8 << 20, PROT_NONE, FLAGS, -1, 0);
    CHECK(kept != MAP_FAILED && (!under || reserve(8 << 20, 100, 6000) == NULL));
    CHECK(munmap(kept, 8 << 20) == 0);
    /* Three of one length, as ZGC has them, and a file in their place. */
    size_t length = 64 << 20;
    char *views[3];
    views[0] = reserve(length, 4000, 10000);
    CHECK(views[0]);
    views[1] = reserve(length, 1, 20000);
    views[2] = reserve(length, 1, 30000);
    CHECK(views[1] && views[2]);
    int file = memfd_create("heap", 0);
    CHECK(file >= 0 && ftruncate(file, length) == 0);
    for (int view = 0; view < 3; view++)
        CHECK(mmap(views[view], length, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file, 0) == views[view]);
    for (size_t at = 0; at < length; at += 4096) views[at / 4096 % 3][at] = (char)(at / 4096 + 1);
    evict();
    for (size_t at = 0; at < length; at += 4096) CHECK(views[(at / 4096 + 1) % 3][at] == (char)(at / 4096 + 1));
    for (size_t at = 0; at < bytes; at++) CHECK(any[at] == (char)(at / 4096 % 251 + 1));
    /* What 32 bits can name, and is used at once. */
    char *low = (char *)0x60000000;
    char *got = mmap(low, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(got == low);
    memset(got, 7, length);
    evict();
    CHECK(got[0] == 7 && got[length - 1] == 7 && munmap(got, length) == 0);
    puts("ok");
    return 0;
}
