/* What the kernel writes goes where the program said, and nowhere beside: maps of files
 * longer than their request's number says, the kernel's log, queues, semaphores, keys. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <linux/fiemap.h>
#include <linux/fs.h>
#include <linux/keyctl.h>
#include <mqueue.h>
#include <pthread.h>
#include <sys/ioctl.h>
#include <sys/ipc.h>
#include <sys/klog.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

union semun { int val; struct semid_ds *buf; unsigned short *array; };

enum { EXTENTS = 6, HOLES = 8 };

static int file_with_holes(const char *folder) {
    char name[4096], piece[4096];
    snprintf(name, sizeof name, "%s/holes", folder);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    CHECK(file >= 0 && unlink(name) == 0);
    memset(piece, 'x', sizeof piece);
    for (int hole = 0; hole < HOLES; hole++) CHECK(pwrite(file, piece, sizeof piece, (off_t)hole << 20) == sizeof piece);
    CHECK(fsync(file) == 0);
    return file;
}

/* A request whose answer is longer than its number says; the bytes behind it are another's. */
static void extents(const char *folder) {
    int file = file_with_holes(folder);
    size_t head = sizeof(struct fiemap), each = sizeof(struct fiemap_extent);
    for (int small = 0; small < 2; small++) {
        size_t length = head + EXTENTS * each, guard = 64;
        char *block = small ? calloc(1, length + guard) : ghost(length + guard);
        CHECK(block);
        struct fiemap *map = (struct fiemap *)block;
        memset(block + length, 0x5a, guard);
        map->fm_length = FIEMAP_MAX_OFFSET;
        map->fm_extent_count = EXTENTS;
        evict();
        if (ioctl(file, FS_IOC_FIEMAP, map) != 0) { CHECK(errno == EOPNOTSUPP || errno == ENOTTY); break; }
        CHECK(map->fm_mapped_extents == EXTENTS);
        for (int i = 0; i < EXTENTS; i++) {
            CHECK(map->fm_extents[i].fe_logical == (unsigned long)i << 20 && map->fm_extents[i].fe_length == 4096);
        }
        for (size_t i = 0; i < guard; i++) CHECK(block[length + i] == 0x5a);
    }
    close(file);
}

static volatile int counting = 1;
static void *counts(void *word) {
    while (counting) { ++*(volatile unsigned long *)word; }
    return NULL;
}

/* Another thread stores beside what the kernel fills: no count is lost. */
static void beside(const char *folder) {
    int file = file_with_holes(folder);
    size_t length = sizeof(struct fiemap) + EXTENTS * sizeof(struct fiemap_extent);
    char *block = ghost(length + 64);
    volatile unsigned long *word = (volatile unsigned long *)(block + length);
    struct fiemap *map = (struct fiemap *)block;
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, counts, (void *)word) == 0);
    unsigned long before = 0;
    for (int round = 0; round < 200; round++) {
        map->fm_start = 0;
        map->fm_length = FIEMAP_MAX_OFFSET;
        map->fm_extent_count = EXTENTS;
        if (ioctl(file, FS_IOC_FIEMAP, map) != 0) break;
        CHECK(map->fm_mapped_extents == EXTENTS);
        unsigned long now = *word;
        CHECK(now >= before);
        before = now;
    }
    counting = 0;
    CHECK(pthread_join(thread, NULL) == 0);
    close(file);
}

static void kernel_log(void) {
    int room = 1 << 20;
    char *log = ghost((size_t)room + 4096);
    memset(log + room, 0x5a, 4096);
    evict();
    int got = klogctl(3, log, room);
    CHECK(got >= 0 || errno == EPERM);
    for (int at = 0; at < 4096; at++) CHECK(log[room + at] == 0x5a);
    /* Text to its end. */
    if (got > 0) CHECK(memchr(log, 0, (size_t)got) == NULL);
}

static void queues(void) {
    char name[64];
    snprintf(name, sizeof name, "/ghostmem-%d", (int)getpid());
    struct mq_attr *attributes = ghost(sizeof *attributes);
    attributes->mq_maxmsg = 4;
    attributes->mq_msgsize = 8192;
    evict();
    mqd_t queue = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, attributes);
    if (queue == (mqd_t)-1) { CHECK(errno == ENOSYS || errno == EACCES || errno == EMFILE || errno == ENOSPC); return; }
    CHECK(mq_unlink(name) == 0);
    char *out = ghost(8192), *in = ghost(8192 + 4096);
    struct timespec *soon = ghost(sizeof *soon);
    unsigned *priority = ghost(sizeof *priority);
    for (int i = 0; i < 8192; i++) out[i] = (char)(i * 7);
    memset(in + 8192, 0x5a, 4096);
    clock_gettime(CLOCK_REALTIME, soon);
    soon->tv_sec += 10;
    evict();
    CHECK(mq_timedsend(queue, out, 8192, 5, soon) == 0);
    evict();
    CHECK(mq_getattr(queue, attributes) == 0 && attributes->mq_curmsgs == 1);
    evict();
    CHECK(mq_timedreceive(queue, in, 8192, priority, soon) == 8192 && *priority == 5);
    CHECK(memcmp(in, out, 8192) == 0);
    for (int i = 0; i < 4096; i++) CHECK(in[8192 + i] == 0x5a);
    CHECK(mq_close(queue) == 0);
}

