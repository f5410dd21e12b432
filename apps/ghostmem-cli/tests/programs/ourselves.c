/* A process that asks the kernel about its own memory by calls that are made for others:
 * process_madvise(2), process_vm_readv(2) and its kin, get_mempolicy(2), move_pages(2). And
 * what it seals. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define MANY 64
#define PIDFD_SELF -10000

/* Pages that hold what they held, and those that are zero. */
static void is(const char *p, int pages, const char *zeros) {
    for (int i = 0; i < pages; i++) CHECK(p[i * PAGE] == (zeros[i] ? 0 : i + 1));
}

static void advice(void) {
    int self = (int)syscall(SYS_pidfd_open, getpid(), 0);
    CHECK(self >= 0);
    const int advices[] = {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED, MADV_DONTNEED, MADV_POPULATE_WRITE, 12345};
    for (int way = 0; way < 2; way++)
        for (unsigned which = 0; which < sizeof advices / sizeof *advices; which++)
            for (int put_away = 0; put_away < 2; put_away++) {
                int fd = way ? PIDFD_SELF : self, advice = advices[which];
                char *p = ghost(MANY * PAGE), zeros[MANY] = {0};
                for (int i = 0; i < MANY; i++) p[i * PAGE] = i + 1;
                struct iovec *list = ghost(sizeof *list * 3);
                list[0] = (struct iovec){p + PAGE, 2 * PAGE};
                list[1] = (struct iovec){p + 9 * PAGE, PAGE};
                list[2] = (struct iovec){p + 30 * PAGE, 20 * PAGE};
                if (put_away) evict();
                ssize_t done = syscall(SYS_process_madvise, fd, list, 3, advice, 0);
                /* Older kernels take some advice only, and no number for oneself. */
                CHECK(done == 23 * (ssize_t)PAGE || (done == -1 && (errno == EINVAL || errno == EBADF)));
                if (advice == 12345) CHECK(done == -1);
                if (done > 0 && advice == MADV_DONTNEED)
                    for (int i = 0; i < 3; i++)
                        memset(zeros + ((char *)list[i].iov_base - p) / PAGE, 1, list[i].iov_len / PAGE);
                is(p, MANY, zeros);
                for (int i = 0; i < MANY; i++) p[i * PAGE] = i + 1;
                memset(zeros, 0, sizeof zeros);
                evict();
                is(p, MANY, zeros);
                /* What is wrong in the middle ends it there. */
                list[1].iov_base = p + 9 * PAGE + 1;
                done = syscall(SYS_process_madvise, fd, list, 3, MADV_PAGEOUT, 0);
                CHECK(done == 2 * (ssize_t)PAGE || done == -1);
                evict();
                is(p, MANY, zeros);
                free(list);
                free(p);
            }
    close(self);
}

