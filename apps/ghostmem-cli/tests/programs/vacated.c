/* Places that a program reserved and unmapped, whole or in part, and maps again: by MAP_FIXED,
 * MAP_FIXED_NOREPLACE and by a mere hint; anonymous memory, files, one memory file twice in a
 * row, segments of shared memory. What comes there is what it is, whatever was there before,
 * and everything that is done with memory is done with it. */
#define _GNU_SOURCE
#include "access.h"
#include <fcntl.h>
#include <malloc.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (128ul << 10)
#define HALF (BYTES / 2)

static int file, memory, pipes[2];
static char *beside;

/* Touches more than the limit, once. */
static void push_out(void) {
    for (size_t at = 0; at < pressure_bytes; at += PAGE) pressure[at]++;
}
static char letter(size_t at) { return (char)(at * 31 + at / PAGE * 7 + 1); }
static void write_all(char *p, size_t bytes) { for (size_t at = 0; at < bytes; at++) p[at] = letter(at); }
static void check_all(const char *p, size_t bytes) {
    for (size_t at = 0; at < bytes; at++)
        if (p[at] != letter(at)) { printf("wrong: byte %zu of %p is %d, not %d\n", at, (void *)p, p[at], letter(at)); exit(1); }
}
static void in_a_child(char *p, size_t bytes, int is_shared) {
    pid_t child = fork();
    if (child == 0) {
        check_all(p, bytes);
        p[5]++;
        p[bytes - 1]++;
        _exit(p[5] == (char)(letter(5) + 1) ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(p[5] == (char)(letter(5) + is_shared) && p[bytes - 1] == (char)(letter(bytes - 1) + is_shared));
    p[5] = letter(5);
    p[bytes - 1] = letter(bytes - 1);
}
static int is_there(char *p) {
    unsigned char there;
    return mincore(p, PAGE, &there) == 0;
}

/* Everything that is done with memory. */
static void use(char *p, size_t bytes, int is_shared) {
    write_all(p, bytes);
    push_out();
    check_all(p, bytes);
    /* System calls read it and write it, from within a page to within another. */
    char copy[3 * PAGE];
    CHECK(write(pipes[1], p + HALF / 2 - 100, sizeof copy) == (ssize_t)sizeof copy);
    CHECK(read(pipes[0], copy, sizeof copy) == (ssize_t)sizeof copy);
    CHECK(memcmp(copy, p + HALF / 2 - 100, sizeof copy) == 0);
    memset(p + HALF / 2 - 100, 0, sizeof copy);
    push_out();
    CHECK(write(pipes[1], copy, sizeof copy) == (ssize_t)sizeof copy);
    CHECK(read(pipes[0], p + HALF / 2 - 100, sizeof copy) == (ssize_t)sizeof copy);
    check_all(p, bytes);
    in_a_child(p, bytes, is_shared);
    /* Access is taken and given. */
    CHECK(mprotect(p + PAGE, 4 * PAGE, PROT_READ) == 0);
    has(p + PAGE, 4 * PAGE, PROT_READ);
    CHECK(mprotect(p, 2 * PAGE, PROT_NONE) == 0);
    has(p, 2 * PAGE, PROT_NONE);
    has(p + 2 * PAGE, 3 * PAGE, PROT_READ);
    has(p + 5 * PAGE, PAGE, RW);
    CHECK(mprotect(p, 8 * PAGE, RW) == 0);
    has(p, 8 * PAGE, RW);
    push_out();
    check_all(p, bytes);
}

/* It moves away and back, and a part of it goes. */
static void move(char *p, size_t bytes) {
    char *room = mmap(NULL, bytes, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(room != MAP_FAILED);
    CHECK(mremap(p, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
    check_all(room, bytes);
    CHECK(load(p) == SIGSEGV && store(p + bytes - 1) == SIGSEGV && !is_there(p));
    CHECK(mremap(room, bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p);
    CHECK(!is_there(room));
    push_out();
    check_all(p, bytes);
}

enum unmapped { NOT, WHOLE, IN_PART, IN_PARTS, UNMAPPED };
enum how { OVER, INTO, HINTED, WAYS };
static const int flags_of[] = {MAP_FIXED, MAP_FIXED_NOREPLACE, 0};

/* A place of BYTES, a part of a reservation or all of it, that something may come to. */
static char *reserve(int access, enum unmapped unmapped, char **all, size_t *whole) {
    *whole = unmapped == IN_PART ? 4 * BYTES : BYTES;
    char *p = mmap(NULL, *whole, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    *all = p;
    if (access == RW) memset(p, 9, *whole);
    push_out();
    if (unmapped == IN_PART) p += BYTES;
    if (unmapped == IN_PARTS) {
        CHECK(munmap(p + HALF, HALF) == 0 && munmap(p, PAGE) == 0 && munmap(p + PAGE, HALF - PAGE) == 0);
    } else if (unmapped != NOT) {
        CHECK(munmap(p, BYTES) == 0);
    }
    if (unmapped != NOT) {
        CHECK(load(p) == SIGSEGV && store(p + BYTES - 1) == SIGSEGV && !is_there(p + HALF));
        CHECK(write(pipes[1], p, 10) == -1 && errno == EFAULT);
        /* What the program allocates and maps meanwhile lies elsewhere. */
        char *block = malloc(100000);
        CHECK(block && (block + 100000 <= p || block >= p + BYTES));
        memset(block, 1, 100000);
        free(block);
    }
    return p;
}
static void give_back(char *all, size_t whole) {
    CHECK(munmap(all, whole) == 0);
    CHECK(load(all) == SIGSEGV && load(all + whole - 1) == SIGSEGV);
    /* Whoever gets it next finds zeros. */
    for (int round = 0; round < 3; round++) {
        char *fresh = mmap(NULL, whole, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(fresh != MAP_FAILED);
        is(fresh, 0, 0, whole);
        memset(fresh, 5, whole);
        CHECK(munmap(fresh, whole) == 0);
    }
}

static void anonymous(char *p, int how, int kind) {
    CHECK(mmap(p, BYTES, RW, kind | MAP_ANONYMOUS | flags_of[how], -1, 0) == p);
    is(p, 0, 0, BYTES);
    use(p, BYTES, kind == MAP_SHARED);
    move(p, BYTES);
}
static void one_file(char *p, int how, int kind, int which) {
    char page[PAGE];
    for (size_t at = 0; at < BYTES; at += PAGE) {
        memset(page, (int)(at / PAGE) + 3, PAGE);
        CHECK(pwrite(which, page, PAGE, at) == (ssize_t)PAGE);
    }
    CHECK(mmap(p, BYTES, RW, kind | flags_of[how], which, 0) == p);
    for (size_t at = 0; at < BYTES; at += PAGE) is(p, (char)(at / PAGE + 3), at, at + PAGE);
    use(p, BYTES, kind == MAP_SHARED);
    char byte;
    CHECK(pread(which, &byte, 1, 77) == 1 && (byte == letter(77)) == (kind == MAP_SHARED));
    move(p, BYTES);
}
/* The buffer that is mapped twice in a row. */
static void ring(char *p, int how, int which) {
    for (size_t half = 0; half < BYTES; half += HALF)
        CHECK(mmap(p + half, HALF, RW, MAP_SHARED | flags_of[how], which, 0) == p + half);
    memset(p, 0, HALF);
    strcpy(p + HALF - 7, "over the edge");
    CHECK(memcmp(p, "e edge", 7) == 0);
    push_out();
    CHECK(strcmp(p + HALF - 7, "over the edge") == 0);
    /* System calls go over the edge, too. */
    CHECK(write(pipes[1], "0123456789", 10) == 10 && read(pipes[0], p + HALF - 5, 10) == 10);
    CHECK(memcmp(p, "56789", 5) == 0 && memcmp(p + HALF - 5, p + BYTES - 5, 5) == 0);
    CHECK(write(pipes[1], p + HALF - 5, 10) == 10);
    char word[10];
    CHECK(read(pipes[0], word, 10) == 10 && memcmp(word, "0123456789", 10) == 0);
    pid_t child = fork();
    if (child == 0) {
        p[HALF + 100] = 'c';
        _exit(p[100] == 'c' ? 0 : 1);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0 && p[100] == 'c' && p[HALF + 100] == 'c');
    /* One half goes, and comes back. */
    CHECK(munmap(p + HALF, HALF) == 0 && load(p + HALF) == SIGSEGV && p[100] == 'c');
    CHECK(mmap(p + HALF, HALF, RW, MAP_SHARED | flags_of[how], which, 0) == p + HALF);
    CHECK(p[HALF + 100] == 'c');
}

static int segment_of(size_t bytes) {
    int id = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600);
    CHECK(id >= 0);
    return id;
}
static long attached(int id) {
    struct shmid_ds about;
    CHECK(shmctl(id, IPC_STAT, &about) == 0);
    return (long)about.shm_nattch;
}
static void segments(char *p, int is_free) {
    int id = segment_of(BYTES), half = segment_of(HALF - 100);
    /* What is taken is not given without being told to. */
    if (!is_free) {
        CHECK(shmat(id, p, 0) == (void *)-1 && errno == EINVAL);
        CHECK(shmat(id, p + 100, SHM_RND) == (void *)-1 && errno == EINVAL);
        CHECK(attached(id) == 0);
    }
    CHECK(shmat(id, p + 100, SHM_REMAP) == (void *)-1 && errno == EINVAL);
    CHECK(shmat(-5, p, SHM_REMAP) == (void *)-1 && errno == EINVAL);
    int over = is_free ? 0 : SHM_REMAP;
    CHECK(shmat(id, p + 100, over | SHM_RND) == p && attached(id) == 1);
    is(p, 0, 0, BYTES);
    use(p, BYTES, 1);
    CHECK(shmat(id, p, 0) == (void *)-1 && errno == EINVAL && attached(id) >= 1);
    CHECK(shmdt(p + PAGE) == -1 && errno == EINVAL);
    CHECK(shmdt(p) == 0 && attached(id) == 0);
    CHECK(load(p) == SIGSEGV && store(p + BYTES - 1) == SIGSEGV && !is_there(p + PAGE));
    CHECK(shmdt(p) == -1 && errno == EINVAL);
    /* It has what was written; it is only read. */
    CHECK(shmat(id, p, SHM_RDONLY) == p);
    check_all(p, BYTES);
    has(p, BYTES, PROT_READ);
    CHECK(shmdt(p) == 0);
    /* Twice in a row. */
    CHECK(shmat(half, p, 0) == p && shmat(half, p + HALF, 0) == p + HALF && attached(half) == 2);
    strcpy(p + 40, "shared");
    CHECK(strcmp(p + HALF + 40, "shared") == 0);
    push_out();
    /* Over one another, and what is left of it. */
    CHECK(shmat(id, p, SHM_REMAP) == p && attached(id) == 1 && attached(half) == 0);
    CHECK(munmap(p + HALF, PAGE) == 0 && munmap(p, PAGE) == 0);
    CHECK(load(p) == SIGSEGV && load(p + HALF) == SIGSEGV && p[HALF - 1] == letter(HALF - 1));
    CHECK(mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
    *p = 8;
    CHECK(shmdt(p) == 0 && attached(id) == 0 && *p == 8);
    CHECK(load(p + PAGE) == SIGSEGV && load(p + HALF + PAGE) == SIGSEGV && load(p + BYTES - 1) == SIGSEGV);
    CHECK(munmap(p, PAGE) == 0);
    /* It moves, and is detached where it is by then. */
    CHECK(shmat(id, p, 0) == p);
    check_all(p, BYTES);
    move(p, BYTES);
    CHECK(attached(id) == 1);
    char *room = mmap(NULL, BYTES, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(mremap(p, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
    CHECK(shmdt(p) == -1 && errno == EINVAL && shmdt(room) == 0 && attached(id) == 0 && !is_there(room));
    /* One that is marked to go is there until then, and in a child. */
    CHECK(shmat(id, p, 0) == p && shmctl(id, IPC_RMID, NULL) == 0);
    check_all(p, BYTES);
    in_a_child(p, BYTES, 1);
    pid_t child = fork();
    if (child == 0) _exit(shmdt(p) == 0 && load(p) == SIGSEGV ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    check_all(p, BYTES);
    CHECK(shmdt(p) == 0 && shmctl(half, IPC_RMID, NULL) == 0);
    CHECK(mmap(p, BYTES, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
}

static void at_a_place(int access, enum unmapped unmapped, int how) {
    for (int what = 0; what < 7; what++) {
        if (what == 6 && how != OVER || what < 6 && how != OVER && what % 3 == how % 2) continue;
        char *all, *p;
        size_t whole;
        p = reserve(access, unmapped, &all, &whole);
        /* What fails leaves the place what it is. */
        CHECK(mmap(p, BYTES, RW, MAP_SHARED | flags_of[how], file, 100) == MAP_FAILED && errno == EINVAL);
        if (unmapped != NOT) CHECK(load(p) == SIGSEGV && !is_there(p));
        if (what == 0) anonymous(p, how, MAP_PRIVATE);
        if (what == 1) anonymous(p, how, MAP_SHARED);
        if (what == 2) one_file(p, how, MAP_PRIVATE, file);
        if (what == 3) one_file(p, how, MAP_SHARED, file);
        if (what == 4) one_file(p, how, MAP_SHARED, memory);
        if (what == 5) ring(p, how, memory);
        if (what == 6) segments(p, unmapped != NOT);
        if (how == INTO)
            CHECK(mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == MAP_FAILED && errno == EEXIST);
        /* Once more, in another way. */
        CHECK(munmap(p, BYTES) == 0);
        CHECK(mmap(p, PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == p);
        CHECK(*p == 0 && load(p + PAGE) == SIGSEGV);
        CHECK(mmap(p, BYTES, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == p);
        has(p, BYTES, PROT_READ);
        if (unmapped == IN_PART && access == RW) {
            is(all, 9, 0, BYTES);
            is(all, 9, 2 * BYTES, whole);
        }
        give_back(all, whole);
        is(beside, 3, 0, BYTES);
    }
}

/* Aligned allocations: more is reserved, both ends go, and come back later. */
static void aligned(void) {
    char *all = mmap(NULL, 4 * BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *p = (char *)(((size_t)all + BYTES - 1) & ~(BYTES - 1)), *end = all + 4 * BYTES;
    if (p > all) CHECK(munmap(all, p - all) == 0);
    CHECK(munmap(p + BYTES, end - (p + BYTES)) == 0);
    CHECK(mprotect(p, BYTES, RW) == 0);
    write_all(p, BYTES);
    push_out();
    CHECK(mmap(p + BYTES, BYTES, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == p + BYTES);
    memset(p + BYTES, 4, BYTES);
    push_out();
    check_all(p, BYTES);
    is(p + BYTES, 4, 0, BYTES);
    CHECK(munmap(p, 2 * BYTES) == 0);
    /* All of it goes, and comes back as a part at a time. */
    for (char *at = p; at < p + 2 * BYTES; at += HALF) {
        CHECK(mmap(at, HALF, RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == at);
        is(at, 0, 0, HALF);
        memset(at, 6, HALF);
    }
    push_out();
    is(p, 6, 0, 2 * BYTES);
    CHECK(munmap(p, 2 * BYTES) == 0);
}

/* As many places as are unmapped one after the other are there still. */
static void many(void) {
    enum { PLACES = 16 };
    char *places[PLACES];
    size_t bytes[PLACES];
    for (int i = 0; i < PLACES; i++) {
        bytes[i] = (i % 4 + 1) * 5 * 64 * 1024;
        places[i] = mmap(NULL, bytes[i], RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(places[i] != MAP_FAILED);
        memset(places[i], 1, bytes[i]);
    }
    for (int i = 0; i < PLACES; i++) CHECK(munmap(places[i], bytes[i]) == 0);
    char *blocks[PLACES];
    for (int i = 0; i < PLACES; i++) {
        CHECK(blocks[i] = malloc(100000));
        memset(blocks[i], 50 + i, 100000);
    }
    for (int i = 0; i < PLACES; i++) {
        CHECK(mmap(places[i], bytes[i], RW, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) == places[i]);
        is(places[i], 0, 0, bytes[i]);
        memset(places[i], 2 + i, bytes[i]);
    }
    push_out();
    for (int i = 0; i < PLACES; i++) {
        is(places[i], (char)(2 + i), 0, bytes[i]);
        is(blocks[i], (char)(50 + i), 0, 100000);
        free(blocks[i]);
        CHECK(munmap(places[i], bytes[i]) == 0);
    }
}

/* The same in a block of malloc's, which is freed with what lies in it. */
static void in_a_block(void) {
    for (int what = 0; what < 4; what++) {
        size_t whole = 4 * BYTES;
        char *block = ghost(whole), *p = block + BYTES;
        memset(block, 9, whole);
        push_out();
        if (what == 0) one_file(p, OVER, MAP_SHARED, file);
        if (what == 1) ring(p, OVER, memory);
        if (what == 2) segments(p, 0);
        if (what == 3) anonymous(p, OVER, MAP_SHARED);
        if (what != 2) {
            CHECK(munmap(p, BYTES) == 0);
            CHECK(load(p) == SIGSEGV && store(p + BYTES - 1) == SIGSEGV && !is_there(p));
            ring(p, INTO, memory);
        }
        is(block, 9, 0, BYTES);
        is(block, 9, 2 * BYTES, whole);
        free(block);
        /* Nothing of it is in what comes there. */
        for (int round = 0; round < 3; round++) {
            block = ghost(whole);
            memset(block, 5, whole);
            is(block, 5, 0, whole);
            free(block);
        }
    }
}

/* Reservations that nobody used, more of them than anybody has. */
static void unused(void) {
    enum { PLACES = 300 };
    static char *places[PLACES];
    for (int i = 0; i < PLACES; i++) {
        places[i] = mmap(NULL, 4 * BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(places[i] != MAP_FAILED);
    }
    for (int i = 0; i < PLACES; i++) CHECK(munmap(places[i], 4 * BYTES) == 0);
    for (int i = 0; i < PLACES; i++) {
        char *p = places[i] + i % 4 * BYTES;
        for (size_t half = 0; half < BYTES; half += HALF)
            CHECK(mmap(p + half, HALF, RW, MAP_SHARED | MAP_FIXED, memory, 0) == p + half);
        p[HALF + i] = (char)i;
        CHECK(p[i] == (char)i);
    }
    for (int i = 0; i < PLACES; i++) CHECK(munmap(places[i], 4 * BYTES) == 0);
}

/* What was unmapped behind a mapping is room for it to get longer where it is. */
static void longer(void) {
    char *p = mapping(4 * BYTES, 8);
    CHECK(munmap(p + BYTES, 3 * BYTES) == 0);
    CHECK(mremap(p, BYTES, 2 * BYTES, 0) == p);
    is(p, 8, 0, BYTES);
    is(p, 0, BYTES, 2 * BYTES);
    CHECK(load(p + 2 * BYTES) == SIGSEGV);
    memset(p + BYTES, 9, BYTES);
    push_out();
    is(p, 9, BYTES, 2 * BYTES);
    CHECK(mmap(p + 2 * BYTES, BYTES, PROT_READ, MAP_PRIVATE | MAP_FIXED_NOREPLACE, file, 0) == p + 2 * BYTES);
    CHECK(mremap(p, 2 * BYTES, 3 * BYTES, 0) == MAP_FAILED && errno == ENOMEM);
    CHECK(munmap(p, 4 * BYTES) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    /* Large blocks are mappings of their own, and no part of a heap. */
    mallopt(M_MMAP_THRESHOLD, 128 << 10);
    /* Small, as it is touched often: the limit is smaller. */
    prepare("2500000");
    catch_faults();
    char name[4096];
    snprintf(name, sizeof name, "%s/vacated.bytes", argv[1]);
    file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    memory = memfd_create("ring", 0);
    CHECK(file >= 0 && memory >= 0 && ftruncate(memory, BYTES) == 0 && pipe(pipes) == 0);
    beside = mapping(BYTES, 3);
    for (int closed = 0; closed < 2; closed++)
        for (int unmapped = NOT; unmapped < UNMAPPED; unmapped++)
            for (int how = OVER; how < WAYS; how++) {
                if (unmapped == NOT && how != OVER) continue;
                at_a_place(closed ? PROT_NONE : RW, unmapped, how);
            }
    aligned();
    many();
    in_a_block();
    unused();
    longer();
    puts("ok");
    return 0;
}
