/* Blocks of 256 KiB, touched one after the other, with a mark and a pause before and after
 * each: how exact the kernel's counters are: blocks COUNT */
#include <sys/mman.h>
#include <time.h>
#include "noise.h"

int main(int count, char **arguments) {
    if (count < 2)
        return 2;
    size_t blocks = strtoul(arguments[1], NULL, 10), block = 256 << 10;
    char *memory = mmap(NULL, blocks * block, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        return 3;
    madvise(memory, blocks * block, MADV_NOHUGEPAGE);
    const struct timespec pause = {.tv_nsec = 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
    mark();
    nanosleep(&pause, NULL);
    for (size_t at = 0; at < blocks; at++) {
        mark();
        nanosleep(&pause, NULL);
        for (size_t byte = 0; byte < block; byte += 4096)
            memory[at * block + byte] = 1;
        mark();
        nanosleep(&pause, NULL);
    }
    puts("ok");
    return 0;
}
