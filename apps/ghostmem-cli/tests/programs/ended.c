/* Comes to its end by a signal, in the way that it is told: prints what it found before.
 *
 * ended WAY [SIGNAL] */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/filter.h>
#include <linux/seccomp.h>

#define RESTORER 0x04000000

static volatile sig_atomic_t handled;
static void count(int signal) { handled++; }
static void count_info(int signal, siginfo_t *info, void *context) {
    handled += info && info->si_signo == signal && context ? 1 : 100;
}

static sigjmp_buf there;
static void jump(int signal) { siglongjmp(there, 1); }
static void leave(int signal) { _exit(3); }
static void on_stack(int signal) { raise(SIGTERM); }

static struct sigaction now(int signal) {
    struct sigaction found;
    memset(&found, 1, sizeof found);
    CHECK(sigaction(signal, NULL, &found) == 0);
    return found;
}
#define IS_DEFAULT(signal) CHECK(now(signal).sa_handler == SIG_DFL)

static void end(int signal) {
    fflush(stdout);
    raise(signal);
    printf("not ended\n");
    exit(1);
}

/* How a child ended. */
static int status_of(pid_t child) {
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    return status;
}
static int is_ended(int status, int signal) { return WIFSIGNALED(status) && WTERMSIG(status) == signal; }

static void *churn(void *seed) {
    unsigned state = (unsigned)(size_t)seed;
    static char *volatile kept[4][64];
    for (;;) {
        char *volatile *place = &kept[(size_t)seed % 4][rand_r(&state) % 64];
        size_t size = rand_r(&state) % 100 ? rand_r(&state) % 5000 + 1 : 200000;
        free(*place);
        CHECK(*place = malloc(size));
        memset(*place, 1, size);
    }
}

