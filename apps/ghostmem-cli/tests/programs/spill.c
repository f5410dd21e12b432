/* Writes and checks more memory than there is room for, in the way that is asked
 * for; prints "ok" at the end. */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t *words;
static size_t count;

#define CHECK(condition)                                                    \
    do {                                                                    \
        if (!(condition)) {                                                 \
            fprintf(stderr, "line %d: not so: %s\n", __LINE__, #condition); \
            _exit(1);                                                       \
        }                                                                   \
    } while (0)

/* Every other page does not compress. */
static uint64_t word(size_t i, uint64_t round) {
    const uint64_t mixed = (i + 1 + (round << 40)) * UINT64_C(0x9E3779B97F4A7C15);
    return i & 512 ? mixed >> 44 : mixed ^ mixed >> 33;
}

static void fill(uint64_t round) {
    for (size_t i = 0; i < count; i++) {
        words[i] = word(i, round);
    }
}

static void check(uint64_t round) {
    for (size_t i = 0; i < count; i++) {
        CHECK(words[i] == word(i, round));
    }
}

static void *check_at_random(void *seed) {
    uint64_t state = (uintptr_t)seed * 77 + 1;
    for (int n = 0; n < 20000; n++) {
        state = state * UINT64_C(6364136223846793005) + 1442695040888963407;
        const size_t i = (state >> 20) % count;
        CHECK(words[i] == word(i, 1));
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    count = (size_t)atol(argv[1]) << 20 >> 3;
    words = malloc(count * 8);
    CHECK(words != NULL);
    fill(1);
    if (strcmp(argv[2], "whole") == 0) {
        check(1);
        pthread_t threads[4];
        for (int t = 0; t < 4; t++) {
            CHECK(pthread_create(&threads[t], NULL, check_at_random,
                                 (void *)(uintptr_t)t) == 0);
        }
        for (int t = 0; t < 4; t++) {
            CHECK(pthread_join(threads[t], NULL) == 0);
        }
        fill(2);
        check(2);
    } else if (strcmp(argv[2], "fork") == 0) {
        for (uint64_t child = 0; child < 3; child++) {
            const pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                check(1 + child);
                fill(50);
                check(50);
                _exit(0);
            }
            /* Both at once. */
            fill(2 + child);
            check(2 + child);
            int status;
            CHECK(waitpid(pid, &status, 0) == pid && status == 0);
            check(2 + child);
        }
    } else if (strcmp(argv[2], "close") == 0) {
        for (int round = 0; round < 3; round++) {
            for (int fd = 3; fd < 4096; fd++) {
                close(fd);
            }
            close_range(3, ~0U, 0);
            check(1 + round);
            const pid_t pid = fork();
            CHECK(pid >= 0);
            if (pid == 0) {
                closefrom(3);
                check(1 + round);
                _exit(0);
            }
            fill(2 + round);
            int status;
            CHECK(waitpid(pid, &status, 0) == pid && status == 0);
        }
    } else if (strcmp(argv[2], "endless") == 0) {
        for (uint64_t round = 2;; round++) {
            fill(round);
        }
    }
    puts("ok");
    return 0;
}
