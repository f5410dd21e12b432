/* SIGSEGV and SIGBUS as the kernel does them: blocked, waiting, in their own
 * handlers. Each part runs in a child, whose end is looked at. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

static volatile int calls, code, value;
static volatile char *bad = (char *)0x1234;
static sigjmp_buf back;

static void counts(int signal, siginfo_t *info, void *context) {
    (void)signal; (void)context;
    calls++;
    code = info->si_code;
    value = info->si_value.sival_int;
}
static void again(int signal) { if (++calls > 3) _exit(9); *bad = (char)signal; }
static void jumps(int signal) { calls++; siglongjmp(back, signal); }
static void jumps_with_mask(int signal) {
    sigset_t set;
    calls++;
    sigprocmask(SIG_BLOCK, 0, &set);
    code = sigismember(&set, SIGSEGV) + 2 * sigismember(&set, SIGBUS) + 4 * sigismember(&set, SIGUSR1);
    siglongjmp(back, signal);
}
static void set(int signal, void *handler, int flags, int also) {
    struct sigaction a = {.sa_handler = handler, .sa_flags = flags};
    if (also) { sigaddset(&a.sa_mask, SIGBUS); sigaddset(&a.sa_mask, SIGUSR1); }
    CHECK(sigaction(signal, &a, 0) == 0);
}
static void block(int how, int signal) {
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, signal);
    CHECK(sigprocmask(how, &s, 0) == 0);
}
static int waiting(int signal) {
    sigset_t s;
    CHECK(sigpending(&s) == 0);
    return sigismember(&s, signal);
}

static void in_its_handler(void) { set(SIGSEGV, again, 0, 0); *bad = 1; }
static void no_defer(void) { set(SIGSEGV, again, SA_NODEFER, 0); *bad = 1; }
static void reset(void) { set(SIGSEGV, again, SA_RESETHAND | SA_NODEFER, 0); *bad = 1; }
static void blocked_fault(void) { set(SIGSEGV, again, 0, 0); block(SIG_BLOCK, SIGSEGV); *bad = 1; }
static void ignored_fault(void) { signal(SIGSEGV, SIG_IGN); *bad = 1; }

static void held_back(void) {
    set(SIGSEGV, counts, SA_SIGINFO, 0);
    block(SIG_BLOCK, SIGSEGV);
    union sigval v = {.sival_int = 42};
    CHECK(sigqueue(getpid(), SIGSEGV, v) == 0 && calls == 0 && waiting(SIGSEGV));
    char *p = ghost(1 << 20);
    evict();
    CHECK(p[5000] == 0 && calls == 0);
    block(SIG_UNBLOCK, SIGSEGV);
    CHECK(calls == 1 && code == SI_QUEUE && value == 42 && !waiting(SIGSEGV));
    CHECK(sighold(SIGBUS) == 0);
    set(SIGBUS, counts, SA_SIGINFO, 0);
    CHECK(raise(SIGBUS) == 0 && calls == 1 && sigrelse(SIGBUS) == 0 && calls == 2);
}
/* Waited for, before and after it was sent. */
static void *sends(void *thread) {
    usleep(100000);
    pthread_kill(*(pthread_t *)thread, SIGBUS);
    return 0;
}
static void waited_for(void) {
    set(SIGSEGV, counts, SA_SIGINFO, 0);
    set(SIGBUS, counts, SA_SIGINFO, 0);
    block(SIG_BLOCK, SIGSEGV);
    block(SIG_BLOCK, SIGBUS);
    sigset_t s;
    sigemptyset(&s);
    sigaddset(&s, SIGSEGV);
    sigaddset(&s, SIGBUS);
    siginfo_t *info = ghost(sizeof *info);
    union sigval v = {.sival_int = 43};
    CHECK(sigqueue(getpid(), SIGSEGV, v) == 0);
    evict();
    CHECK(sigwaitinfo(&s, info) == SIGSEGV && info->si_value.sival_int == 43 && !waiting(SIGSEGV));
    pthread_t t, self = pthread_self();
    CHECK(pthread_create(&t, 0, sends, &self) == 0);
    int got = 0;
    CHECK(sigwait(&s, &got) == 0 && got == SIGBUS && calls == 0);
    CHECK(pthread_join(t, 0) == 0);
    /* A mask for the time of a wait lets it through. */
    CHECK(raise(SIGSEGV) == 0 && calls == 0);
    sigset_t none;
    sigemptyset(&none);
    CHECK(sigsuspend(&none) == -1 && errno == EINTR && calls == 1 && !waiting(SIGSEGV));
    CHECK(raise(SIGSEGV) == 0 && calls == 1 && waiting(SIGSEGV));
}
static void masks(void) {
    set(SIGSEGV, jumps_with_mask, 0, 1);
    for (int i = 0; i < 3; i++) if (!sigsetjmp(back, 1)) { *bad = 1; CHECK(0); }
    CHECK(calls == 3 && code == 7);
}
static void fetches(void) {
    set(SIGSEGV, jumps, 0, 0);
    char *p = ghost(1 << 20);
    memset(p, 0xc3, 1 << 20);
    if (!sigsetjmp(back, 1)) { ((void (*)(void))p)(); CHECK(0); }
    evict();
    if (!sigsetjmp(back, 1)) { ((void (*)(void))(p + 70000))(); CHECK(0); }
    CHECK(calls == 2);
}
static void keys(void) {
    int key = pkey_alloc(0, 0);
    if (key < 0) return;
    set(SIGSEGV, jumps, 0, 0);
    char *p = ghost(1 << 20);
    if (pkey_mprotect(p, 4096, PROT_READ, key) == 0) {
        CHECK(pkey_set(key, PKEY_DISABLE_ACCESS) == 0);
        if (!sigsetjmp(back, 1)) { *(volatile char *)p; CHECK(0); }
        CHECK(calls == 1);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    struct { void (*body)(void); int end; } parts[] = {
        {waited_for, 0}, {in_its_handler, SIGSEGV}, {no_defer, 9 << 8}, {reset, SIGSEGV}, {blocked_fault, SIGSEGV},
        {ignored_fault, SIGSEGV}, {held_back, 0}, {masks, 0}, {fetches, 0}, {keys, 0},
    };
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++) {
        fflush(stdout);
        pid_t child = fork();
        if (child == 0) { alarm(60); parts[i].body(); fflush(stdout); _exit(0); }
        int status = -1;
        CHECK(waitpid(child, &status, 0) == child);
        if ((status & ~0x80) != parts[i].end) { printf("wrong: part %u ended with %x\n", i, status); return 1; }
    }
    printf("ok\n");
    return 0;
}