static void copies(void) {
    size_t bytes = 3 << 20;
    char *from = ghost(bytes), *to = ghost(bytes);
    for (size_t i = 0; i < bytes; i++) from[i] = (char)(i * 7 >> 3);
    struct iovec *ours = ghost(sizeof *ours * MANY), *theirs = ghost(sizeof *theirs * MANY);
    /* Many places, of which no two are near each other, and not of the same lengths. */
    for (int i = 0; i < MANY; i++) {
        theirs[i] = (struct iovec){from + i * 40000 + i, 300};
        ours[i] = (struct iovec){to + i * 600, i % 2 ? 100 : 500};
    }
    memset(to, 0, bytes);
    evict();
    CHECK(process_vm_readv(getpid(), ours, MANY, theirs, MANY, 0) == MANY * 300);
    for (int i = 0, at = 0; i < MANY; i++)
        for (int k = 0; k < (int)ours[i].iov_len; k++, at++)
            CHECK(to[i * 600 + k] == from[at / 300 * 40000 + at / 300 + at % 300]);
    /* More than the limit has room for at once, each way. */
    struct iovec our = {to, bytes}, their = {from, bytes};
    memset(to, 0, bytes);
    evict();
    CHECK(process_vm_readv(getpid(), &our, 1, &their, 1, 0) == (ssize_t)bytes && memcmp(to, from, bytes) == 0);
    memset(to, 5, bytes);
    CHECK(process_vm_writev((pid_t)syscall(SYS_gettid), &our, 1, &their, 1, 0) == (ssize_t)bytes && memcmp(to, from, bytes) == 0);
    /* As far as it goes, and no further. */
    for (size_t i = 0; i < bytes; i++) from[i] = (char)(i * 7 >> 3);
    CHECK(mprotect(from + 2 * PAGE, PAGE, PROT_NONE) == 0);
    memset(to, 0, bytes);
    their.iov_base = from + 100;
    evict();
    CHECK(process_vm_readv(getpid(), &our, 1, &their, 1, 0) == 2 * (ssize_t)PAGE - 100);
    CHECK(to[2 * PAGE - 101] == from[2 * PAGE - 1] && to[2 * PAGE - 100] == 0);
    their.iov_base = from + 2 * PAGE;
    CHECK(process_vm_readv(getpid(), &our, 1, &their, 1, 0) == -1 && errno == EFAULT);
    CHECK(mprotect(from + 2 * PAGE, PAGE, PROT_READ) == 0);
    CHECK(process_vm_writev(getpid(), &our, 1, &their, 1, 0) == -1 && errno == EFAULT);
    CHECK(mprotect(from + 2 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
    CHECK(process_vm_readv(getpid(), &our, 1, &their, 1, 1) == -1 && errno == EINVAL);
    CHECK(process_vm_readv(getpid(), &our, 1, &their, 0, 0) == 0);
    /* By the file that the kernel has for it. */
    int file = open("/proc/self/mem", O_RDWR);
    CHECK(file >= 0);
    memset(to, 0, bytes);
    evict();
    CHECK(pread(file, to, bytes, (off_t)(size_t)from) == (ssize_t)bytes && memcmp(to, from, bytes) == 0);
    char few[100];
    evict();
    CHECK(pread(file, few, sizeof few, (off_t)(size_t)(from + 70000)) == sizeof few && memcmp(few, from + 70000, sizeof few) == 0);
    memset(few, 9, sizeof few);
    evict();
    CHECK(pwrite(file, few, sizeof few, (off_t)(size_t)(from + 900000)) == sizeof few);
    CHECK(memcmp(few, from + 900000, sizeof few) == 0 && from[900100] == (char)(900100 * 7 >> 3));
    CHECK(pread(file, few, sizeof few, 4096) == -1 && errno == EIO);
    close(file);
    free(from); free(to); free(ours); free(theirs);
}

/* Where pages are: those that were put away are in memory, as far as the program knows. */
static void places(void) {
    enum { NODE = 1, ADDR = 2 };
    char *p = ghost(16 * PAGE);
    memset(p, 1, 16 * PAGE);
    int *node = ghost(sizeof *node), *status = ghost(16 * sizeof *status);
    *node = -1;
    evict();
    if (syscall(SYS_get_mempolicy, node, 0, 0, p + 3 * PAGE, NODE | ADDR) == -1) {
        CHECK(errno == ENOSYS);
        return;
    }
    CHECK(*node >= 0);
    void **pages = ghost(16 * sizeof *pages);
    for (int i = 0; i < 16; i++) pages[i] = p + i * PAGE;
    memset(status, 0x7f, 16 * sizeof *status);
    evict();
    CHECK(syscall(SYS_move_pages, 0, 16, pages, 0, status, 0) == 0);
    for (int i = 0; i < 16; i++) CHECK(status[i] == *node);
}

/* What is sealed holds what it held, and cannot be changed; its neighbours can. */
static void sealed(void) {
    for (int way = 0; way < 2; way++) {
        char *p = way ? ghost(MANY * PAGE) : mmap(0, MANY * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        for (int i = 0; i < MANY; i++) p[i * PAGE] = i + 1;
        CHECK(mprotect(p + 4 * PAGE, 2 * PAGE, PROT_READ) == 0);
        evict();
        if (syscall(462 /* mseal, since 6.10 */, p + 2 * PAGE, 10 * PAGE, 0) == -1) { CHECK(errno == ENOSYS); return; }
        CHECK(syscall(462, p + 2 * PAGE, PAGE, 1) == -1 && errno == EINVAL);
        CHECK(mprotect(p + 3 * PAGE, PAGE, PROT_NONE) == -1 && errno == EPERM);
        CHECK(mprotect(p + 4 * PAGE, PAGE, PROT_READ | PROT_WRITE) == -1 && errno == EPERM);
        for (int i = 0; i < 4; i++) p[i * PAGE + 1] = 7;
        CHECK(mprotect(p + 20 * PAGE, PAGE, PROT_NONE) == 0);
        CHECK(mprotect(p + 20 * PAGE, PAGE, PROT_READ | PROT_WRITE) == 0);
        evict();
        pid_t child = fork();
        CHECK(child >= 0);
        int status, wrong = 0;
        for (int i = 0; i < MANY; i++) wrong += p[i * PAGE] != i + 1 || p[i * PAGE + 1] != (i < 4 ? 7 : 0);
        if (child == 0) _exit(wrong != 0);
        CHECK(wrong == 0 && waitpid(child, &status, 0) == child && status == 0);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    /* It is pushed out often: little more than the limit will do. */
    prepare("7000000");
    advice();
    copies();
    places();
    sealed();
    printf("ok\n");
    return 0;
}
