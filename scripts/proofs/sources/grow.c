/* Blocks of 1 MiB until one is refused: text at first, then what does not compress.
 * All is looked at in the end: grow TEXT_MIB MIB */
#include "noise.h"

#define WORDS (MIB / sizeof(uint64_t))

int main(int count, char **arguments) {
    if (count < 3)
        return 2;
    size_t text = strtoul(arguments[1], NULL, 10), most = strtoul(arguments[2], NULL, 10);
    size_t got = 0;
    static uint64_t *blocks[1 << 16];
    setvbuf(stdout, NULL, _IONBF, 0);
    if (most > sizeof blocks / sizeof *blocks)
        return 2;
    for (; got < most; got++) {
        if (!(blocks[got] = malloc(MIB)))
            break;
        if (got == text)
            mark();
        if (got < text)
            fill_text(blocks[got], WORDS, got);
        else
            fill_noise(blocks[got], WORDS, got);
    }
    for (size_t block = 0; block < got; block++) {
        if (block < text)
            look_at_text(blocks[block], WORDS, block);
        else
            look_at_noise(blocks[block], WORDS, block);
    }
    puts(got < most ? "refused" : "all of it");
    return 0;
}
