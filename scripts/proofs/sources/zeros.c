/* So many MiB of zeros, filled with what does not compress: zeros MIB */
#include "noise.h"

int main(int count, char **arguments) {
    if (count < 2)
        return 2;
    size_t words = strtoul(arguments[1], NULL, 10) * (MIB / sizeof(uint64_t));
    setvbuf(stdout, NULL, _IONBF, 0);
    uint64_t *zeros = calloc(words, sizeof(uint64_t));
    puts(zeros ? "granted" : "refused");
    if (!zeros)
        return 0;
    fill_noise(zeros, words, 1);
    look_at_noise(zeros, words, 1);
    puts("all of it");
    return 0;
}