/* A message that is asked for with more room than any call may have in one piece. */
static void long_room(void) {
    struct { long type; char text[100]; } *message = ghost(24 << 20);
    int queue = msgget(IPC_PRIVATE, 0600);
    CHECK(queue >= 0 || errno == ENOSPC || errno == ENOSYS);
    if (queue < 0) return;
    message->type = 3;
    memset(message->text, 'm', 100);
    CHECK(msgsnd(queue, message, 100, 0) == 0);
    memset(message, 0, sizeof *message);
    evict();
    CHECK(msgrcv(queue, message, 20 << 20, 3, MSG_NOERROR) == 100 && message->type == 3);
    CHECK(message->text[0] == 'm' && message->text[99] == 'm');
    CHECK(msgctl(queue, IPC_RMID, NULL) == 0);
}

static void semaphores_and_segments(void) {
    int set = semget(IPC_PRIVATE, 3, 0600);
    CHECK(set >= 0 || errno == ENOSPC);
    if (set >= 0) {
        unsigned short *values = ghost(3 * sizeof *values + 64);
        struct semid_ds *about = ghost(sizeof *about);
        struct sembuf *steps = ghost(2 * sizeof *steps);
        struct timespec *soon = ghost(sizeof *soon);
        values[0] = 7; values[1] = 8; values[2] = 9;
        memset(values + 3, 0x5a, 64);
        evict();
        CHECK(semctl(set, 0, SETALL, (union semun){.array = values}) == 0);
        steps[0] = (struct sembuf){.sem_num = 0, .sem_op = -7};
        steps[1] = (struct sembuf){.sem_num = 2, .sem_op = 1};
        soon->tv_sec = 10;
        evict();
        CHECK(semtimedop(set, steps, 2, soon) == 0);
        values[0] = values[1] = values[2] = 99;
        evict();
        CHECK(semctl(set, 0, GETALL, (union semun){.array = values}) == 0);
        CHECK(values[0] == 0 && values[1] == 8 && values[2] == 10 && values[3] == 0x5a5a);
        evict();
        CHECK(semctl(set, 0, IPC_STAT, (union semun){.buf = about}) == 0 && about->sem_nsems == 3);
        CHECK(semctl(set, 0, IPC_RMID) == 0);
    }
    int segment = shmget(IPC_PRIVATE, 12345, 0600);
    CHECK(segment >= 0 || errno == ENOSPC);
    if (segment >= 0) {
        struct shmid_ds *about = ghost(sizeof *about + 64);
        memset(about + 1, 0x5a, 64);
        evict();
        CHECK(shmctl(segment, IPC_STAT, about) == 0 && about->shm_segsz == 12345);
        CHECK(*(char *)(about + 1) == 0x5a);
        CHECK(shmctl(segment, IPC_RMID, NULL) == 0);
    }
}

static void keys(void) {
    char *type = ghost(16), *name = ghost(16), *secret = ghost(4096), *read = ghost(8192);
    strcpy(type, "user");
    strcpy(name, "ghostmem");
    for (int i = 0; i < 4096; i++) secret[i] = (char)(i * 3);
    memset(read + 4096, 0x5a, 4096);
    evict();
    long key = syscall(SYS_add_key, type, name, secret, 4096, KEY_SPEC_PROCESS_KEYRING);
    if (key < 0) { CHECK(errno == ENOSYS || errno == EPERM || errno == EDQUOT); return; }
    evict();
    CHECK(syscall(SYS_keyctl, KEYCTL_READ, key, read, 4096, 0) == 4096);
    CHECK(memcmp(read, secret, 4096) == 0 && read[4096] == 0x5a);
    CHECK(syscall(SYS_keyctl, KEYCTL_REVOKE, key, 0, 0, 0) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    extents(argv[1]);
    beside(argv[1]);
    kernel_log();
    queues();
    long_room();
    semaphores_and_segments();
    keys();
    printf("ok\n");
    return 0;
}
