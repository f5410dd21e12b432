/* Every function of ghostmem.h, on heaps small enough to evict all the time,
 * and what it refuses. */

#include "ghostmem.h"

#include <errno.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>

#include "../check.h"

#define PAGE GHOSTMEM_PAGE_SIZE

static ghostmem_config small_config(size_t pages) {
    ghostmem_config config;
    memset(&config, 0xFF, sizeof config);
    ghostmem_config_init(&config, sizeof config);
    CHECK(config.struct_bytes == sizeof config);
    config.resident_limit_bytes = pages * PAGE;
    return config;
}

static ghostmem_heap *small_heap(size_t pages) {
    ghostmem_config config = small_config(pages);
    ghostmem_heap *heap = NULL;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_OK);
    CHECK(heap != NULL);
    return heap;
}

static ghostmem_stats stats_of(const ghostmem_heap *heap) {
    ghostmem_stats stats;
    CHECK(ghostmem_heap_stats(heap, &stats, sizeof stats) == GHOSTMEM_STATUS_OK);
    return stats;
}

static void contents_survive_eviction(void) {
    enum { PAGES = 400, LIMIT = 8 };
    ghostmem_heap *heap = small_heap(LIMIT);
    uint64_t *words = ghostmem_allocate_zeroed(heap, (size_t)PAGES * PAGE);
    const size_t count = (size_t)PAGES * PAGE / sizeof *words;
    CHECK(words != NULL);
    for (size_t i = 0; i < count; i += 100) {
        CHECK(words[i] == 0);
    }
    for (size_t i = 0; i < count; i++) {
        words[i] = i * UINT64_C(0x9E3779B97F4A7C15) >> (i % 64);
    }
    for (size_t i = 0; i < count; i++) {
        CHECK(words[i] == i * UINT64_C(0x9E3779B97F4A7C15) >> (i % 64));
    }
    const ghostmem_stats stats = stats_of(heap);
    CHECK(stats.resident_bytes <= (size_t)LIMIT * PAGE);
    CHECK(stats.resident_limit_bytes == (size_t)LIMIT * PAGE);
    CHECK(stats.allocated_bytes == (uint64_t)PAGES * PAGE);
    CHECK(stats.evictions_dirty >= PAGES - LIMIT);
    CHECK(stats.refaults >= 1 && stats.faults >= stats.refaults);
    CHECK(stats.metadata_bytes > 0);
    CHECK(stats.fault_p50_ns > 0 && stats.fault_p99_ns >= stats.fault_p50_ns);
    CHECK(ghostmem_deallocate(heap, words) == GHOSTMEM_STATUS_OK);
    CHECK(stats_of(heap).allocated_bytes == 0);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void blocks_of_every_size_and_alignment(void) {
    ghostmem_heap *heap = small_heap(16);
    for (size_t size = 0; size < 100000; size = size * 3 / 2 + 1) {
        for (size_t align = 1; align <= 65536; align *= 4) {
            unsigned char *block = ghostmem_allocate_aligned(heap, align, size);
            CHECK(block != NULL);
            CHECK((uintptr_t)block % align == 0 && (uintptr_t)block % 16 == 0);
            const size_t bytes = ghostmem_block_bytes(heap, block);
            CHECK(bytes >= size && bytes > 0);
            memset(block, 0xA5, bytes);
            CHECK(ghostmem_is_ghost(heap, block) && ghostmem_is_ghost(heap, block + bytes - 1));
            CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_OK);
            block = ghostmem_allocate_zeroed_aligned(heap, align, size);
            CHECK(block != NULL);
            for (size_t i = 0; i < size; i++) {
                CHECK(block[i] == 0);
            }
            CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_OK);
        }
    }
    CHECK(ghostmem_allocate_aligned(heap, 3, 1) == NULL);
    CHECK(strstr(ghostmem_last_error(), "power of two") != NULL);
    CHECK(ghostmem_allocate(heap, SIZE_MAX) == NULL);
    CHECK(ghostmem_allocate(heap, SIZE_MAX / 2) == NULL);
    CHECK(ghostmem_allocate(heap, SIZE_MAX / 2 - 4096) == NULL);
    CHECK(strstr(ghostmem_last_error(), "cannot allocate") != NULL);
    CHECK(stats_of(heap).allocated_bytes == 0);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void resizing_keeps_the_bytes(void) {
    ghostmem_heap *heap = small_heap(8);
    unsigned char *block = ghostmem_reallocate(heap, NULL, 1);
    CHECK(block != NULL);
    block[0] = 0;
    size_t filled = 1;
    static const size_t sizes[] = {30, 500, 5000, 200000, 70000, 40, 3, 100000, 0};
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        unsigned char *moved = ghostmem_reallocate(heap, block, sizes[i]);
        CHECK(moved != NULL);
        block = moved;
        CHECK(ghostmem_block_bytes(heap, block) >= sizes[i]);
        const size_t kept = filled < sizes[i] ? filled : sizes[i];
        for (size_t at = 0; at < kept; at++) {
            CHECK(block[at] == (unsigned char)(at * 7));
        }
        for (filled = kept; filled < sizes[i]; filled++) {
            block[filled] = (unsigned char)(filled * 7);
        }
    }
    CHECK(ghostmem_reallocate(heap, block, SIZE_MAX / 4) == NULL);
    /* A block of pages has room up to the next power of two. */
    block = ghostmem_reallocate(heap, block, 200000);
    CHECK(block != NULL);
    CHECK(ghostmem_reallocate(heap, block, 250000) == block);
    CHECK(ghostmem_block_bytes(heap, block) >= 250000);
    CHECK(ghostmem_reallocate(heap, block, 70000) == block);
    CHECK(ghostmem_block_bytes(heap, block) < 80000);
    CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_reallocate(heap, block, 10) == NULL);
    CHECK(stats_of(heap).allocated_bytes == 0);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void wrong_frees_change_nothing(void) {
    ghostmem_heap *heap = small_heap(8);
    ghostmem_heap *other = small_heap(8);
    static const size_t sizes[] = {10, 3000, 70000};
    for (size_t i = 0; i < 3; i++) {
        char *block = ghostmem_allocate(heap, sizes[i]);
        char *neighbour = ghostmem_allocate(heap, sizes[i]);
        CHECK(block != NULL && neighbour != NULL);
        memset(neighbour, 'n', sizes[i]);
        CHECK(ghostmem_deallocate(heap, NULL) == GHOSTMEM_STATUS_OK);
        CHECK(ghostmem_deallocate(heap, block + 1) == GHOSTMEM_STATUS_NOT_ALLOCATED);
        CHECK(ghostmem_deallocate(other, block) == GHOSTMEM_STATUS_NOT_ALLOCATED);
        CHECK(ghostmem_deallocate(heap, &heap) == GHOSTMEM_STATUS_NOT_ALLOCATED);
        CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_OK);
        CHECK(ghostmem_deallocate(heap, block) == GHOSTMEM_STATUS_NOT_ALLOCATED);
        CHECK(strstr(ghostmem_last_error(), "freed twice") != NULL);
        for (size_t at = 0; at < sizes[i]; at++) {
            CHECK(neighbour[at] == 'n');
        }
        CHECK(ghostmem_deallocate(heap, neighbour) == GHOSTMEM_STATUS_OK);
    }
    CHECK(stats_of(heap).allocated_bytes == 0);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_heap_destroy(other) == GHOSTMEM_STATUS_OK);
}

