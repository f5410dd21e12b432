/* libghostmem loaded while the program runs: dlopen LIBRARY. Closing it leaves it
 * where it is: ghost memory needs its handlers and threads. */

#include "ghostmem.h"

#include <dlfcn.h>
#include <string.h>

#include "../check.h"

typedef ghostmem_heap *(*default_heap)(size_t);
typedef void *(*allocate)(ghostmem_heap *, size_t);
typedef ghostmem_status (*deallocate)(ghostmem_heap *, void *);

/* ISO C has no conversion from an object pointer to a function pointer; POSIX
 * gives them the same representation. */
static void find(void *library, const char *name, void *function) {
    void *symbol = dlsym(library, name);
    CHECK(symbol != NULL);
    memcpy(function, &symbol, sizeof symbol);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 1;
    }
    default_heap heap;
    allocate take;
    deallocate give;
    find(library, "ghostmem_default_heap", &heap);
    find(library, "ghostmem_allocate", &take);
    find(library, "ghostmem_deallocate", &give);
    enum { COUNT = 1 << 18 };
    int *numbers = take(heap(5), COUNT * sizeof *numbers);
    CHECK(numbers != NULL);
    for (int i = 0; i < COUNT; i++) {
        numbers[i] = i;
    }
    for (int i = 0; i < COUNT; i++) {
        CHECK(numbers[i] == i);
    }
    CHECK(dlclose(library) == 0);
    for (int i = 0; i < COUNT; i++) {
        CHECK(numbers[i] == i);
    }
    CHECK(give(heap(5), numbers) == GHOSTMEM_STATUS_OK);
    puts("dlopen: all right");
    return 0;
}
