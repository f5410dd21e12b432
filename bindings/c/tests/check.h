/* What the C and C++ tests share: CHECK ends the program at the first thing
 * that is not as it should be. */

#ifndef GHOSTMEM_TEST_CHECK_H
#define GHOSTMEM_TEST_CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                             \
    do {                                                                             \
        if (!(condition)) {                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            exit(1);                                                                 \
        }                                                                            \
    } while (0)

#endif
