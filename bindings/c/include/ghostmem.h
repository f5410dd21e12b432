/* GhostMem: memory that is compressed in the process while it is cold.
 *
 * Made from the sources of libghostmem by `cargo test -p ghostmem-c --test
 * header`; do not edit. Licensed under Apache-2.0 or MIT.
 *
 * All functions may be called from any thread. A function that answers a
 * status changes nothing unless it answers GHOSTMEM_STATUS_OK, and then
 * ghostmem_last_error() says why.
 */

#ifndef GHOSTMEM_H
#define GHOSTMEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Bytes of a page, the unit of residence.
#define GHOSTMEM_PAGE_SIZE 4096

// What a call answers; zero is success.
enum ghostmem_status
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : int32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // Done.
  GHOSTMEM_STATUS_OK = 0,
  // A null pointer, or a number that is none of its choices.
  GHOSTMEM_STATUS_INVALID_ARGUMENT = 1,
  // No memory or address space, or the memory limit does not hold it.
  GHOSTMEM_STATUS_OUT_OF_MEMORY = 2,
  // A limit below the smallest that can work.
  GHOSTMEM_STATUS_LIMIT_TOO_SMALL = 3,
  // The fault backend asked for, or every one, cannot work here.
  GHOSTMEM_STATUS_BACKEND_UNAVAILABLE = 4,
  // No live block starts there: freed already, never allocated by this
  // heap, or the middle of a block.
  GHOSTMEM_STATUS_NOT_ALLOCATED = 5,
  // The range is not ghost memory of this heap.
  GHOSTMEM_STATUS_NOT_GHOST = 6,
  // So many pages are pinned that the limit would leave too few for
  // everything else.
  GHOSTMEM_STATUS_TOO_MANY_PINNED = 7,
  // The contents of a page could not be brought back.
  GHOSTMEM_STATUS_PAGE_LOST = 8,
  // The default heap exists with other settings than those asked for.
  GHOSTMEM_STATUS_ALREADY_INITIALIZED = 9,
  // What was asked for does not exist in this version.
  GHOSTMEM_STATUS_UNSUPPORTED = 10,
  // The kernel refused a call.
  GHOSTMEM_STATUS_SYSTEM = 11,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ghostmem_status ghostmem_status;
#else
typedef int32_t ghostmem_status;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How a heap learns of touches.
enum ghostmem_backend
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The best this machine allows: inline, else guard; on Windows veh.
  GHOSTMEM_BACKEND_AUTO = 0,
  // userfaultfd, faults resolved on the faulting thread. Fastest. A system
  // call given an absent page fails with EFAULT: pin such buffers.
  GHOSTMEM_BACKEND_INLINE = 1,
  // userfaultfd, faults resolved by engine threads. Slower; system calls
  // see the memory (with a privileged userfaultfd).
  GHOSTMEM_BACKEND_MONITOR = 2,
  // Guard pages on a mapped memory file, where userfaultfd is refused.
  GHOSTMEM_BACKEND_GUARD = 3,
  // As guard, by mprotect(2) alone.
  GHOSTMEM_BACKEND_GUARD_MPROTECT = 4,
  // Windows: a vectored exception handler, faults resolved on the faulting
  // thread. A system call given an absent page fails with
  // ERROR_NOACCESS: pin such buffers.
  GHOSTMEM_BACKEND_VEH = 5,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ghostmem_backend ghostmem_backend;
#else
typedef uint32_t ghostmem_backend;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// How pages are compressed.
enum ghostmem_codec
#if defined(__cplusplus) || __STDC_VERSION__ >= 202311L
  : uint32_t
#endif // defined(__cplusplus) || __STDC_VERSION__ >= 202311L
 {
  // The engine's choice: LZ4 for now.
  GHOSTMEM_CODEC_AUTO = 0,
  // LZ4, fastest setting.
  GHOSTMEM_CODEC_LZ4 = 1,
};
#ifndef __cplusplus
#if __STDC_VERSION__ >= 202311L
typedef enum ghostmem_codec ghostmem_codec;
#else
typedef uint32_t ghostmem_codec;
#endif // __STDC_VERSION__ >= 202311L
#endif // __cplusplus

