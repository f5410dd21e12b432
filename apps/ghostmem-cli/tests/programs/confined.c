// Confines itself, and goes on with data that has to come and go: prints "ok".
//
// confined HOW ACTION [PAGES]
//   HOW     prctl, seccomp, sync (all threads), strict, two (one filter after the other),
//           fork (a child works too), limits (so does one that may set none),
//           exec (the program is executed again), mdwe, bad, long,
//           diverged (all threads, of which one has a filter of its own; then SIGTERM),
//           first (before there is any data), vfork (a child that executes the program),
//           mute (may write no file and open none, as it says first by limits),
//           full (then takes what there is, up to PAGES, and says how many pages it got)
//   ACTION  kill, errno or trap: what the filter does with all it does not name
#include <errno.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MOST = 4096 };

static int pages = 2000;
static unsigned char *data;
static struct sock_filter code[MOST];
static int length;

static void put(unsigned short op, unsigned value, int yes, int no)
{
    code[length++] = (struct sock_filter){op, yes, no, value};
}

static unsigned action_of(const char *name)
{
    if (!strcmp(name, "errno"))
        return SECCOMP_RET_ERRNO | ENOSYS;
    return strcmp(name, "trap") ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_TRAP;
}

static void begin(void)
{
    length = 0;
    // The accumulator is zero when a filter begins, and libraries count on it.
    put(BPF_JMP | BPF_JEQ | BPF_K, 0, 1, 0);
    put(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS, 0, 0);
    put(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr), 0, 0);
}

// A filter that names these numbers: lets them by, or forbids them and nothing else.
static struct sock_fprog *filter(const int *numbers, int count, int lets_by, unsigned action)
{
    static struct sock_fprog program;
    begin();
    for (int i = 0; i < count; i++) {
        put(BPF_JMP | BPF_JEQ | BPF_K, numbers[i], 0, 1);
        put(BPF_RET | BPF_K, lets_by ? SECCOMP_RET_ALLOW : action, 0, 0);
    }
    put(BPF_RET | BPF_K, lets_by ? action : SECCOMP_RET_ALLOW, 0, 0);
    program.len = length;
    // From malloc: the kernel is to find it. Large: the first small blocks come under the filter.
    program.filter = malloc(100000);
    memcpy(program.filter, code, sizeof code);
    return &program;
}

static void die(const char *why)
{
    write(2, why, strlen(why));
    write(2, "\n", 1);
    _exit(1);
}

static unsigned char expected(int page, int round)
{
    return (unsigned char)(page * 7 + round);
}

static void fill(void)
{
    data = malloc(pages * 4096L);
    for (int i = 0; i < pages; i++) {
        memset(data + i * 4096L, i % 251, 4096);
        data[i * 4096L + 99] = expected(i, 0);
    }
}

static int allocates = 1;

// Three times all over, with blocks that come and go.
static void work(void)
{
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < pages; i++) {
            unsigned char *page = data + i * 4096L;
            if (page[99] != expected(i, round) || page[98] != i % 251)
                die("wrong data");
            page[99] = expected(i, round + 1);
        }
        if (!allocates)
            continue;
        for (int i = 1; i < 300; i++) {
            char *block = malloc(i * 100);
            if (!block)
                die("no block");
            block[0] = block[i * 100 - 1] = 1;
            free(block);
        }
        char *large = calloc(1, 700000);
        if (!large || large[350000])
            die("no large block");
        memset(large, 1, 700000);
        free(large);
    }
}

// Blocks of a MiB that do not compress, as many as there are.
static void take(int most)
{
    static unsigned *blocks[1000];
    unsigned state = 1;
    char line[40];
    int count = 0;
    for (; count < most / 256 && (blocks[count] = malloc(1 << 20)); count++)
        for (int i = 0; i < 1 << 18; i++) {
            state ^= state << 13, state ^= state >> 17, state ^= state << 5;
            blocks[count][i] = state;
        }
    if (count < most / 256 && errno != ENOMEM)
        die("refused without a reason");
    state = 1;
    for (int block = 0; block < count; block++)
        for (int i = 0; i < 1 << 18; i++) {
            state ^= state << 13, state ^= state >> 17, state ^= state << 5;
            if (blocks[block][i] != state)
                die("wrong data in a block");
        }
    int length = snprintf(line, sizeof line, "%d\n", count * 256);
    write(1, line, length);
    syscall(SYS_exit_group, 0);
}

