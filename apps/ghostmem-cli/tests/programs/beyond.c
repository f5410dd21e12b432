/* Blocks below 32 KiB, more of them than small objects have room for where address space is
 * scarce: they take pages of their own, in regions that are made for them. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { BLOCKS = 700, BYTES = 20000 };

int main(void) {
    static char *blocks[BLOCKS];
    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < BLOCKS; i++) {
            blocks[i] = malloc(BYTES);
            if (!blocks[i]) return 2;
            memset(blocks[i], i + round, BYTES);
        }
        for (int i = 0; i < BLOCKS; i++) {
            for (int at = 0; at < BYTES; at += 100)
                if (blocks[i][at] != (char)(i + round)) return 3;
            int ends[2];
            char back[5000];
            if (pipe(ends)) return 4;
            if (write(ends[1], blocks[i], sizeof back) != sizeof back) return 5;
            if (read(ends[0], back, sizeof back) != sizeof back) return 6;
            close(ends[0]);
            close(ends[1]);
            blocks[i] = realloc(blocks[i], BYTES / 3);
            if (!blocks[i] || blocks[i][BYTES / 3 - 1] != (char)(i + round)) return 7;
            free(blocks[i]);
        }
    }
    puts("ok");
    return 0;
}
