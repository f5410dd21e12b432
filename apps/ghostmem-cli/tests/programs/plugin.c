/* A library that finds libc's malloc family rather than GhostMem's, when it is
 * opened with RTLD_DEEPBIND. */
#define _GNU_SOURCE
#include <malloc.h>
#include <stdlib.h>

void *plugin_malloc(size_t size) { return malloc(size); }
void plugin_free(void *block) { free(block); }
void *plugin_realloc(void *block, size_t size) { return realloc(block, size); }
size_t plugin_usable(void *block) { return malloc_usable_size(block); }
