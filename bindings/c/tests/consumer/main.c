#include <ghostmem.h>
#include <stdio.h>
#include <string.h>

int main(void) {
    enum { COUNT = 1 << 20 };
    ghostmem_heap *heap = ghostmem_default_heap(16);
    int *numbers = ghostmem_allocate(heap, COUNT * sizeof *numbers);
    if (numbers == NULL) {
        fprintf(stderr, "%s\n", ghostmem_last_error());
        return 1;
    }
    for (int i = 0; i < COUNT; i++) {
        numbers[i] = i;
    }
    for (int i = 0; i < COUNT; i++) {
        if (numbers[i] != i) {
            return 1;
        }
    }
    if (ghostmem_deallocate(heap, numbers) != GHOSTMEM_STATUS_OK) {
        return 1;
    }
    printf("consumer: C, ghostmem %s\n", ghostmem_version());
    return 0;
}
