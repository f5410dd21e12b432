/* Touches a block of pages in a known order and prints where the block is and
 * which pages it touched, for the test of `ghostmem run --trace`. */
#include <stdio.h>
#include <stdlib.h>

#define PAGES 1024
#define OTHERS 256
#define SIZE 4096

int main(void)
{
    volatile char *block = aligned_alloc(SIZE, PAGES * SIZE);
    volatile char *others = aligned_alloc(SIZE, OTHERS * SIZE);
    if (!block || !others)
        return 1;
    /* Nothing is printed, and so nothing else allocated, in between. */
    static const int strides[] = {1, 389, 601};
    for (int pass = 0; pass < 3; pass++) {
        for (int at = 0; at < PAGES; at++) {
            volatile char *page = block + (long)(at * strides[pass] % PAGES) * SIZE;
            if (pass == 1)
                (void)*page;
            else
                *page = (char)(at + pass);
        }
        /* More than may be open: what the next pass begins with is absent. */
        for (int at = 0; at < OTHERS; at++)
            others[at * SIZE] = 1;
    }
    printf("%lu\n", (unsigned long)block / SIZE);
    return 7;
}
