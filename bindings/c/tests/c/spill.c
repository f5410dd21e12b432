/* A heap with a file for cold pages: everything comes back, the figures say where
 * it was, and what cannot be done is refused. */

#include "ghostmem.h"

#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"

#define PAGE GHOSTMEM_PAGE_SIZE

static uint64_t word(size_t i) {
    /* Two thirds of the pages do not compress. */
    const uint64_t mixed = (uint64_t)(i + 1) * UINT64_C(0x9E3779B97F4A7C15);
    return (i / 512) % 3 == 0 ? mixed >> 48 : mixed ^ mixed >> 29;
}

static ghostmem_config config_with(const char *dir, const char *file) {
    ghostmem_config config;
    ghostmem_config_init(&config, sizeof config);
    CHECK(config.spill_dir == NULL && config.spill_file == NULL);
    CHECK(config.spill_encrypt == 1 && config.spill_compress == 1);
    CHECK(config.spill_store_bytes == SIZE_MAX && config.spill_limit_bytes == 0);
    config.resident_limit_bytes = 1 << 20;
    config.spill_dir = dir;
    config.spill_file = file;
    return config;
}

static void everything_comes_back(const ghostmem_config *config) {
    enum { BYTES = 24 << 20 };
    ghostmem_heap *heap = NULL;
    CHECK(ghostmem_heap_create(config, &heap) == GHOSTMEM_STATUS_OK);
    uint64_t *words = ghostmem_allocate_zeroed(heap, BYTES);
    const size_t count = BYTES / sizeof *words;
    for (size_t i = 0; i < count; i++) {
        words[i] = word(i);
    }
    for (size_t i = 0; i < count; i++) {
        CHECK(words[i] == word(i));
    }
    ghostmem_stats stats;
    CHECK(ghostmem_heap_stats(heap, &stats, sizeof stats) == GHOSTMEM_STATUS_OK);
    CHECK(stats.pages_spilled > 1000 && stats.spilled_reads > 1000);
    CHECK(stats.file_pages > 1000 && stats.file_data_bytes > 1 << 20);
    CHECK(stats.file_bytes >= stats.file_data_bytes);
    CHECK(stats.spill_write_errors == 0 && stats.spilled_read_errors == 0);
    CHECK(stats.resident_bytes <= 1 << 20);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void refused(const ghostmem_config *config, const char *reason) {
    ghostmem_heap *heap = NULL;
    CHECK(ghostmem_heap_create(config, &heap) != GHOSTMEM_STATUS_OK);
    CHECK(heap == NULL);
    CHECK(strstr(ghostmem_last_error(), reason) != NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    char name[4096];
    snprintf(name, sizeof name, "%s/cold-pages", argv[1]);

    ghostmem_config config = config_with(argv[1], NULL);
    everything_comes_back(&config);
    config.spill_encrypt = 0;
    config.spill_store_bytes = 0;
    everything_comes_back(&config);
    config.spill_compress = 0;
    everything_comes_back(&config);

    config = config_with(NULL, name);
    config.spill_limit_bytes = UINT64_C(1) << 30;
    ghostmem_heap *heap = NULL;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_OK);
    CHECK(access(name, F_OK) == 0);
    refused(&config, "another heap");
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
    CHECK(access(name, F_OK) != 0);

    config = config_with(argv[1], name);
    refused(&config, "both spill_dir and spill_file");
    config = config_with("/no/such/folder", NULL);
    refused(&config, "/no/such/folder");
    config = config_with(NULL, NULL);
    config.spill_compress = 0;
    refused(&config, "without a file");
    puts("spill: all right");
    return 0;
}
