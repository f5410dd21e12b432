/* Memory that others go on using after a call has returned: a network card's (xdp), another
 * handler's of faults (uffd), a virtual machine's (kvm), a ring's (uring). Ends with 77 where
 * this machine has none of it.
 *
 * kept WAY BYTES */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <linux/io_uring.h>
#include <linux/kvm.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <stdint.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 256
#define BYTES (PAGES * PAGE)
#define PRESENT (1ull << 63)

static char *mapped(void) {
    char *p = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static char byte_of(size_t at) { return (char)(at * 7 + at / PAGE); }
static void fill(char *p) { for (size_t at = 0; at < BYTES; at++) p[at] = byte_of(at); }
static void same(const char *p) { for (size_t at = 0; at < BYTES; at++) CHECK(p[at] == byte_of(at)); }

/* The frames that the pages have. */
static void frames(const char *p, uint64_t *list) {
    int file = open("/proc/self/pagemap", O_RDONLY);
    CHECK(file >= 0);
    CHECK(pread(file, list, PAGES * 8, (uintptr_t)p / PAGE * 8) == PAGES * 8);
    close(file);
    if ((list[0] & PRESENT) && !(list[0] << 9)) exit(77); /* Only root is told. */
}

/* Whoever got the pages finds them where they were: none leaves, whatever else is touched. */
static void stay(const char *p) {
    uint64_t before[PAGES], after[PAGES];
    frames(p, before);
    evict();
    frames(p, after);
    for (int i = 0; i < PAGES; i++) {
        CHECK(before[i] & PRESENT);
        CHECK((before[i] << 9) == (after[i] << 9));
    }
    same(p);
}

#define SOL_XDP_ 283
#define UMEM_REG 4
static void xdp(char *p) {
    struct { uint64_t address, bytes; uint32_t chunk, headroom, flags, more; } told = {(uintptr_t)p, BYTES, 4096, 0, 0, 0};
    int file = socket(44, SOCK_RAW, 0);
    if (file < 0) exit(77);
    fill(p);
    evict();
    /* Without its last word, which is newer than the call. */
    CHECK(setsockopt(file, SOL_XDP_, UMEM_REG, &told, sizeof told - 8) == 0);
    stay(p);
    close(file);
}

static void uring(char *p) {
    struct io_uring_params asked = {0};
    int ring = syscall(SYS_io_uring_setup, 4, &asked);
    if (ring < 0) {
        /* As a kernel without rings has it, where the engine cannot let it be. */
        CHECK(errno == ENOSYS || errno == EPERM);
        return;
    }
    struct iovec buffers[2] = {{p, BYTES / 2 + 100}, {p + BYTES / 2 + 100, BYTES / 2 - 100}};
    fill(p);
    evict();
    CHECK(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, buffers, 2) == 0);
    stay(p);
    CHECK(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0);
    close(ring);
    /* Others come in the place of none, one of them locked, one that no child gets. */
    CHECK((ring = syscall(SYS_io_uring_setup, 4, &asked)) >= 0);
    struct io_uring_rsrc_register sparse = {.nr = 3, .flags = IORING_RSRC_REGISTER_SPARSE};
    if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS2, &sparse, sizeof sparse) < 0) return;
    char *q = mapped();
    fill(q);
    int locked = mlock(q, 4 * PAGE) == 0;
    CHECK(madvise(q + 8 * PAGE, 8 * PAGE, MADV_WIPEONFORK) == 0);
    evict();
    struct iovec updates[3] = {{q, 6 * PAGE}, {q + 6 * PAGE, 50 * PAGE}, {q + 56 * PAGE, BYTES - 56 * PAGE}};
    struct io_uring_rsrc_update2 update = {.data = (uintptr_t)updates, .nr = 3};
    CHECK(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS_UPDATE, &update, sizeof update) == 3);
    stay(q);
    if (locked) CHECK(munlock(q, 4 * PAGE) == 0);
    stay(q);
    pid_t child = fork();
    if (child == 0) _exit(q[8 * PAGE + 1] == 0 && q[16 * PAGE - 1] == 0 && q[16 * PAGE + 1] == byte_of(16 * PAGE + 1) ? 3 : 4);
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    close(ring);
    munmap(q, BYTES);
}

