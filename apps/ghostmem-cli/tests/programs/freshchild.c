/* What a child finds of pages that were away when it was made: by touching them before it calls
 * anything, by several threads of its own at once, in a child of its own, and where threads of its
 * parent went on storing, so that pages left, came and were written while it was made. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 1536, WORDS = 512, PARTS = 6, WRITERS = 3, ROUNDS = 12 };
typedef volatile uint64_t Word;
static Word *data;
static Word *written[WRITERS];
static int is_over;

static uint64_t value(size_t page, size_t word, uint64_t round) {
    uint64_t mixed = (page * WORDS + word + 1) * 0x9E3779B97F4A7C15u;
    /* Every second page does not shrink. */
    return round << 48 | (page % 2 ? mixed >> 16 : page);
}

static void put(size_t page, uint64_t round) {
    for (size_t word = 0; word < WORDS; word += 7) data[page * WORDS + word] = value(page, word, round);
}

/* Calls nothing. */
static int is_right(size_t page, uint64_t round) {
    for (size_t word = 0; word < WORDS; word += 7)
        if (data[page * WORDS + word] != value(page, word, round)) return 0;
    return 1;
}

struct part { size_t first; uint64_t round; int right; };

/* A sixth of the pages, in an order of its own: the next round's. */
static void *go_on(void *given) {
    struct part *part = given;
    part->right = 1;
    for (size_t i = 0; i < PAGES / PARTS; i++) {
        size_t page = (i * 37 % (PAGES / PARTS)) * PARTS + part->first;
        part->right &= is_right(page, part->round);
        put(page, part->round + 1);
    }
    for (size_t i = 0; i < PAGES / PARTS; i++) part->right &= is_right(i * PARTS + part->first, part->round + 1);
    return NULL;
}

/* All pages go on by a round, each thread with pages beside those of the others. */
static int by_threads(uint64_t round) {
    pthread_t threads[PARTS];
    struct part parts[PARTS];
    int right = 1;
    for (size_t i = 0; i < PARTS; i++) {
        parts[i] = (struct part){i, round, 0};
        if (pthread_create(&threads[i], NULL, go_on, &parts[i])) return 0;
    }
    for (int i = 0; i < PARTS; i++) right &= !pthread_join(threads[i], NULL) && parts[i].right;
    return right;
}

/* The writers store a round from the front to the back, then the next one. */
static void *keeps_writing(void *given) {
    Word *words = given;
    for (uint64_t round = 1; !__atomic_load_n(&is_over, __ATOMIC_RELAXED); round++)
        for (size_t i = 0; i < PAGES * WORDS; i += 64) words[i] = round << 32 | i;
    return NULL;
}

static int is_a_moment(Word *words) {
    uint64_t now = words[0] >> 32;
    int steps = 0;
    for (size_t i = 0; i < PAGES * WORDS; i += 64) {
        uint64_t round = words[i] >> 32;
        if (round != now) steps++, now--;
        if (round != now || (round && (uint32_t)words[i] != i)) return 0;
    }
    return steps <= 1;
}

static pid_t make_child(int way) {
    if (way == 0) return fork();
    return (pid_t)syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
}

static void ends_well(pid_t child, const char *what) {
    int status = 0;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status) printf("wrong: %s: %#x\n", what, status);
    CHECK(status == 0);
}

/* The first thing a child does is to touch what is away. */
static int in_child(int round) {
    int right = 1;
    for (size_t page = PAGES; page-- > 0;) right &= is_right(page, 0);
    if (!right) return 2;
    if (round % 3 == 0) return 0;
    for (size_t page = 0; page < PAGES; page += 5) put(page, 0);
    for (int i = 0; i < WRITERS; i++)
        if (written[i] && !is_a_moment(written[i])) return 3;
    if (!by_threads(0)) return 4;
    if (round % 3 == 1) return 0;
    pid_t grandchild = fork();
    if (grandchild == 0) {
        for (size_t page = 0; page < PAGES; page++) right &= is_right(page, 1);
        if (!right) _exit(5);
        _exit(by_threads(1) && by_threads(2) ? 0 : 6);
    }
    int status = 0;
    if (!by_threads(1) || !by_threads(2)) return 7;
    if (grandchild < 0 || waitpid(grandchild, &status, 0) != grandchild) return 8;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 9;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    alarm(300);
    prepare(argv[2]);
    data = ghost(PAGES * WORDS * 8);
    for (size_t page = 0; page < PAGES; page++) put(page, 0);
    evict();
    /* By one thread, with all pages away. */
    for (int round = 0; round < 4; round++) {
        evict();
        pid_t child = make_child(round % 2);
        if (child == 0) _exit(in_child(round));
        ends_well(child, "a child of one thread");
    }
    pthread_t threads[WRITERS];
    for (int i = 0; i < WRITERS; i++) {
        written[i] = ghost(PAGES * WORDS * 8);
        CHECK(pthread_create(&threads[i], NULL, keeps_writing, (void *)written[i]) == 0);
    }
    for (int round = 0; round < ROUNDS; round++) {
        pid_t child = make_child(round % 4 == 3);
        if (child == 0) _exit(in_child(round));
        ends_well(child, "a child of several threads");
    }
    __atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
    for (int i = 0; i < WRITERS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    for (int i = 0; i < WRITERS; i++) CHECK(is_a_moment(written[i]));
    for (size_t page = 0; page < PAGES; page++) CHECK(is_right(page, 0));
    puts("ok");
    return 0;
}