// Ghost memory with a resident limit of its own. Only ever used through a
// pointer.
typedef struct ghostmem_heap ghostmem_heap;

// Pages held resident, until `ghostmem_unpin`.
typedef struct ghostmem_pinned ghostmem_pinned;

// Settings of a heap. Fill it with `ghostmem_config_init`, then change what
// you want to be different.
typedef struct ghostmem_config {
  // How much of the structure is filled in, set by `ghostmem_config_init`.
  size_t struct_bytes;
  // Most bytes of uncompressed pages mapped at any moment, at least 5 pages
  // (20480). 0: what the bound on the process leaves.
  size_t resident_limit_bytes;
  // The most that the process takes of the machine, bytes, as the kernel
  // charges it: uncompressed and compressed pages, tables, and memory that is
  // not ghost. How many pages stay uncompressed follows from it. Allocations
  // that cannot fit, going by the compression seen so far, fail. SIZE_MAX:
  // what control groups, limits of the process and the machine leave it. 0:
  // the same where there is no resident limit either, else none.
  size_t memory_bytes;
  // One of `ghostmem_backend`.
  uint32_t backend;
  // One of `ghostmem_codec`.
  uint32_t codec;
  // Not 0: pages ahead of a sequential or strided run are restored before
  // they are touched. Default 1.
  uint32_t readahead;
  // Not 0: an engine thread keeps frames free ahead of demand and the store
  // tidy. Default 1.
  uint32_t background;
  // Not 0: a page restored for reading keeps its compressed copy, so that
  // evicting it again is free. Default 1.
  uint32_t keep_copies;
  // In place of `memory_bytes`: hundredths, 1 to 100, of the smallest of those
  // limits. 0: none.
  uint32_t memory_percent;
  // A folder: cold compressed pages go to a nameless file there when memory
  // has its share of them. Null: they stay in memory. The text may be freed
  // when the heap is made.
  const char *spill_dir;
  // The same with a file of that name: it is locked against others and
  // removed when the heap ends (the default heap's when the process ends by
  // exit). One that a killed process left is taken over, any other file of
  // that name is refused. Null: none. Not together with `spill_dir`.
  const char *spill_file;
  // Most bytes of the file. 0: what the disk allows.
  uint64_t spill_limit_bytes;
  // Bytes of compressed pages that stay in memory before the coldest go to
  // the file; 0: none. SIZE_MAX, the default: what the memory limit leaves
  // beside resident pages, or as much as the resident limit where there is
  // none.
  size_t spill_store_bytes;
  // Not 0: what is in the file is encrypted. A checksum is kept in either
  // case. Default 1.
  uint32_t spill_encrypt;
  // 0: pages are not compressed at all. Only with a file. Default 1.
  uint32_t spill_compress;
  // As little memory stays uncompressed as the program bears: faults may take
  // this share of its own time and theirs together, in millionths (50000 is
  // 5 %), 5000 to 500000. The other limits are the most that stays. 0: none.
  uint32_t slowdown_ppm;
} ghostmem_config;

