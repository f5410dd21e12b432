/* Protection keys: a key that nobody has is refused, whatever the access; one that the program
 * has counts for memory from malloc, loads, stores and system calls, until it is taken off. */
#define _GNU_SOURCE
#include "twice.h"
#include <setjmp.h>
#include <signal.h>
#include <sys/syscall.h>

#define RW (PROT_READ | PROT_WRITE)
#define PAGES 32

static sigjmp_buf back;
static siginfo_t told;
static void caught(int number, siginfo_t *info, void *context) {
    (void)context;
    told = *info;
    siglongjmp(back, number);
}

static void without_one(const char *folder) {
    (void)folder;
    char *p = memory(PAGES * PAGE);
    memset(p, 5, PAGES * PAGE);
    if (which == 1) evict();
    int accesses[] = {PROT_NONE, PROT_READ, RW, RW | PROT_EXEC, 1 << 20};
    int keys[] = {-2, -1, 0, 1, 14, 15, 16, 1 << 30};
    for (int a = 0; a < 5; a++)
        for (int k = 0; k < 8; k++) {
            /* On processors with keys, those given: the same for both. */
            note("access %d, key %d\n", accesses[a], keys[k]);
            /* Code makes it ordinary. */
            if (accesses[a] & PROT_EXEC && (keys[k] == -1 || keys[k] == 0)) continue;
            ANSWER(syscall(SYS_pkey_mprotect, p, 4 * PAGE, accesses[a], keys[k]));
            ANSWER(syscall(SYS_pkey_mprotect, p, 0ul, accesses[a], keys[k]));
            ANSWER(syscall(SYS_pkey_mprotect, p + 1, PAGE, accesses[a], keys[k]));
            CHECK(mprotect(p, 4 * PAGE, RW) == 0);
            for (size_t at = 0; at < PAGES * PAGE; at++) CHECK(p[at] == 5);
        }
}

/* The signal of an access under some rights, and what it says; 0: none. The rights are as
 * before: a handler is left with its own. */
static int key, rights;
static int touched(volatile char *p, int stores) {
    memset(&told, 0, sizeof told);
    int number = sigsetjmp(back, 1);
    if (number == 0) {
        CHECK(pkey_set(key, rights) == 0);
        if (stores) *p = *p;
        else (void)*p;
    }
    CHECK(pkey_set(key, rights) == 0);
    if (number) CHECK(number == SIGSEGV && told.si_code == 4 && told.si_addr == (void *)p && told.si_pkey == (unsigned)key);
    return number;
}

static void with_one(char *p, size_t bytes) {
    int fds[2];
    CHECK(pipe(fds) == 0);
    size_t half = bytes / 2 & ~(PAGE - 1);
    for (size_t at = 0; at < bytes; at++) p[at] = at / 7;
    evict();
    CHECK(pkey_mprotect(p, half, RW, key) == 0);
    for (int round = 0; round < 3; round++) {
        int all[] = {0, PKEY_DISABLE_WRITE, PKEY_DISABLE_ACCESS};
        rights = all[round];
        for (size_t at = 9; at < bytes; at += PAGE) {
            int is_in = at < half;
            CHECK(!touched(p + at, 0) == !(is_in && rights == PKEY_DISABLE_ACCESS));
            CHECK(!touched(p + at, 1) == !(is_in && rights));
            ssize_t n = write(fds[1], p + at, 3);
            CHECK(is_in && rights == PKEY_DISABLE_ACCESS ? n == -1 && errno == EFAULT : n == 3);
            if (n == -1) CHECK(write(fds[1], "abc", 3) == 3);
            char kept[3];
            n = read(fds[0], p + at, 3);
            CHECK(is_in && rights ? n == -1 && errno == EFAULT : n == 3);
            if (n == -1) CHECK(read(fds[0], kept, 3) == 3);
        }
        rights = 0;
        CHECK(pkey_set(key, 0) == 0);
        evict();
        for (size_t at = 0; at < bytes; at++) CHECK(p[at] == (char)(at / 7));
    }
    /* Off again. */
    CHECK(pkey_mprotect(p, half, RW, 0) == 0);
    rights = PKEY_DISABLE_ACCESS;
    for (size_t at = 9; at < bytes; at += PAGE) CHECK(!touched(p + at, 1));
    CHECK(pkey_set(key, 0) == 0);
    CHECK(pkey_mprotect(p, half, PROT_READ, key) == 0);
    close(fds[0]);
    close(fds[1]);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    both(without_one, argv[1]);
    key = pkey_alloc(0, 0);
    if (key >= 0) {
        struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
        CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
        for (int round = 0; round < 3; round++) {
            char *p = ghost(64 * PAGE);
            with_one(p, 64 * PAGE);
            free(p);
            /* What comes in its place has no key. */
            rights = PKEY_DISABLE_ACCESS;
            p = ghost(64 * PAGE);
            for (size_t at = 0; at < 64 * PAGE; at += PAGE) CHECK(!touched(p + at, 1));
            CHECK(pkey_set(key, 0) == 0);
            free(p);
        }
        char *p = mmap(NULL, 64 * PAGE, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(p != MAP_FAILED);
        with_one(p, 64 * PAGE);
        CHECK(munmap(p, 64 * PAGE) == 0);
        /* Closed, and nothing in it. */
        p = mmap(NULL, 64 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(p != MAP_FAILED && pkey_mprotect(p, 64 * PAGE, RW, key) == 0);
        rights = PKEY_DISABLE_WRITE;
        CHECK(!touched(p, 0) && touched(p + PAGE, 1));
    }
    puts("ok");
    return 0;
}
