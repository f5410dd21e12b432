/* Threads that allocate and free blocks of 64 bytes to 1 MiB of text without pause, each
 * looked at before it is freed: allocations THREADS MIB TIMES
 * All together hold MIB, and allocate that so many times. */
#include <pthread.h>
#include "noise.h"

#define KEPT 8192

struct block {
    uint64_t *words, key;
    size_t count;
};
struct thread {
    pthread_t thread;
    uint64_t number;
    size_t held_most, total;
};

static void give_back(struct block *block, size_t *held) {
    look_at_text(block->words, block->count, block->key);
    free(block->words);
    *held -= block->count * 8;
    block->words = NULL;
}

static void *work(void *argument) {
    struct thread *thread = argument;
    struct block *kept = calloc(KEPT, sizeof *kept);
    uint64_t state = seed_of(thread->number);
    size_t held = 0, refused = 0;
    if (!kept)
        return (void *)1;
    for (size_t total = 0; total < thread->total;) {
        struct block *block = kept + next(&state) % KEPT;
        if (block->words)
            give_back(block, &held);
        else if (held < thread->held_most) {
            size_t count = (size_t)8 << next(&state) % 15;
            block->words = malloc(count * 8);
            total += count * 8;
            if (!block->words) {
                refused++;
                continue;
            }
            block->count = count;
            block->key = next(&state) % 100000;
            fill_text(block->words, count, block->key);
            held += count * 8;
        }
    }
    for (size_t at = 0; at < KEPT; at++)
        if (kept[at].words)
            give_back(kept + at, &held);
    free(kept);
    if (refused)
        fprintf(stderr, "%zu refused\n", refused);
    return NULL;
}

int main(int count, char **arguments) {
    if (count < 4)
        return 2;
    static struct thread threads[64];
    size_t number = strtoul(arguments[1], NULL, 10);
    size_t share = strtoul(arguments[2], NULL, 10) * MIB / number, bad = 0;
    setvbuf(stdout, NULL, _IONBF, 0);
    if (number < 1 || number > 64)
        return 2;
    for (size_t at = 0; at < number; at++) {
        threads[at] = (struct thread){.number = at, .held_most = share, .total = share * strtoul(arguments[3], NULL, 10)};
        if (pthread_create(&threads[at].thread, NULL, work, threads + at))
            return 4;
    }
    for (size_t at = 0; at < number; at++) {
        void *ended;
        pthread_join(threads[at].thread, &ended);
        bad += ended != NULL;
    }
    puts(bad ? "failed" : "ok");
    return bad > 0;
}