// What a heap holds and did. Fields are read one after the other without
// stopping anybody, so they may be a few operations apart.
typedef struct ghostmem_stats {
  // Bytes the program has allocated and not freed.
  uint64_t allocated_bytes;
  // Bytes of ghost pages mapped now; never above the limit, but for pages
  // counted in `overdrafts`.
  uint64_t resident_bytes;
  // Most bytes that may be mapped.
  uint64_t resident_limit_bytes;
  // Compressed pages in the store, copies of resident pages included.
  uint64_t stored_pages;
  // Compressed size of the pages in the store, bytes.
  uint64_t store_data_bytes;
  // Memory the store holds from the kernel, bytes.
  uint64_t store_held_bytes;
  // Page words, resident sets, slab descriptors and the tables of the file,
  // bytes.
  uint64_t metadata_bytes;
  // Pages stored as they are because they do not compress.
  uint64_t raw_pages;
  // Pages evicted that were one repeated value and took no slot.
  uint64_t same_filled_pages;
  // Faults that put a page in place.
  uint64_t faults;
  // Faults on pages that had been evicted, among `faults`.
  uint64_t refaults;
  // First stores to pages that were clean.
  uint64_t write_faults;
  // Pages evicted without compressing them: their copy was still good.
  uint64_t evictions_clean;
  // Pages evicted by compressing them.
  uint64_t evictions_dirty;
  // Evictions a touch cancelled.
  uint64_t evictions_cancelled;
  // Pages restored ahead of a touch.
  uint64_t readahead_pages;
  // Pages restored ahead of a touch whose run went on past them.
  uint64_t readahead_hits;
  // Times a faulting thread had to evict for itself.
  uint64_t direct_reclaims;
  // Frames taken beyond the limit because a thread could not go on
  // otherwise.
  uint64_t overdrafts;
  // Nanoseconds spent compressing.
  uint64_t compress_ns;
  // Pages compressed in that time.
  uint64_t compressed_pages;
  // Nanoseconds spent decompressing, of sampled pages.
  uint64_t decompress_ns;
  // Pages decompressed in that time.
  uint64_t decompress_samples;
  // Time faults took inside the engine, median, nanoseconds.
  uint64_t fault_p50_ns;
  // Time faults took inside the engine, 99th percentile, nanoseconds.
  uint64_t fault_p99_ns;
  // Pages in the file, copies of resident pages included.
  uint64_t file_pages;
  // Compressed size of the pages in the file, bytes.
  uint64_t file_data_bytes;
  // What the file takes on its disk, bytes.
  uint64_t file_bytes;
  // Pages moved from memory to the file.
  uint64_t pages_spilled;
  // Pages that were touched while they were being moved to the file, and stayed.
  uint64_t spills_in_vain;
  // Pages read from the file, for a fault or ahead of one.
  uint64_t spilled_reads;
  // Reads of a page from the file that failed.
  uint64_t spilled_read_errors;
  // Batches of pages that the file did not take: it was full, or failed.
  uint64_t spill_write_errors;
  // Waits, of up to 2 ms each, of a fault that had to evict while the file
  // was behind.
  uint64_t spill_waits;
} ghostmem_stats;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Fills in the defaults. `config_bytes` is `sizeof(ghostmem_config)` as the
// caller knows it. Null is ignored.
//
// What the caller owes:
// `config` is null or has room for `config_bytes`.
void ghostmem_config_init(struct ghostmem_config *config, size_t config_bytes);

// The process's default heap, made at the first call. `default_pages` is its
// resident limit, unless a configuration or the environment said otherwise:
// `GHOSTMEM_MEMORY` as `memory_bytes`, `GHOSTMEM_LIMIT` as
// `resident_limit_bytes`, both with a unit (64M), as a percentage (25%) or
// auto, `GHOSTMEM_MAX_PHYSICAL_PAGES`; and `GHOSTMEM_SLOWDOWN` (5%) as
// `slowdown_ppm`. 0 stands for what the process may have
// here. Null when it cannot be made, or a variable cannot be read, see
// `ghostmem_last_error`.
struct ghostmem_heap *ghostmem_default_heap(size_t default_pages);

// Makes the default heap with settings of the caller's, or, when it exists,
// changes its resident limit. `config` may be null; where it names no limit,
// the environment and then `default_pages` do, as in `ghostmem_default_heap`.
// `GHOSTMEM_STATUS_ALREADY_INITIALIZED` when the heap exists with other
// settings than a limit: call this before the first allocation.
//
// What the caller owes:
// `config` is null or points to a whole structure.
ghostmem_status ghostmem_default_heap_configure(const struct ghostmem_config *config,
                                                size_t default_pages);

// Makes a heap. `config` may be null for the defaults. On success `*out` is
// the heap, which the caller ends with `ghostmem_heap_destroy`; otherwise
// `*out` is null.
//
// What the caller owes:
// `config` is null or points to a whole structure; `out` is null (refused) or
// points to a place for a pointer.
ghostmem_status ghostmem_heap_create(const struct ghostmem_config *config,
                                     struct ghostmem_heap **out);

