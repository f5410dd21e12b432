/* Calls that the kernel makes only for a process of one thread: this one has one, whatever
 * helps it. Data stays, children work, and threads and evictions go on afterwards. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static char *data;
static const size_t bytes = 6 << 20;
static int has_monitor;

static void fill(void) {
    for (size_t at = 0; at < bytes; at += 64) data[at] = (char)(at * 7 / 64);
}

static int is_right(void) {
    for (size_t at = 0; at < bytes; at += 64)
        if (data[at] != (char)(at * 7 / 64)) return 0;
    return 1;
}

/* In a child, which has the parent's namespaces: 0, or the number of what was wrong. */
static int ends_well(int (*body)(void)) {
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) _exit(body());
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* What comes after such a call: a child of the child, all memory again, and no signal that
 * stayed blocked. */
static int goes_on(void) {
    sigset_t mask;
    if (sigprocmask(SIG_BLOCK, NULL, &mask) != 0 || sigismember(&mask, SIGTERM)) return 51;
    evict();
    if (!is_right()) return 52;
    pid_t child = fork();
    if (child == 0) _exit(is_right() ? 0 : 1);
    int status = -1;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) return 53;
    return is_right() ? 0 : 54;
}

/* The answer that the call has to give, and what goes on after it. With a fault monitor the
 * process has two threads. */
static int answered(int answer, int error, int monitored) {
    if (has_monitor ? answer == -1 && error == monitored : answer == 0) return goes_on();
    return 1 + (error & 31);
}

static int a_user_namespace(void) {
    int answer = unshare(CLONE_NEWUSER);
    return answered(answer, errno, EINVAL);
}

static int with_a_mount_namespace(void) {
    int answer = unshare(CLONE_NEWUSER | CLONE_NEWNS);
    return answered(answer, errno, EINVAL);
}

/* Threads cannot be made any more, as processes would be others'. */
static int with_a_pid_namespace(void) {
    int answer = unshare(CLONE_NEWUSER | CLONE_NEWPID);
    return answered(answer, errno, EINVAL);
}

static int its_own_memory(void) {
    int answer = unshare(CLONE_VM | CLONE_SIGHAND);
    return answered(answer, errno, EINVAL);
}

static int entering(const char *path, int monitored) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 60;
    int answer = setns(file, 0), error = errno;
    close(file);
    return answered(answer, error, monitored);
}

static int entering_mounts(void) { return entering("/proc/self/ns/mnt", EINVAL); }
static int entering_time(void) { return entering("/proc/self/ns/time", EUSERS); }

/* What is wrong otherwise stays wrong, and costs nothing else. */
static int wrong_otherwise(void) {
    if (unshare(1) != -1 || errno != EINVAL) return 70;
    int file = open("/proc/self/ns/user", O_RDONLY | O_CLOEXEC);
    if (setns(file, 0) != -1 || errno != EINVAL) return 71;
    if (setns(-1, 0) != -1 || errno != EBADF) return 72;
    return goes_on();
}

static int stops;

static void *other(void *argument) {
    while (!__atomic_load_n(&stops, __ATOMIC_ACQUIRE)) is_right();
    return argument;
}

/* A process that has two threads is told so. */
static int two_threads(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, other, NULL) != 0) return 80;
    int answer = unshare(CLONE_NEWUSER), error = errno;
    __atomic_store_n(&stops, 1, __ATOMIC_RELEASE);
    pthread_join(thread, NULL);
    return answer == -1 && error == EINVAL ? goes_on() : 81;
}

static const char *pressing;

/* The heap is made where the kernel makes no threads any more. */
static int before_the_heap(void) {
    int answer = unshare(CLONE_NEWUSER | CLONE_NEWPID), error = errno;
    prepare(pressing);
    data = ghost(bytes);
    fill();
    return answered(answer, error, EINVAL);
}

int main(int count, char **words) {
    (void)count;
    const char *backend = getenv("BACKEND");
    has_monitor = backend && strcmp(backend, "monitor") == 0;
    pressing = words[2];
    CHECK(ends_well(before_the_heap) == 0);
    prepare(pressing);
    data = ghost(bytes);
    fill();
    evict();
    CHECK(ends_well(a_user_namespace) == 0);
    CHECK(ends_well(with_a_mount_namespace) == 0);
    CHECK(ends_well(with_a_pid_namespace) == 0);
    CHECK(ends_well(its_own_memory) == 0);
    CHECK(ends_well(entering_mounts) == 0);
    CHECK(ends_well(entering_time) == 0);
    CHECK(ends_well(wrong_otherwise) == 0);
    CHECK(ends_well(two_threads) == 0);
    CHECK(is_right());
    puts("ok");
    return 0;
}
