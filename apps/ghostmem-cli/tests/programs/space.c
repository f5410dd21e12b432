/* What a limit on address space counts that a program sets on itself: all that it maps, and
 * nothing that it does not. Threads have stacks and objects are loaded as far as it goes; the
 * program, and what it executes, is told what was set. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dlfcn.h>
#include <pthread.h>
#include <sys/mman.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/shm.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define MIB (1ul << 20)
#define SOFT (400 * MIB)
#define REFUSED(what) do { errno = 0; CHECK((what) && errno == ENOMEM); } while (0)

static void *beside(void *given) {
    return given;
}

/* Whether a thread can be made whose stack is so long. */
static int has_thread(size_t stack) {
    pthread_attr_t attributes;
    pthread_t thread;
    void *answer = NULL;
    CHECK(pthread_attr_init(&attributes) == 0 && pthread_attr_setstacksize(&attributes, stack) == 0);
    int failed = pthread_create(&thread, &attributes, beside, &answer);
    CHECK(failed == 0 || failed == EAGAIN);
    if (failed == 0) CHECK(pthread_join(thread, &answer) == 0 && answer == &answer);
    return failed == 0;
}

static void is_told(rlim_t soft, rlim_t hard) {
    struct rlimit found[4];
    CHECK(getrlimit(RLIMIT_AS, &found[0]) == 0);
    CHECK(prlimit(0, RLIMIT_AS, NULL, &found[1]) == 0);
    CHECK(prlimit(getpid(), RLIMIT_AS, NULL, &found[2]) == 0);
    CHECK(syscall(SYS_getrlimit, RLIMIT_AS, &found[3]) == 0);
    for (int i = 0; i < 4; i++) CHECK(found[i].rlim_cur == soft && found[i].rlim_max == hard);
}