static void advice_moves_pages(void) {
    enum { PAGES = 20 };
    ghostmem_heap *heap = small_heap(64);
    char *block = ghostmem_allocate(heap, (size_t)PAGES * PAGE);
    CHECK(block != NULL);
    for (size_t page = 0; page < PAGES; page++) {
        memset(block + page * PAGE, (int)('a' + page), 100);
    }
    CHECK(ghostmem_is_resident(heap, block));
    size_t pages = 0;
    CHECK(ghostmem_evict(heap, block, (size_t)PAGES * PAGE, &pages) == GHOSTMEM_STATUS_OK);
    CHECK(pages == PAGES);
    CHECK(!ghostmem_is_resident(heap, block));
    CHECK(ghostmem_prefetch(heap, block, (size_t)PAGES * PAGE, &pages) == GHOSTMEM_STATUS_OK);
    CHECK(pages == PAGES);
    CHECK(ghostmem_is_resident(heap, block + PAGE));
    CHECK(ghostmem_cold(heap, block, PAGE) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_evict_coldest(heap, &pages) == GHOSTMEM_STATUS_OK);
    CHECK(pages == 1);
    CHECK(ghostmem_evict_coldest(heap, NULL) == GHOSTMEM_STATUS_OK);
    for (size_t page = 0; page < PAGES; page++) {
        CHECK(block[page * PAGE] == (char)('a' + page));
        CHECK(block[page * PAGE + 99] == (char)('a' + page));
        CHECK(block[page * PAGE + 100] == 0);
    }
    CHECK(ghostmem_discard(heap, block + PAGE, PAGE) == GHOSTMEM_STATUS_OK);
    CHECK(block[0] == 'a' && block[PAGE] == 0 && block[2 * PAGE] == 'c');
    CHECK(ghostmem_evict(heap, &heap, 1, NULL) == GHOSTMEM_STATUS_NOT_GHOST);
    CHECK(ghostmem_cold(heap, &heap, 1) == GHOSTMEM_STATUS_NOT_GHOST);
    CHECK(ghostmem_discard(heap, &heap, 1) == GHOSTMEM_STATUS_NOT_GHOST);
    CHECK(ghostmem_prefetch(heap, &heap, 1, &pages) == GHOSTMEM_STATUS_NOT_GHOST);
    CHECK(!ghostmem_is_ghost(heap, &heap) && !ghostmem_is_resident(heap, &heap));
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

/* A pipe takes 64 KiB, which is more than these buffers. */
static void pinned_buffers_go_through_system_calls(void) {
    enum { PAGES = 4 };
    ghostmem_heap *heap = small_heap(32);
    char *from = ghostmem_allocate(heap, (size_t)PAGES * PAGE);
    char *to = ghostmem_allocate(heap, (size_t)PAGES * PAGE);
    CHECK(from != NULL && to != NULL);
    for (size_t i = 0; i < (size_t)PAGES * PAGE; i++) {
        from[i] = (char)(i * 31);
        to[i] = 0;
    }
    CHECK(ghostmem_evict(heap, from, (size_t)PAGES * PAGE, NULL) == GHOSTMEM_STATUS_OK);
    int ends[2];
    CHECK(pipe(ends) == 0);
    const ghostmem_backend backend = ghostmem_heap_backend(heap);
    if (backend != GHOSTMEM_BACKEND_MONITOR) {
        /* As documented: nothing is lost, and the call says so. */
        CHECK(write(ends[1], from, (size_t)PAGES * PAGE) == -1 && errno == EFAULT);
    }
    ghostmem_pinned *pin_from = NULL, *pin_to = NULL;
    CHECK(ghostmem_pin(heap, from, (size_t)PAGES * PAGE, &pin_from) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_pin(heap, to, (size_t)PAGES * PAGE, &pin_to) == GHOSTMEM_STATUS_OK);
    size_t pages = 1;
    CHECK(ghostmem_evict(heap, from, (size_t)PAGES * PAGE, &pages) == GHOSTMEM_STATUS_OK);
    CHECK(pages == 0);
    CHECK(write(ends[1], from, (size_t)PAGES * PAGE) == PAGES * PAGE);
    CHECK(read(ends[0], to, (size_t)PAGES * PAGE) == PAGES * PAGE);
    ghostmem_unpin(pin_from);
    ghostmem_unpin(pin_to);
    ghostmem_unpin(NULL);
    CHECK(ghostmem_evict(heap, to, (size_t)PAGES * PAGE, &pages) == GHOSTMEM_STATUS_OK);
    CHECK(pages == PAGES);
    CHECK(memcmp(from, to, (size_t)PAGES * PAGE) == 0);
    CHECK(close(ends[0]) == 0 && close(ends[1]) == 0);

    ghostmem_pinned *pin = NULL;
    char *large = ghostmem_allocate(heap, (size_t)40 * PAGE);
    CHECK(ghostmem_pin(heap, large, (size_t)40 * PAGE, &pin) == GHOSTMEM_STATUS_TOO_MANY_PINNED);
    CHECK(pin == NULL);
    CHECK(ghostmem_pin(heap, &heap, 1, &pin) == GHOSTMEM_STATUS_NOT_GHOST);
    CHECK(ghostmem_pin(heap, large, 1, NULL) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void bad_settings_are_refused_with_a_reason(void) {
    ghostmem_heap *heap = (ghostmem_heap *)&heap;
    ghostmem_config config = small_config(4);
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_LIMIT_TOO_SMALL);
    CHECK(heap == NULL && strstr(ghostmem_last_error(), "20480") != NULL);
    config = small_config(8);
    config.backend = 99;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    config = small_config(8);
    config.codec = 99;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    config = small_config(8);
    config.struct_bytes = 8;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    config = small_config(8);
    config.slowdown_ppm = 4999;
    config.background = 1;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(ghostmem_last_error(), "0.5 to 50") != NULL);
    config.slowdown_ppm = 5000;
    config.background = 0;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(ghostmem_last_error(), "background thread") != NULL);
    config = small_config(8);
    config.memory_bytes = PAGE;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_LIMIT_TOO_SMALL);
    config.memory_percent = 50;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    config.memory_bytes = 0;
    config.memory_percent = 101;
    CHECK(ghostmem_heap_create(&config, &heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_heap_create(&config, NULL) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    ghostmem_config_init(NULL, 0);

    CHECK(ghostmem_allocate(NULL, 1) == NULL);
    CHECK(ghostmem_allocate_zeroed(NULL, 1) == NULL);
    CHECK(ghostmem_reallocate(NULL, NULL, 1) == NULL);
    CHECK(ghostmem_deallocate(NULL, NULL) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_heap_stats(NULL, NULL, 0) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_heap_set_resident_limit(NULL, 1 << 20) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_heap_backend(NULL) == GHOSTMEM_BACKEND_AUTO);
    CHECK(ghostmem_heap_destroy(NULL) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_block_bytes(NULL, &heap) == 0 && !ghostmem_is_ghost(NULL, &heap));

    heap = small_heap(8);
    CHECK(ghostmem_heap_set_resident_limit(heap, PAGE) == GHOSTMEM_STATUS_LIMIT_TOO_SMALL);
    CHECK(ghostmem_heap_set_resident_limit(heap, 16 * PAGE) == GHOSTMEM_STATUS_OK);
    CHECK(stats_of(heap).resident_limit_bytes == 16 * PAGE);
    CHECK(ghostmem_heap_stats(heap, NULL, 0) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    /* A program made for fewer figures gets those, one made for more zeros. */
    uint64_t some[100];
    memset(some, 0xFF, sizeof some);
    CHECK(ghostmem_heap_stats(heap, (ghostmem_stats *)some, 24) == GHOSTMEM_STATUS_OK);
    CHECK(some[2] == 16 * PAGE && some[3] == UINT64_MAX);
    CHECK(ghostmem_heap_stats(heap, (ghostmem_stats *)some, sizeof some) == GHOSTMEM_STATUS_OK);
    CHECK(some[2] == 16 * PAGE && some[99] == 0);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static uint64_t figure(const ghostmem_heap *heap, const char *name) {
    uint64_t value = UINT64_MAX;
    CHECK(ghostmem_stat(heap, name, &value) == GHOSTMEM_STATUS_OK);
    return value;
}

static void every_figure_has_a_name(void) {
    ghostmem_heap *heap = small_heap(8);
    unsigned char *bytes = ghostmem_allocate(heap, 100 * PAGE);
    CHECK(bytes != NULL);
    for (size_t i = 0; i < 100 * PAGE; i++) {
        bytes[i] = (unsigned char)(i / 16);
    }
    CHECK(ghostmem_evict(heap, bytes, 100 * PAGE, NULL) == GHOSTMEM_STATUS_OK);
    const ghostmem_stats stats = stats_of(heap);
    CHECK(stats.evictions_dirty > 90 && stats.stored_pages == 100);
    CHECK(figure(heap, "stored_pages") == stats.stored_pages);
    CHECK(figure(heap, "evictions_dirty") == stats.evictions_dirty);
    CHECK(figure(heap, "faults") == stats.faults && stats.faults > 0);
    CHECK(figure(heap, "resident_limit_bytes") == 8 * PAGE);
    CHECK(figure(heap, "fault_p99_ns") == stats.fault_p99_ns);
    CHECK(figure(heap, "spill_waits") == 0);
    /* One that the structure does not have. */
    CHECK(figure(heap, "kept_copies") == 0);
    size_t names = 0;
    while (ghostmem_stat_name(names) != NULL) {
        CHECK(figure(heap, ghostmem_stat_name(names)) != UINT64_MAX);
        names++;
    }
    CHECK(names > sizeof stats / sizeof(uint64_t));
    CHECK(ghostmem_stat_name(SIZE_MAX) == NULL);

    uint64_t value = 7;
    CHECK(ghostmem_stat(heap, "no_such_figure", &value) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(strstr(ghostmem_last_error(), "no_such_figure") != NULL);
    CHECK(ghostmem_stat(heap, "", &value) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_stat(heap, NULL, &value) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_stat(NULL, "faults", &value) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(ghostmem_stat(heap, "faults", NULL) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    CHECK(value == 7);
    CHECK(ghostmem_deallocate(heap, bytes) == GHOSTMEM_STATUS_OK);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
}

static void every_backend_that_works_here_works(void) {
    static const ghostmem_backend backends[] = {
        GHOSTMEM_BACKEND_INLINE, GHOSTMEM_BACKEND_MONITOR, GHOSTMEM_BACKEND_GUARD,
        GHOSTMEM_BACKEND_GUARD_MPROTECT};
    unsigned worked = 0;
    for (size_t i = 0; i < 4; i++) {
        ghostmem_config config = small_config(8);
        config.backend = (uint32_t)backends[i];
        ghostmem_heap *heap = NULL;
        const ghostmem_status status = ghostmem_heap_create(&config, &heap);
        if (status != GHOSTMEM_STATUS_OK) {
            CHECK(status == GHOSTMEM_STATUS_BACKEND_UNAVAILABLE);
            printf("not on this machine: %s\n", ghostmem_last_error());
            continue;
        }
        CHECK(ghostmem_heap_backend(heap) == backends[i] || i == 2);
        int *numbers = ghostmem_allocate(heap, 100 * PAGE);
        CHECK(numbers != NULL);
        for (int n = 0; n < 100 * PAGE / 4; n++) {
            numbers[n] = n;
        }
        for (int n = 0; n < 100 * PAGE / 4; n++) {
            CHECK(numbers[n] == n);
        }
        CHECK(stats_of(heap).evictions_dirty > 0);
        CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_OK);
        worked++;
    }
    CHECK(worked > 0);
}

static void the_default_heap_is_one(void) {
    ghostmem_config config;
    ghostmem_config_init(&config, sizeof config);
    CHECK(ghostmem_default_heap_configure(&config, 12) == GHOSTMEM_STATUS_OK);
    ghostmem_heap *heap = ghostmem_default_heap(50);
    CHECK(heap != NULL && heap == ghostmem_default_heap(0));
    CHECK(stats_of(heap).resident_limit_bytes == 12 * PAGE);
    CHECK(ghostmem_heap_destroy(heap) == GHOSTMEM_STATUS_INVALID_ARGUMENT);
    config.resident_limit_bytes = 20 * PAGE;
    CHECK(ghostmem_default_heap_configure(&config, 12) == GHOSTMEM_STATUS_OK);
    CHECK(stats_of(heap).resident_limit_bytes == 20 * PAGE);
    config.keep_copies = 0;
    CHECK(ghostmem_default_heap_configure(&config, 12) == GHOSTMEM_STATUS_ALREADY_INITIALIZED);
    CHECK(strstr(ghostmem_last_error(), "before the first allocation") != NULL);
    CHECK(ghostmem_default_heap_configure(NULL, 12) == GHOSTMEM_STATUS_OK);
    CHECK(stats_of(heap).resident_limit_bytes == 12 * PAGE);
}

int main(void) {
    contents_survive_eviction();
    blocks_of_every_size_and_alignment();
    resizing_keeps_the_bytes();
    wrong_frees_change_nothing();
    advice_moves_pages();
    pinned_buffers_go_through_system_calls();
    bad_settings_are_refused_with_a_reason();
    every_figure_has_a_name();
    every_backend_that_works_here_works();
    the_default_heap_is_one();
    CHECK(ghostmem_rearm() == GHOSTMEM_STATUS_OK);
    CHECK(strcmp(ghostmem_status_text(GHOSTMEM_STATUS_OK), "success") == 0);
    CHECK(strcmp(ghostmem_status_text(-5), "unknown status") == 0);
    CHECK(ghostmem_version()[0] != '\0');
    puts("the C interface: all right");
    return 0;
}
