/* Ordinary memory in the place of heap memory moves away, shrinks and is detached, while other
 * threads map memory just there, if there is room: what they got stays what they wrote. */
#define _GNU_SOURCE
#include "access.h"
#include <pthread.h>
#include <stdatomic.h>
#include <sys/ipc.h>
#include <sys/shm.h>
#include <unistd.h>

#define PART (64ul << 10)
#define ROUNDS 600
#define THREADS 3
#define HELD 6

static atomic_int stop;
static atomic_long made, there;
/* Where there is room next. */
static char *_Atomic next;

/* Maps what stays ordinary memory, and looks at it until it gives it back. */
static void *mapper(void *arg) {
    unsigned long *held[HELD] = {0}, number = (unsigned long)arg << 32;
    for (int at = 0; !stop; at = (at + 1) % HELD) {
        for (int i = 0; i < HELD; i++) {
            if (!held[i]) continue;
            for (size_t word = 0; word < PART / 8; word += 512)
                if (held[i][word] != held[i][1] + word) {
                    printf("wrong: %p has %lx, not %lx\n", (void *)&held[i][word], held[i][word], held[i][1] + word);
                    exit(1);
                }
        }
        if (held[at]) CHECK(munmap(held[at], PART) == 0);
        char *wanted = next;
        held[at] = mmap(wanted, PART, RW, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
        CHECK(held[at] != MAP_FAILED);
        number += PART;
        held[at][1] = number;
        for (size_t word = 0; word < PART / 8; word += 512) held[at][word] = number + word;
        made++;
        there += (char *)held[at] == wanted;
    }
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc > 2);
    int memory = memfd_create("part", 0), id = shmget(IPC_PRIVATE, PART, IPC_CREAT | 0600);
    CHECK(memory >= 0 && ftruncate(memory, 2 * PART) == 0 && id >= 0);
    char *text = mmap(NULL, 2 * PART, RW, MAP_SHARED, memory, 0);
    memset(text, 7, 2 * PART);
    pthread_t threads[THREADS];
    for (long t = 0; t < THREADS; t++) CHECK(pthread_create(&threads[t], NULL, mapper, (void *)(t + 1)) == 0);
    for (int round = 0; round < ROUNDS; round++) {
        char *area = mmap(NULL, 4 * PART, RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), *p = area + PART;
        CHECK(area != MAP_FAILED);
        memset(area, 1, 4 * PART);
        int how = round % 6;
        next = p;
        int kind = round % 4 < 2 ? MAP_SHARED : MAP_PRIVATE;
        if (how != 4) CHECK(mmap(p, PART, RW, kind | MAP_FIXED, memory, 0) == p && *p == 7);
        char *to = MAP_FAILED;
        size_t bytes = PART;
        if (how == 0) {
            /* Wherever there is room, as it gets longer. */
            to = mremap(p, PART, bytes = 2 * PART, MREMAP_MAYMOVE);
        } else if (how == 1) {
            /* To a place outside. */
            to = mmap(NULL, PART, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            CHECK(mremap(p, PART, PART, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        } else if (how == 2) {
            /* Over heap memory, and on from there. */
            to = area + 3 * PART;
            CHECK(mremap(p, PART, PART, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to && *to == 7);
        } else if (how == 3) {
            /* Shorter where it is, and away. */
            CHECK(mremap(p, PART, PART / 2, 0) == p);
            to = mmap(NULL, PART / 4, PROT_NONE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
            CHECK(mremap(p, PART / 2, bytes = PART / 4, MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
        } else if (how == 4) {
            CHECK(shmat(id, p, SHM_REMAP) == p);
            memset(p, 7, PART);
            CHECK(shmdt(p) == 0);
        } else {
            /* From outside over heap memory. */
            char *other = mmap(NULL, PART, RW, kind, memory, 0);
            CHECK(mremap(other, PART, PART, MREMAP_MAYMOVE | MREMAP_FIXED, p) == p);
            to = p;
        }
        CHECK(how == 4 || to != MAP_FAILED);
        if (how != 4) is(to, 7, 0, bytes);
        is(area, 1, 0, PART);
        is(area, 1, 2 * PART, 3 * PART);
        if (how < 2 || how == 3) CHECK(munmap(to, bytes) == 0);
        /* What was moved away from may be another thread's by now. */
        CHECK(munmap(area, PART) == 0 && munmap(area + 2 * PART, 2 * PART) == 0);
        if (how == 5) CHECK(munmap(p, PART) == 0);
    }
    stop = 1;
    for (int t = 0; t < THREADS; t++) CHECK(pthread_join(threads[t], NULL) == 0);
    CHECK(made > ROUNDS && shmctl(id, IPC_RMID, NULL) == 0);
    puts("ok");
    return 0;
}
