/* A protection key for a large reservation: no memory is used for pages that were never touched.
 * Few processors have keys, so a filter answers in the kernel's place that the call was made. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

static const size_t LARGE = 3l << 30, PAGE = 4096;

/* Kilobytes that the process uses, or has in compressed form: all it may have taken. */
static long used(void) {
    char line[256];
    long all = 0, one;
    FILE *file = fopen("/proc/self/status", "r");
    CHECK(file);
    while (fgets(line, sizeof line, file))
        if (sscanf(line, "VmRSS: %ld", &one) == 1 || sscanf(line, "VmSwap: %ld", &one) == 1 || sscanf(line, "VmPTE: %ld", &one) == 1) all += one;
    fclose(file);
    return all;
}

static void say_that_keys_are_given(void) {
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_pkey_mprotect, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 0),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = {sizeof code / sizeof code[0], code};
    CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 && prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    evict();
    say_that_keys_are_given();
    char *p = mmap(NULL, LARGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    /* Some of it holds something. */
    char *held = p + LARGE / 2;
    CHECK(mprotect(held, 16 * PAGE, PROT_READ | PROT_WRITE) == 0);
    memset(held, 7, 16 * PAGE);
    evict();
    long before = used();
    CHECK(syscall(SYS_pkey_mprotect, p, LARGE, PROT_READ | PROT_WRITE, 1) == 0);
    long after = used();
    if (after - before > 40000) printf("wrong: %ld KiB are used, and before %ld\n", after, before);
    CHECK(after - before <= 40000);
    CHECK(syscall(SYS_mprotect, p, LARGE, PROT_READ | PROT_WRITE) == 0);
    for (size_t at = 0; at < 16 * PAGE; at++) CHECK(held[at] == 7);
    CHECK(held[-1] == 0 && held[16 * PAGE] == 0 && p[0] == 0 && p[LARGE - 1] == 0);
    memset(p, 5, 16 * PAGE);
    evict();
    for (size_t at = 0; at < 16 * PAGE; at++) CHECK(p[at] == 5);
    CHECK(munmap(p, LARGE) == 0);
    puts("ok");
    return 0;
}
