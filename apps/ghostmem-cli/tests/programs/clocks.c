/* Clocks that are asked by way of the vDSO, which makes a system call where it does not know
 * the time itself: of processes and threads, and all of them without a clock of the processor's
 * own. The answers lie in memory that was never touched, or was put away. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/time.h>
#include <time.h>

#define PAGE 4096ul

/* A place for an answer, which is not there: across two pages, too. */
static void *away(int way, size_t at) {
    char *block = way == 0 ? calloc(1, 200000) : way == 1 ? ghost(16 * PAGE)
        : mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(block && block != MAP_FAILED);
    char *page = (char *)(((unsigned long)block + 4 * PAGE) & ~(PAGE - 1));
    if (way == 1) evict();
    return page + at;
}

static int is_later(const struct timespec *one, const struct timespec *other) {
    return one->tv_sec > other->tv_sec || (one->tv_sec == other->tv_sec && one->tv_nsec >= other->tv_nsec);
}

int main(int argc, char **argv) {
    (void)argc, (void)argv;
    prepare("5000000");
    evict();
    clockid_t clocks[] = {CLOCK_PROCESS_CPUTIME_ID, CLOCK_THREAD_CPUTIME_ID, CLOCK_REALTIME, CLOCK_MONOTONIC,
                          CLOCK_MONOTONIC_RAW, CLOCK_BOOTTIME, CLOCK_TAI, 0, 0};
    int count = sizeof clocks / sizeof *clocks;
    CHECK(clock_getcpuclockid(0, &clocks[count - 1]) == 0);
    CHECK(pthread_getcpuclockid(pthread_self(), &clocks[count - 2]) == 0);
    for (int way = 0; way < 3; way++)
        for (int across = 0; across < 2; across++)
            for (int i = 0; i < count; i++) {
                struct timespec before, after, *place = away(way, across ? PAGE - 8 : 64);
                CHECK(clock_gettime(clocks[i], &before) == 0);
                CHECK(clock_gettime(clocks[i], place) == 0);
                CHECK(clock_gettime(clocks[i], &after) == 0);
                CHECK(is_later(place, &before) && is_later(&after, place));
                place = away(way, across ? PAGE - 8 : 64);
                CHECK(clock_getres(clocks[i], &before) == 0 && clock_getres(clocks[i], place) == 0);
                CHECK(memcmp(place, &before, sizeof before) == 0);
                if (across) {
                    struct timeval *day = away(way, PAGE - 8);
                    struct timezone *zone = away(way, PAGE - 4);
                    CHECK(gettimeofday(day, zone) == 0 && day->tv_sec > 1000000000);
                    time_t *second = away(way, 8);
                    time_t said = time(second);
                    CHECK(said == *second && said + 1 >= day->tv_sec);
                    unsigned *cpu = away(way, 8), *node = away(way, 16);
                    CHECK(getcpu(cpu, node) == 0 && *cpu < CPU_SETSIZE);
                    CHECK(getrandom(away(way, 8), 6000, 0) == 6000);
                }
            }
    /* No time goes where there is no room for it. */
    struct timespec *closed = away(1, 0), *cut = away(1, PAGE - 8);
    CHECK(mprotect(closed, PAGE, PROT_READ) == 0 && mprotect((char *)cut + 8, PAGE, PROT_NONE) == 0);
    void *bad[] = {closed, cut, (void *)8, (void *)-4096};
    for (int i = 0; i < 4; i++) {
        errno = 0;
        CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, bad[i]) == -1 && errno == EFAULT);
        errno = 0;
        CHECK(clock_getres(CLOCK_THREAD_CPUTIME_ID, bad[i]) == -1 && errno == EFAULT);
    }
    CHECK(closed->tv_sec == 0 && closed->tv_nsec == 0);
    errno = 0;
    CHECK(clock_gettime(99, away(1, 0)) == -1 && errno == EINVAL);
    CHECK(clock_getres(CLOCK_PROCESS_CPUTIME_ID, NULL) == 0);
    puts("ok");
    return 0;
}