// Ends a heap and all of its memory, whether freed or not; ranges that are
// still pinned keep it alive until they are unpinned. Null is ignored, the
// default heap is refused.
//
// What the caller owes:
// `heap` is null or came from `ghostmem_heap_create`, is destroyed once, and
// neither it nor its memory is used afterwards.
ghostmem_status ghostmem_heap_destroy(struct ghostmem_heap *heap);

// Changes the resident limit, bytes. Pages above a lowered limit leave in the
// background, or as the heap is used.
//
// What the caller owes:
// `heap` is null (refused) or lives.
ghostmem_status ghostmem_heap_set_resident_limit(struct ghostmem_heap *heap,
                                                 size_t bytes);

// The fault backend in use, never `GHOSTMEM_BACKEND_AUTO` but for null.
//
// What the caller owes:
// `heap` is null or lives.
ghostmem_backend ghostmem_heap_backend(const struct ghostmem_heap *heap);

// Puts the fault handlers back in front after the program installed its own
// for SIGBUS or SIGSEGV; those get every fault that is not GhostMem's.
ghostmem_status ghostmem_rearm(void);

// Allocates `size` bytes (0 counts as 1), aligned to 16. What they hold is
// unspecified. Null when there is no memory.
//
// What the caller owes:
// `heap` is null (refused) or lives.
void *ghostmem_allocate(struct ghostmem_heap *heap, size_t size);

// As `ghostmem_allocate`, all `size` bytes zero.
//
// What the caller owes:
// `heap` is null (refused) or lives.
void *ghostmem_allocate_zeroed(struct ghostmem_heap *heap, size_t size);

// As `ghostmem_allocate`, aligned to `align`, a power of two; less than 16
// counts as 16.
//
// What the caller owes:
// `heap` is null (refused) or lives.
void *ghostmem_allocate_aligned(struct ghostmem_heap *heap,
                                size_t align,
                                size_t size);

// As `ghostmem_allocate_aligned`, all `size` bytes zero.
//
// What the caller owes:
// `heap` is null (refused) or lives.
void *ghostmem_allocate_zeroed_aligned(struct ghostmem_heap *heap,
                                       size_t align,
                                       size_t size);

// Resizes a block as realloc(3) does: it may move, and keeps as many bytes as
// both sizes have. A null `block` is an allocation. Null when refused; the
// block is as it was then. A block that moves is aligned to 16.
//
// What the caller owes:
// `heap` is null (refused) or lives; if `block` is a live block of it, nobody
// uses the old pointer after success.
void *ghostmem_reallocate(struct ghostmem_heap *heap, void *block, size_t size);

// Frees a block. Null is ignored. A block freed twice, the middle of a block
// and a pointer from elsewhere are refused and change nothing.
//
// What the caller owes:
// `heap` is null (refused) or lives; nobody uses the block any more.
ghostmem_status ghostmem_deallocate(struct ghostmem_heap *heap, void *block);

// Bytes of the live block that starts at `block`, at least those asked for; 0
// when none does.
//
// What the caller owes:
// `heap` is null or lives. `block` may be any address.
size_t ghostmem_block_bytes(const struct ghostmem_heap *heap,
                            const void *block);

// Brings the pages of a range in and keeps them resident: for system calls,
// asynchronous and direct I/O, devices. On success `*out` is what
// `ghostmem_unpin` takes; otherwise null. Pins count, up to 2^32 - 1 on one
// page, and all but 5 pages of the limit can be pinned.
//
// What the caller owes:
// `heap` is null (refused) or lives; `out` is null (refused) or points to a
// place for a pointer.
ghostmem_status ghostmem_pin(struct ghostmem_heap *heap,
                             const void *start,
                             size_t bytes,
                             struct ghostmem_pinned **out);