static int uffd;
static char *source;
static void *answer(void *unused) {
    struct uffd_msg message;
    while (read(uffd, &message, sizeof message) == sizeof message) {
        CHECK(message.event == UFFD_EVENT_PAGEFAULT);
        size_t page = message.arg.pagefault.address & ~(PAGE - 1);
        memset(source, (int)(page / PAGE), PAGE);
        struct uffdio_copy copy = {.dst = page, .src = (uintptr_t)source, .len = PAGE};
        CHECK(ioctl(uffd, UFFDIO_COPY, &copy) == 0 || errno == EEXIST);
    }
    return NULL;
}

static void faults(char *p) {
    uffd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
    if (uffd < 0) exit(77);
    struct uffdio_api api = {.api = UFFD_API};
    CHECK(ioctl(uffd, UFFDIO_API, &api) == 0);
    source = ghost(PAGE);
    /* The first pages have something in them, the others are the handler's to bring: those
     * beside touched ones may be there, with zeros, as with huge pages. */
    memset(p, 1, 3 * PAGE);
    evict();
    CHECK(madvise(p + 3 * PAGE, BYTES - 3 * PAGE, MADV_DONTNEED) == 0);
    struct uffdio_register told = {.range = {(uintptr_t)p, BYTES}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    CHECK(ioctl(uffd, UFFDIO_REGISTER, &told) == 0);
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, answer, NULL) == 0);
    for (int round = 0; round < 2; round++) {
        for (size_t page = 0; page < PAGES; page++) {
            char *at = p + page * PAGE + 5;
            CHECK(*at == (page < 3 ? 1 : (char)((uintptr_t)at / PAGE)));
        }
        evict();
    }
    /* Given up, and brought again. */
    CHECK(madvise(p, PAGE, MADV_DONTNEED) == 0);
    CHECK(p[5] == (char)((uintptr_t)p / PAGE));
}

/* Adds up 28 KiB from 0x8000 on, puts the sum at 0x2000, tells of it, and begins again. */
static const unsigned char code[] = {
    0xbe, 0x00, 0x80,       /* mov si, 0x8000 */
    0xb9, 0x00, 0x70,       /* mov cx, 0x7000 */
    0x30, 0xc0,             /* xor al, al */
    0x02, 0x04,             /* add al, [si] */
    0x46,                   /* inc si */
    0xe2, 0xfb,             /* loop to the add */
    0xa2, 0x00, 0x20,       /* mov [0x2000], al */
    0xba, 0x17, 0x02,       /* mov dx, 0x217 */
    0xee,                   /* out dx, al */
    0xeb, 0xea,             /* jmp to the first */
};

static void machine(char *p) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0) exit(77);
    fill(p);
    memcpy(p + 0x1000, code, sizeof code);
    unsigned char sum = 0;
    for (size_t at = 0x8000; at < 0x8000 + 0x7000; at++) sum += (unsigned char)p[at];
    evict();
    struct kvm_userspace_memory_region region = {.memory_size = BYTES, .userspace_addr = (uintptr_t)p};
    CHECK(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region) == 0);
    int cpu = ioctl(vm, KVM_CREATE_VCPU, 0), bytes = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    CHECK(cpu >= 0 && bytes > 0);
    struct kvm_run *run = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
    CHECK(run != MAP_FAILED);
    struct kvm_sregs special;
    CHECK(ioctl(cpu, KVM_GET_SREGS, &special) == 0);
    special.cs.base = special.cs.selector = 0;
    CHECK(ioctl(cpu, KVM_SET_SREGS, &special) == 0);
    struct kvm_regs registers = {.rip = 0x1000, .rflags = 2};
    CHECK(ioctl(cpu, KVM_SET_REGS, &registers) == 0);
    for (int round = 0; round < 3; round++) {
        evict();
        p[0x8000] += round;
        sum += round;
        CHECK(ioctl(cpu, KVM_RUN, 0) == 0 && run->exit_reason == KVM_EXIT_IO);
        unsigned char told = *((unsigned char *)run + run->io.data_offset);
        CHECK(told == sum && (unsigned char)p[0x2000] == sum);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    char *memory[] = {mapped(), ghost(BYTES)};
    for (int i = 0; i < 2; i++) {
        if (!strcmp(argv[1], "xdp")) xdp(memory[i]);
        if (!strcmp(argv[1], "uring")) uring(memory[i]);
        /* What malloc gives out was touched before. */
        if (!strcmp(argv[1], "uffd") && i == 0) faults(memory[i]);
        if (!strcmp(argv[1], "kvm")) machine(memory[i]);
    }
    munmap(memory[0], BYTES);
    free(memory[1]);
    evict();
    puts("ok");
    return 0;
}
