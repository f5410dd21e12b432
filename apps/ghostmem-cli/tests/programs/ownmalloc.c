/* A program with an allocator of its own, which has a lock while it asks for a mapping. */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(what) do { if (!(what)) { printf("wrong: line %d: %s\n", __LINE__, #what); _exit(1); } } while (0)

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *next, *end;

static void *take(size_t bytes, size_t align) {
    pthread_mutex_lock(&lock);
    char *place = (char *)(((unsigned long)next + 16 + align - 1) & ~(align - 1));
    if (!next || place + bytes > end) {
        size_t room = (bytes + align + (1 << 20)) & ~4095ul;
        next = mmap(NULL, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        end = next + room;
        place = (char *)(((unsigned long)next + 16 + align - 1) & ~(align - 1));
    }
    ((size_t *)place)[-1] = bytes;
    next = place + bytes;
    pthread_mutex_unlock(&lock);
    return place;
}

void *malloc(size_t bytes) { return take(bytes, 16); }
void free(void *block) { (void)block; }
void *calloc(size_t count, size_t bytes) { return malloc(count * bytes); }
void *realloc(void *block, size_t bytes) {
    void *other = malloc(bytes);
    if (block) {
        size_t before = ((size_t *)block)[-1];
        memcpy(other, block, before < bytes ? before : bytes);
    }
    return other;
}
void *memalign(size_t align, size_t bytes) { return take(bytes, align); }
void *aligned_alloc(size_t align, size_t bytes) { return take(bytes, align); }
int posix_memalign(void **out, size_t align, size_t bytes) {
    *out = take(bytes, align);
    return 0;
}
size_t malloc_usable_size(void *block) { return block ? ((size_t *)block)[-1] : 0; }

static void *fills(void *number) {
    for (int i = 0; i < 50; i++) {
        char *block = malloc(20000);
        memset(block, (int)(long)number, 20000);
        CHECK(block[19999] == (char)(long)number);
    }
    return number;
}

int main(void) {
    char *data = malloc(8 << 20);
    for (int i = 0; i < 8 << 20; i++) data[i] = (char)(i >> 12);
    pthread_t threads[4];
    for (long i = 0; i < 4; i++) CHECK(pthread_create(&threads[i], NULL, fills, (void *)i) == 0);
    for (int i = 0; i < 4; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    pid_t child = fork();
    int status;
    if (child == 0) {
        for (int i = 0; i < 8 << 20; i += 4096) if (data[i] != (char)(i >> 12)) _exit(6);
        _exit(5);
    }
    CHECK(waitpid(child, &status, 0) == child && status == 5 << 8);
    for (int i = 0; i < 8 << 20; i++) CHECK(data[i] == (char)(i >> 12));
    puts("ok");
    return 0;
}