// Lets the pages of a pin go. Null is ignored.
//
// What the caller owes:
// `pinned` is null or came from `ghostmem_pin`, and is unpinned once.
void ghostmem_unpin(struct ghostmem_pinned *pinned);

// Brings the pages of a range in before they are touched, as far as half the
// resident limit reaches. `*pages_out`, if not null: how many came in.
//
// What the caller owes:
// `heap` is null (refused) or lives; `pages_out` is null or a place for a
// size.
ghostmem_status ghostmem_prefetch(struct ghostmem_heap *heap,
                                  const void *start,
                                  size_t bytes,
                                  size_t *pages_out);

// Evicts the pages of a range now. `*pages_out`, if not null: how many left.
//
// What the caller owes:
// `heap` is null (refused) or lives; `pages_out` is null or a place for a
// size.
ghostmem_status ghostmem_evict(struct ghostmem_heap *heap,
                               const void *start,
                               size_t bytes,
                               size_t *pages_out);

// Evicts the page that reclaim would take next. `*pages_out`, if not null: 1,
// or 0 when none can leave.
//
// What the caller owes:
// `heap` is null (refused) or lives; `pages_out` is null or a place for a
// size.
ghostmem_status ghostmem_evict_coldest(struct ghostmem_heap *heap,
                                       size_t *pages_out);

// Makes the pages of a range the next to leave.
//
// What the caller owes:
// `heap` is null (refused) or lives.
ghostmem_status ghostmem_cold(struct ghostmem_heap *heap,
                              const void *start,
                              size_t bytes);

// Forgets the contents of the whole pages inside a range: they read as zero
// afterwards and cost nothing. Pinned pages are left alone.
//
// What the caller owes:
// `heap` is null (refused) or lives; nobody relies on the contents.
ghostmem_status ghostmem_discard(struct ghostmem_heap *heap,
                                 void *start,
                                 size_t bytes);

// Whether an address lies in the heap's ghost memory. Lock-free.
//
// What the caller owes:
// `heap` is null or lives. `address` may be any.
bool ghostmem_is_ghost(const struct ghostmem_heap *heap, const void *address);

// Whether the page at an address is resident now; false, too, when it is not
// the heap's. Lock-free.
//
// What the caller owes:
// `heap` is null or lives. `address` may be any.
bool ghostmem_is_resident(const struct ghostmem_heap *heap,
                          const void *address);

// Writes the heap's figures to `*out`, of which `out_bytes` are written:
// `sizeof(ghostmem_stats)` as the caller knows it. Bytes the library does not
// know are zeroed. Lock-free, and cheap enough to be called every millisecond.
//
// What the caller owes:
// `heap` is null (refused) or lives; `out` is null (refused) or has room for
// `out_bytes`.
ghostmem_status ghostmem_heap_stats(const struct ghostmem_heap *heap,
                                    struct ghostmem_stats *out,
                                    size_t out_bytes);

// Writes one of the heap's figures to `*out`: that of a field of
// `ghostmem_stats`, or another one of `ghostmem_stat_name`, which lists them
// all. A name that this version does not know is refused with
// `GHOSTMEM_STATUS_INVALID_ARGUMENT`. Lock-free; for many figures at once
// `ghostmem_heap_stats` is cheaper.
//
// What the caller owes:
// `heap` is null (refused) or lives; `name` is null (refused) or a C string;
// `out` is null (refused) or a place for a number.
ghostmem_status ghostmem_stat(const struct ghostmem_heap *heap,
                              const char *name,
                              uint64_t *out);

// The name of a figure for `ghostmem_stat`; null from the number of figures
// on, so that a loop from 0 sees all of them. Their order is that of this
// version.
const char *ghostmem_stat_name(size_t index);

// A word or two for a status: static, never null, also for numbers that are
// none.
const char *ghostmem_status_text(int32_t status);

// Why the last refused call of this thread was refused, in one line that says
// what to do; empty when none was. Valid until the thread's next call that is
// refused.
const char *ghostmem_last_error(void);

// The library's version, "major.minor.patch".
const char *ghostmem_version(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* GHOSTMEM_H */
