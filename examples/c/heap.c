/* A heap of its own with a limit of 1 MiB that holds 64 MiB, and what it cost.
 *
 *     cc heap.c $(pkg-config --cflags --libs ghostmem) -o heap && ./heap
 */

#include <ghostmem.h>
#include <stdio.h>
#include <stdlib.h>

static void fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, ghostmem_last_error());
    exit(1);
}

int main(void) {
    ghostmem_config config;
    ghostmem_config_init(&config, sizeof config);
    config.resident_limit_bytes = 1 << 20;
    ghostmem_heap *heap;
    if (ghostmem_heap_create(&config, &heap) != GHOSTMEM_STATUS_OK) {
        fail("no heap");
    }

    const size_t count = (size_t)8 << 20;
    double *samples = ghostmem_allocate(heap, count * sizeof *samples);
    if (samples == NULL) {
        fail("no memory");
    }
    for (size_t i = 0; i < count; i++) {
        samples[i] = (double)(i / 1000);
    }
    double sum = 0;
    for (size_t i = 0; i < count; i++) {
        sum += samples[i];
    }

    ghostmem_stats stats;
    ghostmem_heap_stats(heap, &stats, sizeof stats);
    printf("sum %.0f of %zu samples\n", sum, count);
    printf("%.1f MiB allocated, %.1f MiB resident, %.1f MiB in the store\n",
           (double)stats.allocated_bytes / (1 << 20), (double)stats.resident_bytes / (1 << 20),
           (double)stats.store_held_bytes / (1 << 20));
    printf("%llu faults, median %.1f us\n", (unsigned long long)stats.faults,
           (double)stats.fault_p50_ns / 1000);

    ghostmem_deallocate(heap, samples);
    ghostmem_heap_destroy(heap);
    return 0;
}