static void say_ok(void)
{
    if (write(1, "ok\n", 3) != 3)
        die("cannot say so");
    // Not exit(3): strict mode knows exit(2) alone.
    syscall(SYS_exit, 0);
}

static atomic_int ready, go, done;

static void *other(void *unused)
{
    (void)unused;
    atomic_fetch_add(&ready, 1);
    while (!atomic_load(&go))
        ;
    // Of the same pages, read only.
    for (int round = 0; round < 2; round++)
        for (int i = 0; i < pages; i++)
            if (data[i * 4096L + 98] != i % 251)
                die("wrong data in the other thread");
    atomic_fetch_add(&done, 1);
    for (;;)
        ;
}

// A call that nobody can redirect: its instruction is made now.
static long past_libc(long number, long first, long second, long third)
{
    // mov rax, rdi; mov rdi, rsi; mov rsi, rdx; mov rdx, rcx; syscall; ret
    const unsigned char call[] = {0x48, 0x89, 0xf8, 0x48, 0x89, 0xf7, 0x48, 0x89,
                                  0xd6, 0x48, 0x89, 0xca, 0x0f, 0x05, 0xc3};
    int access = PROT_READ | PROT_WRITE;
    void *page = mmap(0, 4096, access, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED)
        die("no page for code");
    memcpy(page, call, sizeof call);
    if (mprotect(page, 4096, PROT_READ | PROT_EXEC))
        die("no code");
    return ((long (*)(long, long, long, long))page)(number, first, second, third);
}

static atomic_long another;

// A thread with a filter of its own, which lets everything by.
static void *apart(void *unused)
{
    struct sock_filter lets_by = {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW};
    struct sock_fprog all = {1, &lets_by};
    if (past_libc(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, (long)&all))
        die("a thread's own filter");
    atomic_store(&another, syscall(SYS_gettid));
    for (;;)
        pause();
    return unused;
}

// As the kernel has it: the number of that thread is the answer, and no filter is in force.
static void diverged(struct sock_fprog *program)
{
    pthread_t thread;
    long all = SECCOMP_FILTER_FLAG_TSYNC, which = SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
    if (pthread_create(&thread, 0, apart, 0))
        die("no thread");
    while (!atomic_load(&another))
        ;
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, all, program) != another)
        die("a filter for all threads, one of which has another");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, all | which, program) != -1 || errno != ESRCH)
        die("the same, with an error for an answer");
    if (prctl(PR_GET_SECCOMP) || getppid() <= 0 || syscall(SYS_getuid) != getuid())
        die("a filter that was not installed");
}

static void on_trap(int signal)
{
    (void)signal;
    die("trapped");
}