int main(int argc, char **argv) {
    CHECK(argc > 1);
    const char *way = argv[1];
    int signal_asked = argc > 2 ? atoi(argv[2]) : SIGTERM;
    struct sigaction action;
    memset(&action, 0, sizeof action);
    /* Whoever starts a test in the background may ignore some. */
    for (int signal = 1; signal <= 31; signal++) {
        struct sigaction found;
        if (sigaction(signal, NULL, &found) == 0 && found.sa_handler == SIG_IGN) sigaction(signal, &action, NULL);
    }
    prepare("12000000");
    evict();

    if (!strcmp(way, "plain")) {
        struct rlimit none = {0, 0};
        CHECK(setrlimit(RLIMIT_CORE, &none) == 0);
        printf("%d\n", signal_asked);
        end(signal_asked);
    }
    if (!strcmp(way, "abort")) {
        struct rlimit none = {0, 0};
        CHECK(setrlimit(RLIMIT_CORE, &none) == 0);
        abort();
    }
    if (!strcmp(way, "asked")) {
        struct sigaction found = now(SIGTERM);
        CHECK(found.sa_handler == SIG_DFL && !(found.sa_flags & ~RESTORER) && !sigismember(&found.sa_mask, SIGUSR1));
        CHECK(signal(SIGTERM, SIG_IGN) == SIG_DFL);
        raise(SIGTERM);
        CHECK(signal(SIGTERM, count) == SIG_IGN);
        raise(SIGTERM);
        CHECK(handled == 1 && signal(SIGTERM, SIG_DFL) == count);
        IS_DEFAULT(SIGTERM);
        /* What is said beside the default is told again. */
        action.sa_handler = SIG_DFL;
        action.sa_flags = SA_RESTART | SA_NODEFER;
        sigaddset(&action.sa_mask, SIGUSR1);
        CHECK(sigaction(SIGTERM, &action, NULL) == 0);
        found = now(SIGTERM);
        CHECK(found.sa_handler == SIG_DFL && (found.sa_flags & ~RESTORER) == (SA_RESTART | SA_NODEFER));
        CHECK(sigismember(&found.sa_mask, SIGUSR1) == 1 && sigismember(&found.sa_mask, SIGUSR2) == 0);
        /* Bad ones are refused as ever. */
        CHECK(sigaction(SIGKILL, &action, NULL) == -1 && errno == EINVAL);
        CHECK(syscall(SYS_rt_sigaction, SIGTERM, 16, 0, 8) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_rt_sigaction, SIGTERM, 0, 16, 8) == -1 && errno == EFAULT);
        CHECK(syscall(SYS_rt_sigaction, 65, 0, 0, 8) == -1 && errno == EINVAL);
        for (int other = 1; other <= 31; other++) {
            if (other != SIGKILL && other != SIGSTOP) IS_DEFAULT(other);
        }
        /* system(3) ignores some meanwhile, and puts back what it found. */
        CHECK(system("exit 3") == 3 << 8);
        IS_DEFAULT(SIGINT);
        IS_DEFAULT(SIGQUIT);
        puts("asked");
        end(SIGTERM);
    }
    if (!strcmp(way, "once")) {
        action.sa_handler = count;
        action.sa_flags = SA_RESETHAND | SA_RESTART;
        CHECK(sigaction(SIGTERM, &action, NULL) == 0);
        struct sigaction found = now(SIGTERM);
        CHECK(found.sa_handler == count && (found.sa_flags & ~RESTORER) == (int)(SA_RESETHAND | SA_RESTART));
        raise(SIGTERM);
        CHECK(handled == 1);
        found = now(SIGTERM);
        CHECK(found.sa_handler == SIG_DFL && (found.sa_flags & ~RESTORER) == (int)(SA_RESETHAND | SA_RESTART));
        action.sa_sigaction = count_info;
        action.sa_flags = SA_RESETHAND | SA_SIGINFO;
        CHECK(sigaction(SIGTERM, &action, NULL) == 0);
        raise(SIGTERM);
        CHECK(handled == 2);
        IS_DEFAULT(SIGTERM);
        puts("once");
        end(SIGTERM);
    }
    if (!strcmp(way, "jumps")) {
        /* A handler that never returns, and the default again. */
        action.sa_handler = jump;
        action.sa_flags = SA_RESETHAND;
        CHECK(sigaction(SIGINT, &action, NULL) == 0);
        if (!sigsetjmp(there, 1)) raise(SIGINT);
        IS_DEFAULT(SIGINT);
        puts("jumped");
        end(SIGINT);
    }
    if (!strcmp(way, "masked")) {
        /* Blocked, but for the time of a call: the handler's return must not block it again. */
        sigset_t term, none, pending;
        sigemptyset(&none);
        sigemptyset(&term);
        sigaddset(&term, SIGTERM);
        CHECK(sigprocmask(SIG_BLOCK, &term, NULL) == 0);
        raise(SIGTERM);
        CHECK(sigpending(&pending) == 0 && sigismember(&pending, SIGTERM) == 1);
        struct timespec at_once = {0, 0};
        CHECK(sigtimedwait(&term, NULL, &at_once) == SIGTERM);
        raise(SIGTERM);
        puts("masked");
        fflush(stdout);
        ppoll(NULL, 0, NULL, &none);
        puts("not ended");
        return 1;
    }
    if (!strcmp(way, "stack")) {
        /* A short stack for signals, in use. */
        static stack_t stack;
        stack.ss_size = 16 << 10;
        stack.ss_sp = malloc(stack.ss_size);
        CHECK(sigaltstack(&stack, NULL) == 0);
        action.sa_handler = on_stack;
        action.sa_flags = SA_ONSTACK;
        CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
        puts("stack");
        fflush(stdout);
        raise(SIGUSR1);
        return 1;
    }
    if (!strcmp(way, "children")) {
        /* By vfork: actions of its own, and its parent's memory. */
        pid_t child = vfork();
        if (child == 0) {
            struct sigaction found;
            if (sigaction(SIGTERM, NULL, &found) || found.sa_handler != SIG_DFL) _exit(9);
            signal(SIGINT, SIG_IGN);
            signal(SIGHUP, count);
            signal(SIGTERM, SIG_DFL);
            kill(getpid(), SIGTERM);
            _exit(8);
        }
        CHECK(is_ended(status_of(child), SIGTERM));
        IS_DEFAULT(SIGTERM);
        IS_DEFAULT(SIGINT);
        IS_DEFAULT(SIGHUP);
        child = vfork();
        if (child == 0) {
            kill(getpid(), SIGTERM);
            _exit(8);
        }
        CHECK(is_ended(status_of(child), SIGTERM));
        /* By fork. */
        child = fork();
        if (child == 0) {
            IS_DEFAULT(SIGTERM);
            raise(SIGTERM);
            _exit(8);
        }
        CHECK(is_ended(status_of(child), SIGTERM));
        /* By posix_spawn, with the defaults asked for, and without. */
        char *arguments[] = {"sh", "-c", "kill -TERM $$; exit 8", NULL};
        char *nothing[] = {"PATH=/bin:/usr/bin", NULL};
        posix_spawnattr_t attributes;
        sigset_t all;
        sigfillset(&all);
        CHECK(posix_spawnattr_init(&attributes) == 0 && posix_spawnattr_setsigdefault(&attributes, &all) == 0);
        CHECK(posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGDEF) == 0);
        CHECK(posix_spawn(&child, "/bin/sh", NULL, &attributes, arguments, nothing) == 0);
        CHECK(is_ended(status_of(child), SIGTERM));
        CHECK(posix_spawn(&child, "/bin/sh", NULL, NULL, arguments, nothing) == 0);
        CHECK(is_ended(status_of(child), SIGTERM));
        puts("children");
        end(SIGTERM);
    }
    if (!strcmp(way, "exec")) {
        /* What is ignored stays so, and the default is the default. */
        signal(SIGHUP, SIG_IGN);
        execl("/bin/sh", "sh", "-c", "kill -HUP $$; echo ignored; kill -TERM $$; echo alive", (char *)0);
        return 1;
    }
    if (!strcmp(way, "exits")) {
        signal(SIGTERM, leave);
        puts("exits");
        end(SIGTERM);
    }
    if (!strcmp(way, "first")) {
        /* The first process of a namespace ignores what it has no handler for. */
        pid_t child = syscall(SYS_clone, CLONE_NEWPID | SIGCHLD, 0, 0, 0, 0);
        if (child < 0) return 77;
        if (child == 0) {
            IS_DEFAULT(SIGTERM);
            kill(1, SIGTERM);
            usleep(1000);
            evict();
            _exit(getpid() == 1 ? 5 : 6);
        }
        CHECK(status_of(child) == 5 << 8);
        puts("first");
        end(SIGTERM);
    }
    if (!strcmp(way, "filter")) {
        /* It allows all but a call that nobody makes. */
        struct sock_filter code[] = {
            {BPF_LD | BPF_W | BPF_ABS, 0, 0, offsetof(struct seccomp_data, nr)},
            {BPF_JMP | BPF_JEQ | BPF_K, 0, 1, SYS_acct},
            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ERRNO | EPERM},
            {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW},
        };
        struct sock_fprog program = {4, code};
        action.sa_handler = count;
        action.sa_flags = SA_RESETHAND;
        CHECK(sigaction(SIGUSR1, &action, NULL) == 0);
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
        IS_DEFAULT(SIGTERM);
        CHECK(now(SIGUSR1).sa_handler == count);
        raise(SIGUSR1);
        CHECK(handled == 1);
        IS_DEFAULT(SIGUSR1);
        puts("filter");
        end(SIGTERM);
    }
    if (!strcmp(way, "serves")) {
        /* Until somebody sends a signal: in malloc, in free, in the engine. */
        pthread_t thread;
        for (size_t seed = 1; seed < 3; seed++) CHECK(pthread_create(&thread, NULL, churn, (void *)seed) == 0);
        puts("serves");
        fflush(stdout);
        churn((void *)3);
    }
    if (!strcmp(way, "refused")) {
        /* A filter that the kernel refuses changes nothing. */
        struct sock_filter code[] = {{BPF_LD | BPF_W | BPF_ABS, 0, 0, 1}, {BPF_RET | BPF_K, 0, 0, SECCOMP_RET_ALLOW}};
        struct sock_fprog program = {2, code};
        CHECK(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
        CHECK(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == -1 && errno == EINVAL);
        IS_DEFAULT(SIGTERM);
        puts("refused");
        end(SIGTERM);
    }
    if (!strcmp(way, "broken")) {
        /* Nobody reads standard error any more: that is no write of this program's. */
        puts("broken");
        fflush(stdout);
        char byte;
        CHECK(read(0, &byte, 1) == 0);
        exit(0);
    }
    if (!strcmp(way, "stuck") || !strcmp(way, "handles")) {
        /* The report is written where nobody reads. */
        char byte = 0;
        if (!strcmp(way, "handles")) {
            for (int other = 1; other <= 15; other++) signal(other, other == SIGALRM ? SIG_DFL : SIG_IGN);
        }
        fcntl(2, F_SETFL, O_NONBLOCK);
        while (write(2, &byte, 1) == 1) {}
        fcntl(2, F_SETFL, 0);
        puts(way);
        fflush(stdout);
        for (;;) pause();
    }
    return 1;
}
