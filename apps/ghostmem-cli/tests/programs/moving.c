/* Mappings that move (mremap) stay locked, and no store of another thread is lost while they
 * do: it is in what was moved, or in the zero pages that are left, or it is refused. A move
 * that is refused changes nothing. */
#define _GNU_SOURCE
#include "access.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define BYTES (64ul << 10)
#define BOTH (MREMAP_MAYMOVE | MREMAP_FIXED)

/* Under ghostmem run, where --limit bounds what can be locked. */
static int is_bounded;

/* Locked memory is not given up, and is in memory. */
static void is_locked(char *p, size_t bytes) {
    static unsigned char in[1024];
    CHECK(bytes / PAGE <= sizeof in && mincore(p, bytes, in) == 0);
    for (size_t at = 0; at < bytes; at += PAGE) {
        errno = 0;
        CHECK(madvise(p + at, PAGE, MADV_DONTNEED) == -1 && errno == EINVAL);
        CHECK(in[at / PAGE] & 1);
    }
}
static void is_not(char *p, size_t bytes) {
    CHECK(madvise(p, bytes, MADV_DONTNEED) == 0);
    is(p, 0, 0, bytes);
}

static void locks(void) {
    /* Wherever there is room, as it gets longer. */
    char *p = mapping(BYTES, 3);
    CHECK(mlock(p, BYTES) == 0);
    char *q = mremap(p, BYTES, 4 * BYTES, MREMAP_MAYMOVE);
    CHECK(q != MAP_FAILED);
    evict();
    is_locked(q, 4 * BYTES);
    is(q, 3, 0, BYTES);
    is(q, 0, BYTES, 4 * BYTES);
    CHECK(munlock(q, 4 * BYTES) == 0);
    is_not(q, 4 * BYTES);
    CHECK(munmap(q, 4 * BYTES) == 0);
    /* Over another, and shorter. */
    p = mapping(BYTES, 4);
    char *over = mapping(4 * BYTES, 5);
    CHECK(mlock(p, BYTES) == 0);
    evict();
    CHECK(mremap(p, BYTES, BYTES / 2, BOTH, over + BYTES) == over + BYTES);
    evict();
    is_locked(over + BYTES, BYTES / 2);
    is(over, 5, 0, BYTES);
    is(over + BYTES, 4, 0, BYTES / 2);
    is_not(over, BYTES);
    is_not(over + 2 * BYTES, BYTES);
    /* To a place that is no heap's. */
    char *room = mmap(NULL, BYTES, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(mremap(over + BYTES, BYTES / 2, BYTES / 2, BOTH, room) == room);
    is_locked(room, BYTES / 2);
    is(room, 4, 0, BYTES / 2);
    CHECK(munlock(room, BYTES / 2) == 0);
    is_not(room, BYTES / 2);
    /* The lock goes with the pages, and not with what is left. */
    p = mapping(BYTES, 6);
    CHECK(mlock(p, BYTES) == 0);
    q = mremap(p, BYTES, BYTES, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(q != MAP_FAILED && q != p);
    is(q, 6, 0, BYTES);
    is_locked(q, BYTES);
    is(p, 0, 0, BYTES);
    memset(p, 7, BYTES);
    is_not(p, BYTES);
    /* With less access, too. */
    CHECK(mprotect(q, BYTES, PROT_READ) == 0);
    CHECK(mremap(q, BYTES, BYTES, BOTH, p) == p);
    is_locked(p, BYTES);
    has(p, BYTES, PROT_READ);
    is(p, 6, 0, BYTES);
    CHECK(munlock(p, BYTES) == 0 && mprotect(p, BYTES, RW) == 0);
    is_not(p, BYTES);
    /* What is unmapped is locked no longer, and there is room for as much again. */
    for (int round = 0; round < 100; round++) {
        p = mapping(4 * BYTES, 1);
        CHECK(mlock(p, 4 * BYTES) == 0);
        q = mremap(p, 4 * BYTES, 5 * BYTES, MREMAP_MAYMOVE);
        CHECK(q != MAP_FAILED && munmap(q, 5 * BYTES) == 0);
    }
}

enum { PAGES = 200, WORDS = 4, WRITERS = 2 };

static char *_Atomic area;
static atomic_int stop;
static atomic_ulong written, refused;
static unsigned long last[WRITERS][PAGES][WORDS];
/* Where a writer stores just now. */
static char *_Atomic at_work[WRITERS];
static _Thread_local sigjmp_buf elsewhere;
static _Thread_local volatile sig_atomic_t may_be_refused;

static void met(int number) {
    if (may_be_refused) siglongjmp(elsewhere, number);
    signal(number, SIG_DFL);
}

/* Stores of its own to words of its own: each page is stored to again and again. What is
 * refused was not stored. */
static void *writer(void *arg) {
    long id = (long)arg;
    volatile unsigned seed = (unsigned)id * 7919 + 1;
    for (volatile unsigned long value = 1; !stop; value++) {
        seed = seed * 1103515245 + 12345;
        volatile unsigned page = (seed >> 16) % PAGES, word = (seed >> 8) % WORDS;
        char *p;
        /* Seen by who looks whether anybody stores where the area was. */
        do at_work[id] = p = area;
        while (p != area);
        volatile unsigned long *place = (void *)(p + page * PAGE);
        if (sigsetjmp(elsewhere, 1)) {
            may_be_refused = 0;
            refused++;
            continue;
        }
        may_be_refused = 1;
        place[id * WORDS + word] = value;
        may_be_refused = 0;
        last[id][page][word] = value;
        written++;
    }
    return NULL;
}

static unsigned long word_of(const char *p, long id, int page, int word) {
    return ((const unsigned long *)(p + page * PAGE))[id * WORDS + word];
}

static pthread_t threads[WRITERS];

static void begin(char *p) {
    area = p;
    memset(last, 0, sizeof last);
    stop = 0;
    written = 0;
    for (long id = 0; id < WRITERS; id++) CHECK(pthread_create(&threads[id], NULL, writer, (void *)id) == 0);
}
static void have_written(unsigned long more) {
    unsigned long until = written + more;
    while (written < until) usleep(100);
}
static void end(void) {
    stop = 1;
    for (int id = 0; id < WRITERS; id++) CHECK(pthread_join(threads[id], NULL) == 0);
}
/* What a writer stored last is `there`, if anything is, else `here`. */
static void are_there(const char *there, const char *here) {
    for (int page = 0; page < PAGES; page++) {
        CHECK(here[page * PAGE + 2000] == (page % 3 ? (char)page : 0));
        for (long id = 0; id < WRITERS; id++)
            for (int word = 0; word < WORDS; word++) {
                unsigned long left = there ? word_of(there, id, page, word) : 0;
                unsigned long is = word_of(here, id, page, word), should = last[id][page][word];
                if (left ? left != should : is != should) {
                    printf("wrong: page %d is %lu where it was and %lu where it is, not %lu\n", page, left, is, should);
                    exit(1);
                }
            }
    }
}
/* Some pages hold something, some are in memory, some nobody has touched. */
static char *filled(int round) {
    char *p = mmap(NULL, PAGES * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    for (int page = 0; page < PAGES; page++)
        if (page % 3) p[page * PAGE + 2000] = (char)page;
    if (round % 2) evict();
    return p;
}

static void stores(int round) {
    char *p = filled(round);
    begin(p);
    have_written(2000);
    char *moved = mremap(p, PAGES * PAGE, PAGES * PAGE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0);
    CHECK(moved != MAP_FAILED);
    have_written(100);
    end();
    evict();
    are_there(p, moved);
    CHECK(munmap(p, PAGES * PAGE) == 0 && munmap(moved, PAGES * PAGE) == 0);
}

/* The area is elsewhere: the writers know. Where it was nothing else comes. */
static char *is_at(char *p, char *was, size_t bytes) {
    CHECK(p != MAP_FAILED);
    if (p != was) {
        char *none = mmap(was, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE | MAP_NORESERVE, -1, 0);
        CHECK(none == was);
    }
    area = p;
    for (int id = 0; id < WRITERS; id++)
        while (at_work[id] != p) usleep(10);
    return p;
}

/* Back and forth, longer and shorter. */
static void back_and_forth(int round) {
    const size_t bytes = PAGES * PAGE;
    char *p = filled(round), *one = p;
    char *other = mmap(NULL, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    CHECK(other != MAP_FAILED);
    begin(p);
    for (int move = 0; move < 10; move++) {
        have_written(500);
        p = is_at(mremap(p, bytes, 2 * bytes, BOTH, other), p, bytes);
        have_written(500);
        /* Where there is room, or where it is. */
        char *q = mremap(p, 2 * bytes, 3 * bytes, MREMAP_MAYMOVE);
        CHECK(q != MAP_FAILED);
        if (q == p) {
            CHECK(munmap(p + 2 * bytes, bytes) == 0);
        } else {
            p = is_at(q, p, 2 * bytes);
            have_written(500);
            is_at(mremap(p, 3 * bytes, bytes, BOTH, other), p, 3 * bytes);
            CHECK(munmap(p, 3 * bytes) == 0);
            p = other;
        }
        have_written(500);
        p = is_at(mremap(p, bytes, bytes, BOTH, one), p, bytes);
        CHECK(mmap(other, 2 * bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == other);
    }
    have_written(100);
    end();
    evict();
    are_there(NULL, p);
    CHECK(munmap(p, bytes) == 0 && munmap(other, 2 * bytes) == 0);
}

/* A child of a fork meanwhile has all of it, in one place. */
static atomic_int forks;
static void *forker(void *arg) {
    (void)arg;
    while (!stop) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            /* Whichever place it is, what is there may be stored to. */
            volatile char *p = area;
            may_be_refused = 1;
            if (sigsetjmp(elsewhere, 1) == 0)
                for (int page = 0; page < PAGES; page++) {
                    if (p[page * PAGE + 2000] != (page % 3 ? (char)page : 0)) _exit(1);
                    p[page * PAGE + 2001] = 1;
                }
            _exit(0);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        forks++;
    }
    return NULL;
}
static void forking(void) {
    char *p = filled(1);
    stop = 0;
    area = p;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, forker, NULL) == 0);
    while (forks < 20) {
        char *q = mmap(NULL, 2 * PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        CHECK(q != MAP_FAILED);
        CHECK(mremap(p, PAGES * PAGE, PAGES * PAGE, BOTH, q) == q);
        area = p = q;
    }
    stop = 1;
    CHECK(pthread_join(thread, NULL) == 0);
}

/* What is refused stays as it was, for the writers too. */
static void is_refused(char *p, size_t bytes, size_t more, int code) {
    errno = 0;
    CHECK(mremap(p, bytes, more, MREMAP_MAYMOVE) == MAP_FAILED && errno == code);
}
static void refusals(int may_lock) {
    const size_t bytes = PAGES * PAGE;
    struct rlimit before, little = {512ul << 20, RLIM_INFINITY};
    CHECK(getrlimit(RLIMIT_AS, &before) == 0);
    little.rlim_max = before.rlim_max;
    char *p = filled(1), *locked = mapping(BYTES, 8), *closed = mapping(BYTES, 9);
    CHECK(!may_lock || mlock(locked, BYTES) == 0);
    CHECK(mprotect(closed, BYTES, PROT_NONE) == 0);
    begin(p);
    have_written(500);
    for (int round = 0; round < 20; round++) {
        CHECK(setrlimit(RLIMIT_AS, &little) == 0);
        is_refused(p, bytes, 1ul << 30, ENOMEM);
        is_refused(closed, BYTES, 1ul << 30, ENOMEM);
        is_refused(locked, BYTES, 1ul << 30, ENOMEM);
        CHECK(setrlimit(RLIMIT_AS, &before) == 0);
        have_written(100);
        /* More than is held. */
        if (may_lock && is_bounded) is_refused(locked, BYTES, 64ul << 20, EAGAIN);
    }
    end();
    evict();
    are_there(NULL, p);
    if (may_lock) is_locked(locked, BYTES);
    has(closed, BYTES, PROT_NONE);
    CHECK(mprotect(closed, BYTES, PROT_READ) == 0);
    is(closed, 9, 0, BYTES);
    has(locked, BYTES, RW);
    is(locked, 8, 0, BYTES);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    is_bounded = getenv("BACKEND") != NULL;
    prepare("6000000");
    catch_faults();
    /* Where little may be locked, there is little to see. */
    static char much[8 * BYTES];
    int may_lock = mlock(much, sizeof much) == 0;
    munlock(much, sizeof much);
    if (may_lock) locks();
    for (int round = 0; round < 40; round++) stores(round);
    refusals(may_lock);
    signal(SIGSEGV, met);
    signal(SIGBUS, met);
    for (int round = 0; round < 6; round++) back_and_forth(round);
    CHECK(refused > 0);
    forking();
    puts("ok");
    return 0;
}