int main(int count, char **argument)
{
    const char *how = argument[1];
    unsigned action = action_of(argument[2]);
    int full = !strcmp(how, "full"), most = 0;
    if (count > 3 && full)
        most = atoi(argument[3]);
    else if (count > 3)
        pages = atoi(argument[3]);
    // Nothing that brings pages back, and no return from a handler.
    const int few[] = {SYS_read,   SYS_write,  SYS_exit, SYS_exit_group, SYS_mmap,
                       SYS_munmap, SYS_mremap, SYS_brk,  SYS_prctl};
    // The last one is for those that go on by it.
    int alone = !strcmp(how, "prctl") || !strcmp(how, "seccomp");
    const int none_of_ours[] = {SYS_userfaultfd, SYS_ioctl,    SYS_process_madvise,
                                SYS_madvise,     SYS_fallocate, SYS_pwrite64,
                                SYS_geteuid,     SYS_getuid,   SYS_statx,
                                SYS_mkdir};
    struct sock_fprog *program = filter(few, alone ? 8 : 9, 1, action);
    if (!strcmp(how, "first")) {
        if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) ||
            prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program))
            die(strerror(errno));
    }
    if (!strcmp(how, "vfork")) {
        int status = -1, child;
        program = filter(none_of_ours, 10, 0, action);
        child = vfork();
        if (child == 0) {
            if (!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) &&
                !prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program))
                execl("/proc/self/exe", argument[0], "work", argument[2], (char *)0);
            _exit(1);
        }
        if (child < 0 || waitpid(child, &status, 0) != child || status)
            die("the child");
        return 0;
    }
    fill();
    if (!strcmp(how, "work") || !strcmp(how, "first")) {
        work();
        say_ok();
    }
    signal(SIGSYS, on_trap);
    int mute = !strcmp(how, "mute");
    const struct rlimit no_bytes = {0, 0}, no_files = {1, 1};
    if (mute && (setrlimit(RLIMIT_FSIZE, &no_bytes) || setrlimit(RLIMIT_NOFILE, &no_files)))
        die("cannot set a limit");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        die("no PR_SET_NO_NEW_PRIVS");
    int refused = 0;
    if (!strcmp(how, "prctl") || full || mute) {
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
    } else if (!strcmp(how, "seccomp")) {
        refused = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_LOG, program);
    } else if (!strcmp(how, "sync")) {
        pthread_t thread;
        for (int i = 0; i < 2; i++)
            pthread_create(&thread, 0, other, 0);
        while (atomic_load(&ready) < 2)
            ;
        refused = syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, program);
        atomic_store(&go, 1);
    } else if (!strcmp(how, "strict")) {
        allocates = 0;
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
    } else if (!strcmp(how, "two")) {
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
        const int fewer[] = {SYS_write, SYS_exit};
        program = filter(fewer, 2, 1, action);
        refused |= prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
        allocates = 0;
    } else if (!strcmp(how, "fork") || !strcmp(how, "exec")) {
        program = filter(none_of_ours, !strcmp(how, "exec") ? 10 : 5, 0, action);
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
    } else if (!strcmp(how, "limits")) {
        const int limits[] = {SYS_prlimit64, SYS_setrlimit};
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, filter(limits, 2, 0, action));
    } else if (!strcmp(how, "mdwe")) {
        // PR_SET_MDWE with PR_MDWE_REFUSE_EXEC_GAIN, Linux 6.3.
        refused = prctl(65, 1, 0, 0, 0) && errno != EINVAL;
    } else if (!strcmp(how, "long")) {
        begin();
        while (length < MOST - 1)
            put(BPF_LD | BPF_W | BPF_ABS, 0, 0, 0);
        put(BPF_RET | BPF_K, SECCOMP_RET_ALLOW, 0, 0);
        program->len = length;
        memcpy(program->filter, code, sizeof code);
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
    } else if (!strcmp(how, "diverged")) {
        diverged(program);
        work();
        write(1, "ok\n", 3);
        raise(SIGTERM);
        die("not ended");
    } else if (!strcmp(how, "bad")) {
        // Refused as the kernel does it, and nothing is in force.
        if (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, 16) || errno != EFAULT)
            die("a filter at a bad address");
        program->len = 0;
        if (!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) || errno != EINVAL)
            die("a filter of no instructions");
        if (syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, 0) != -1 || errno != EINVAL)
            die("strict mode with flags");
        if (prctl(PR_GET_SECCOMP))
            die("a filter that was refused");
    }
    if (!strcmp(how, "forbidden")) {
        refused = prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program);
        // Calls that the engine makes, by whoever makes them here.
        const int numbers[] = {SYS_madvise, SYS_futex, SYS_getpid, SYS_rt_sigprocmask,
                               SYS_userfaultfd, SYS_ioctl, SYS_openat, SYS_mprotect};
        for (int i = 0; i < sizeof numbers / sizeof *numbers; i++) {
            long answer;
            if (syscall(numbers[i], 0, 0, 0, 0, 0, 0) != -1 || errno != ENOSYS)
                die("a call by libc");
            // Without libc.
            asm volatile("syscall" : "=a"(answer) : "a"(numbers[i]), "D"(0), "S"(0), "d"(0)
                         : "rcx", "r11", "memory");
            if (answer != -ENOSYS)
                die("a call without libc");
        }
        if (madvise(data, 4096, MADV_WILLNEED) && errno != ENOSYS)
            die("advice");
    }
    if (refused)
        die(strerror(errno));
    work();
    if (full)
        take(most);
    if (!strcmp(how, "sync"))
        while (atomic_load(&done) < 2)
            ;
    if (!strcmp(how, "fork") || !strcmp(how, "limits")) {
        int child = fork(), status = -1;
        for (int i = 0; i < pages; i++)
            data[i * 4096L + 99] = expected(i, 0);
        work();
        if (child == 0)
            _exit(0);
        if (waitpid(child, &status, 0) != child || status)
            die("the child");
    }
    if (!strcmp(how, "exec")) {
        execl("/proc/self/exe", argument[0], "work", argument[2], (char *)0);
        die("cannot execute");
    }
    if (!strcmp(how, "sync")) {
        write(1, "ok\n", 3);
        syscall(SYS_exit_group, 0);
    }
    say_ok();
}
