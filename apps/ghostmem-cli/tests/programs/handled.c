/* Where a program's handler of SIGSEGV runs: on the alternate stack where it asked for that and
 * set one, else below what was interrupted. There it may use megabytes, set alternate stacks,
 * go on elsewhere and come back, and end its thread. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

static char *page, *alternate;
static size_t alternate_bytes;
static volatile int hits, on_alternate, answer, code;
static volatile long depth;

static void set(void *handler, int flags) {
    struct sigaction action = {0};
    action.sa_sigaction = handler;
    action.sa_flags = flags | SA_SIGINFO;
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0);
}

static void reopen(siginfo_t *info) {
    mprotect((void *)((unsigned long)info->si_addr & ~4095ul), 4096, PROT_READ | PROT_WRITE);
}

static void touch(void) {
    CHECK(mprotect(page, 4096, PROT_NONE) == 0);
    evict();
    hits = 0;
    *(volatile char *)page = 1;
}

static void notes(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    volatile char here;
    hits++;
    on_alternate = alternate && &here >= alternate && &here < alternate + alternate_bytes;
    evict();
    reopen(info);
}

static long deep(long levels) {
    volatile char local[4000];
    local[0] = local[3999] = 1;
    return levels ? deep(levels - 1) + local[0] : local[3999];
}

static void goes_deep(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    depth = deep(1000);
    reopen(info);
}

static void sets_a_stack(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    stack_t stack = {ghost(65536), 0, 65536};
    errno = 0;
    answer = sigaltstack(&stack, NULL);
    code = errno;
    reopen(info);
}

static ucontext_t before, coroutines[3];
static int current;
static volatile int done;
static char *pages[3];

static void leaves(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)context;
    reopen(info);
    int mine = current;
    swapcontext(&coroutines[mine], &before);
}

static void coroutine(int mine) {
    for (int round = 0; round < 4; round++) {
        volatile char local[3000];
        memset((char *)local, mine + round, sizeof local);
        CHECK(mprotect(pages[mine], 4096, PROT_NONE) == 0);
        *(volatile char *)pages[mine] = (char)round;
        for (unsigned i = 0; i < sizeof local; i++) CHECK(local[i] == mine + round);
    }
    done++;
}

static void ends(int signal, siginfo_t *info, void *context) {
    (void)signal;
    (void)info;
    (void)context;
    pthread_exit((void *)7);
}

static pthread_key_t key;
static int ends_of_pipe[2];
static volatile int written;

/* What a thread that ended in its handler does last. */
static void last(void *block) {
    evict();
    written = (int)write(ends_of_pipe[1], block, 5000);
    free(block);
}

static void *faults(void *own) {
    char *block = ghost(40000);
    CHECK(pthread_setspecific(key, block) == 0);
    if (own) {
        stack_t stack = {ghost(65536), 0, 65536};
        CHECK(sigaltstack(&stack, NULL) == 0);
    }
    *(volatile char *)8 = 1;
    return NULL;
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    const int flags[] = {0, SA_ONSTACK, SA_NODEFER, SA_RESTART | SA_ONSTACK | SA_NODEFER};
    for (int own = 0; own < 2; own++) {
        stack_t stack = {NULL, 0, alternate_bytes = 65536};
        if (own) {
            stack.ss_sp = alternate = ghost(65536);
            CHECK(sigaltstack(&stack, NULL) == 0);
        }
        for (int i = 0; i < 4; i++) {
            set(notes, flags[i]);
            touch();
            CHECK(hits == 1 && on_alternate == (own && flags[i] & SA_ONSTACK));
        }
    }
    /* Beside a small stack for signals, too. */
    set(goes_deep, 0);
    touch();
    CHECK(depth == 1001);
    set(sets_a_stack, SA_ONSTACK);
    touch();
    CHECK(answer == -1 && code == EPERM);
    set(sets_a_stack, 0);
    touch();
    CHECK(answer == 0);
    stack_t now;
    CHECK(sigaltstack(NULL, &now) == 0 && now.ss_sp == alternate);
    stack_t none = {.ss_flags = SS_DISABLE};
    CHECK(sigaltstack(&none, NULL) == 0);
    touch();
    CHECK(answer == 0 && sigaltstack(NULL, &now) == 0 && now.ss_flags == SS_DISABLE);
    set(leaves, SA_NODEFER);
    for (int i = 0; i < 3; i++) {
        pages[i] = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        CHECK(getcontext(&coroutines[i]) == 0);
        coroutines[i].uc_stack.ss_sp = malloc(65536);
        coroutines[i].uc_stack.ss_size = 65536;
        coroutines[i].uc_link = &before;
        makecontext(&coroutines[i], (void (*)(void))coroutine, 1, i);
    }
    for (int round = 0; round < 5; round++)
        for (current = 0; current < 3; current++) {
            CHECK(swapcontext(&before, &coroutines[current]) == 0);
            evict();
        }
    CHECK(done == 3);
    CHECK(pthread_key_create(&key, last) == 0 && pipe(ends_of_pipe) == 0);
    for (long own = 0; own < 2; own++) {
        set(ends, SA_ONSTACK);
        pthread_t thread;
        void *result;
        written = 0;
        CHECK(pthread_create(&thread, NULL, faults, (void *)own) == 0);
        CHECK(pthread_join(thread, &result) == 0 && result == (void *)7 && written == 5000);
    }
    puts("ok");
    return 0;
}