/* What a shell says of its limits. */
static void executed_has(const char *expected, int confined) {
    int pipes[2];
    char said[100] = "";
    CHECK(pipe(pipes) == 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(pipes[1], 1);
        close(pipes[0]);
        close(pipes[1]);
        /* Nothing that is there, or may be executed. */
        execl("/nowhere/sh", "sh", NULL);
        execl("/etc/passwd", "sh", NULL);
        execl("/etc/passwd/sh", "sh", NULL);
        execl("/tmp", "sh", NULL);
        if (!has_thread(MIB)) _exit(4);
        if (confined) {
            struct sock_filter all[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
            struct sock_fprog program = {1, all};
            CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
            CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
            is_told(SOFT, RLIM_INFINITY);
        }
        execl("/bin/sh", "sh", "-c", "echo $(ulimit -S -v) $(ulimit -H -v)", NULL);
        _exit(5);
    }
    close(pipes[1]);
    FILE *from = fdopen(pipes[0], "r");
    CHECK(from && fgets(said, sizeof said, from));
    fclose(from);
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    if (status || strcmp(said, expected)) printf("a child said %s", said);
    CHECK(status == 0 && strcmp(said, expected) == 0);
}

static void *mapped(size_t bytes, int access, int file) {
    int flags = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    return mmap(NULL, bytes, access, flags, file, 0);
}

/* Nothing more of so many bytes, of any kind. */
static void is_full(size_t bytes, int file) {
    REFUSED(malloc(bytes) == NULL);
    REFUSED(mapped(bytes, PROT_READ | PROT_WRITE, -1) == MAP_FAILED);
    REFUSED(mapped(bytes, PROT_NONE, -1) == MAP_FAILED);
    REFUSED(mapped(bytes, PROT_READ, file) == MAP_FAILED);
    REFUSED(sbrk((intptr_t)bytes) == (void *)-1);
    CHECK(!has_thread(bytes));
    int segment = shmget(IPC_PRIVATE, bytes, IPC_CREAT | 0600);
    CHECK(segment >= 0);
    REFUSED(shmat(segment, NULL, 0) == (void *)-1);
    CHECK(shmctl(segment, IPC_RMID, NULL) == 0);
    /* What else is wrong is said first. */
    CHECK(mmap(NULL, bytes, PROT_READ, MAP_PRIVATE, 1000, 0) == MAP_FAILED && errno == EBADF);
    CHECK(mmap(NULL, 0, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EINVAL);
    REFUSED(mapped(~0ul - 4096, PROT_READ, -1) == MAP_FAILED);
}

static void has_room(size_t bytes, int file) {
    void *got[4] = {malloc(bytes), NULL, NULL, NULL};
    CHECK(got[0]);
    free(got[0]);
    got[1] = mapped(bytes, PROT_READ | PROT_WRITE, -1);
    CHECK(got[1] != MAP_FAILED && munmap(got[1], bytes) == 0);
    got[2] = mapped(bytes, PROT_NONE, -1);
    CHECK(got[2] != MAP_FAILED && munmap(got[2], bytes) == 0);
    got[3] = mapped(bytes, PROT_READ, file);
    CHECK(got[3] != MAP_FAILED && munmap(got[3], bytes) == 0);
    CHECK(has_thread(bytes));
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    int file = memfd_create("long", 0);
    CHECK(file >= 0 && ftruncate(file, 1000 * (off_t)MIB) == 0);
    struct rlimit limit = {SOFT, RLIM_INFINITY};
    /* What was is told in the place of what is to be. */
    CHECK(prlimit(0, RLIMIT_AS, &limit, &limit) == 0);
    CHECK(limit.rlim_cur == RLIM_INFINITY && limit.rlim_max == RLIM_INFINITY);
    limit.rlim_cur = SOFT;
    is_told(SOFT, RLIM_INFINITY);
    evict();
    CHECK(has_thread(8 * MIB));
    is_full(SOFT, file);
    has_room(200 * MIB, file);
    /* What is mapped in one way is missing in the others. */
    for (int kind = 0; kind < 4; kind++) {
        int access = kind == 1 ? PROT_NONE : kind == 2 ? PROT_READ : PROT_READ | PROT_WRITE;
        void *taken = kind == 3 ? malloc(250 * MIB) : mapped(250 * MIB, access, kind == 2 ? file : -1);
        CHECK(taken && taken != MAP_FAILED);
        is_full(150 * MIB, file);
        if (kind != 3) REFUSED(mremap(taken, 250 * MIB, 400 * MIB, MREMAP_MAYMOVE) == MAP_FAILED);
        CHECK(has_thread(8 * MIB));
        void *object = dlopen("libBrokenLocale.so.1", RTLD_NOW | RTLD_LOCAL);
        CHECK(object && dlclose(object) == 0);
        if (kind == 3) free(taken); else CHECK(munmap(taken, 250 * MIB) == 0);
        has_room(200 * MIB, file);
        /* A child has the same. */
        pid_t child = fork();
        if (child == 0) {
            has_room(250 * MIB, file);
            is_full(SOFT, file);
            _exit(3);
        }
        int status = -1;
        CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    }
    executed_has("409600 unlimited\n", 0);
    executed_has("409600 unlimited\n", 1);
    is_told(SOFT, RLIM_INFINITY);
    CHECK(has_thread(8 * MIB));
    /* A hard one, too; nobody without privileges raises it. */
    limit.rlim_max = 500 * MIB;
    CHECK(syscall(SYS_setrlimit, RLIMIT_AS, &limit) == 0);
    is_told(SOFT, 500 * MIB);
    executed_has("409600 512000\n", 0);
    limit.rlim_cur = 501 * MIB;
    CHECK(setrlimit(RLIMIT_AS, &limit) == -1 && errno == EINVAL);
    is_told(SOFT, 500 * MIB);
    pid_t child = fork();
    if (child == 0) {
        is_told(SOFT, 500 * MIB);
        CHECK(setresuid(65534, 65534, 65534) == 0);
        struct rlimit more = {SOFT, 501 * MIB}, less = {450 * MIB, 500 * MIB};
        CHECK(setrlimit(RLIMIT_AS, &more) == -1 && errno == EPERM);
        CHECK(setrlimit(RLIMIT_AS, &less) == 0);
        is_told(450 * MIB, 500 * MIB);
        has_room(240 * MIB, file);
        is_full(450 * MIB, file);
        _exit(3);
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child && status == 3 << 8);
    /* A higher one, as far as the hard one goes. */
    limit.rlim_cur = limit.rlim_max = 500 * MIB;
    CHECK(setrlimit(RLIMIT_AS, &limit) == 0);
    is_told(500 * MIB, 500 * MIB);
    has_room(300 * MIB, file);
    is_full(500 * MIB, file);
    puts("ok");
    return 0;
}
