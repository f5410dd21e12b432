/* What mimalloc's public interface cannot do for a heap over ghost memory.
 *
 * Five things, most of them about the *theap*, mimalloc's per-thread part of
 * a heap:
 *
 *  1. For a heap that is bound to an arena mimalloc places the theap inside
 *     that arena. Ours are ghost memory: the hottest metadata there is would
 *     be compressed and faulted back, and a thread's cached pointer to it
 *     would outlive the arena's reuse. gm_theap_of creates it in mimalloc's
 *     ordinary metadata instead, in the steps of heap.c:mi_heap_init_theap.
 *  2. A thread that ends while another destroys a heap it used can make
 *     mimalloc follow a null pointer (theap.c:mi_theap_merge_stats after
 *     _mi_theap_free cleared theap->heap). gm_leave_thread takes a thread's
 *     theaps off our heaps first, under a lock that destruction takes too.
 *  3. fork must not catch a heap's theap list half changed.
 *  4. Whether a block's page is the calling thread's decides how its life is
 *     noted: gm_block_info says so, with the block's size. Where it is, the quick
 *     paths note it themselves: one call for all of malloc or free.
 *
 *  5. Between mimalloc's sizes of blocks there are others: gm_is_between.
 *
 * It reads mimalloc's internal headers, so it accepts exactly one version.
 */
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "threads.h"

#include "mimalloc.h"
#include "mimalloc/internal.h"
#include "mimalloc/prim.h"

#if MI_MALLOC_VERSION != 30302
#error "ghostmem-small knows the internals of mimalloc 3.3.2 only"
#endif

/* Not static in theap.c and free.c, but in no header. */
void _mi_theap_init(mi_theap_t* theap, mi_heap_t* heap, mi_tld_t* tld);
void _mi_free_generic(mi_page_t* page, bool is_local, void* p);

#if defined(_WIN32) && defined(__GNUC__)
/* mimalloc starts by an entry in a table of the C library's that only other
 * compilers make for it, and gives no memory back before it has started. */
__attribute__((constructor(101))) static void gm_start_mimalloc(void) {
  if (_mi_preloading()) { _mi_auto_process_init(); }
}
#endif

static mi_commit_fun_t* gm_commit = NULL;
static gm_lock_t        gm_teardown = GM_LOCK_INIT;

/* Says once who we are; returns whether the linked mimalloc has the layout
 * this file was compiled for (its cargo features can change it). */
bool gm_setup(mi_commit_fun_t* commit, void (*exit_hook)(void), bool scarce) {
  /* Where address space is scarce: none is reserved ahead. */
  if (scarce) { mi_option_set(mi_option_arena_reserve, 0); }
  const bool hooked = gm_make_exit_hook(exit_hook);
  gm_commit = commit;
  /* The statistics are the last member, and start with their own size. */
  return hooked
      && _mi_theap_empty.stats.size == sizeof(mi_stats_t)
      && _mi_theap_empty.stats.version == MI_STAT_VERSION
      && _mi_theap_empty.memid.memkind == MI_MEM_STATIC
      && mi_version() == MI_MALLOC_VERSION;
}

/* Whether the environment lets mimalloc use arenas at all. */
bool gm_arenas_allowed(void) { return !mi_option_is_enabled(mi_option_disallow_arena_alloc); }

/* What mimalloc needs for itself comes piece by piece from now on. */
void gm_reserve_nothing(void) { mi_option_set(mi_option_arena_reserve, 0); }

/* Whether a fresh heap has the layout this file was compiled for. */
bool gm_heap_is_known(const mi_heap_t* heap, const void* arena) {
  return heap->stats.size == sizeof(mi_stats_t)
      && heap->stats.version == MI_STAT_VERSION
      && (const void*)heap->exclusive_arena == arena
      && heap->theaps == NULL;
}

static bool gm_is_ours(const mi_heap_t* heap) {
  return heap != NULL && heap->exclusive_arena != NULL
      && heap->exclusive_arena->commit_fun == gm_commit;
}

/* This thread's last theap, if it is one of `heap`, else NULL. On some systems a
 * thread starts with none instead of an empty one. */
static inline mi_theap_t* gm_cached_of(const mi_heap_t* heap) {
  mi_theap_t* const theap = _mi_theap_cached();
#if MI_THEAP_INITASNULL
  if (theap == NULL) return NULL;
#endif
  return _mi_theap_heap(theap) == heap ? theap : NULL;
}

/* mimalloc has four sizes of blocks for each doubling. Above the small ones a second heap
 * has those that lie half way between: by a half step less than mimalloc's. To mimalloc a
 * block's class is that of the next size of its own, in which it finds the page again. */
#define GM_BETWEEN_MAX ((size_t)32 << 10)  /* SIZE_MAX in heap.rs */

/* The bit of the size in words, less one, that says in which half of a step it is. */
static inline size_t gm_half_step(size_t size) {
  const size_t words = _mi_wsize_from_size(size) - 1;
  return (size_t)1 << (MI_SIZE_BITS - 1 - mi_clz(words) - 3);
}

/* Whether the second heap has the better size for a block. */
bool gm_is_between(size_t size) {
  if (size <= MI_SMALL_SIZE_MAX || size > GM_BETWEEN_MAX) return false;
  return ((_mi_wsize_from_size(size) - 1) & gm_half_step(size)) == 0;
}

/* Makes the sizes of a fresh theap those between. */
static void gm_set_between(mi_theap_t* theap) {
  for (size_t bin = 0; bin < MI_BIN_HUGE; bin++) {
    const size_t size = theap->pages[bin].block_size;
    if (size > MI_SMALL_SIZE_MAX && size <= GM_BETWEEN_MAX) {
      theap->pages[bin].block_size = size - gm_half_step(size) * sizeof(uintptr_t);
    }
  }
}

/* This thread's theap of a heap, NULL when there is none. */
static inline mi_theap_t* gm_theap_if_any(mi_heap_t* heap) {
  mi_theap_t* const theap = (mi_theap_t*)_mi_thread_local_get(heap->theap);
  return (uintptr_t)theap > 1 ? theap : NULL;
}

#if defined(_WIN32)
static inline mi_theap_t* gm_between_of(mi_heap_t* heap) { return gm_theap_if_any(heap); }
static inline void gm_between_set(mi_theap_t* theap) { (void)theap; }
#else
/* This thread's last theap with the sizes between, as mimalloc keeps that of the last heap:
 * a count keeps its memory, and one whose heap is gone belongs to none. */
static mi_decl_thread mi_theap_t* gm_between;

static inline mi_theap_t* gm_between_of(mi_heap_t* heap) {
  mi_theap_t* const theap = gm_between;
  return theap != NULL && _mi_theap_heap(theap) == heap ? theap : NULL;
}

static void gm_between_set(mi_theap_t* theap) {
  mi_theap_t* const before = gm_between;
  if (before == theap) return;
  _mi_theap_incref(theap);
  gm_between = theap;
  _mi_theap_decref(before);
}
#endif

/* This thread's theap of `heap`, made if need be; NULL when memory is short. */
static mi_theap_t* gm_theap_of(mi_heap_t* heap, bool between) {
  mi_theap_t* theap = between ? gm_between_of(heap) : gm_cached_of(heap);
  if (theap != NULL) return theap;
  theap = (mi_theap_t*)_mi_thread_local_get(heap->theap);
  if (theap == NULL) {
    mi_theap_t* const base = _mi_theap_default_safe();
    if (!mi_theap_is_initialized(base)) return NULL;
    /* An invalid value first, so that storing the real one cannot fail. */
    if (!_mi_thread_local_set(heap->theap, (mi_theap_t*)1)) return NULL;
    mi_memid_t memid;
    theap = (mi_theap_t*)_mi_meta_zalloc(sizeof(mi_theap_t), &memid);
    if (theap != NULL) {
      theap->memid = memid;
      _mi_theap_init(theap, heap, base->tld);
      if (between) { gm_set_between(theap); }
    }
    _mi_thread_local_set(heap->theap, theap);
    if (theap == NULL) return NULL;
    gm_call_at_thread_end();
  }
  if (between) { gm_between_set(theap); } else { _mi_theap_cached_set(theap); }
  return theap;
}

/* Which blocks live, as `live.rs` has it (read that first), and where they are.
 * `Table` in heap.rs is the same structure. */
typedef struct gm_table_s {
  _Atomic(mi_heap_t*) heap;  /* whose blocks are handed out */
  uintptr_t          base;   /* the words count from here, one for every KiB */
  uintptr_t          start;  /* blocks are here ... */
  uintptr_t          bytes;  /* ... and so many bytes further */
  _Atomic(uint64_t)* own;
  _Atomic(uint64_t)* others;
  _Atomic(uint8_t)*  mixed;  /* one for every 64 KiB */
  _Atomic(mi_heap_t*) between;  /* as heap, with the sizes between: see gm_is_between */
} gm_table_t;

/* The quick paths do what mimalloc's do where it was built to keep no statistics,
 * no padding and no secrets in free lists, as libmimalloc-sys builds it. */
#if MI_STAT || MI_PADDING || MI_ENCODE_FREELIST || MI_GUARDED || MI_DEBUG || MI_SECURE
#error "ghostmem-small needs mimalloc without statistics, padding and encoding"
#endif

/* The heap to allocate from: that of the arena's last step, or one with room. */
static inline mi_heap_t* gm_current(const gm_table_t* table) {
  return atomic_load_explicit(&table->heap, memory_order_relaxed);
}

/* Whether blocks may be in a table at all. */
static inline bool gm_may_start_at(const gm_table_t* table, uintptr_t at) {
  return at - table->start < table->bytes && at % 16 == 0;
}

typedef struct gm_life_s {
  _Atomic(uint64_t)* own;   /* the word of the owner's bits ... */
  uint64_t           now;   /* ... what it says ... */
  uint64_t           live;  /* ... and, with the others', which blocks live */
  uint64_t           bit;   /* the block's */
} gm_life_t;

static inline gm_life_t gm_life_of(const gm_table_t* table, uintptr_t at) {
  const uintptr_t offset = at - table->base;
  gm_life_t life;
  life.own  = &table->own[offset >> 10];
  life.now  = atomic_load_explicit(life.own, memory_order_relaxed);
  life.live = life.now;
  life.bit  = (uint64_t)1 << ((offset >> 4) & 63);
  if mi_unlikely(atomic_load_explicit(&table->mixed[offset >> 16], memory_order_relaxed) != 0) {
    life.live ^= atomic_load_explicit(&table->others[offset >> 10], memory_order_relaxed);
  }
  return life;
}

/* A block's life begins or ends, in a page of this thread's. */
static inline void gm_turn(const gm_life_t* life) {
  atomic_store_explicit(life->own, life->now ^ life->bit, memory_order_relaxed);
}

typedef struct gm_found_s {
  void*  block; /* NULL for none */
  size_t bytes; /* of it that may be used; 0: the block lives already */
} gm_found_t;

/* After how many pages that ran out mimalloc wants its general half to see to
 * what is due (page.c:_mi_malloc_generic). */
#define GM_UNTIL_DUE 1000

/* A page's free list, with what its owner freed meanwhile if it is empty: as
 * page.c:mi_page_free_quick_collect does it. NULL when there is nothing. */
static inline mi_block_t* gm_first_free(mi_theap_t* theap, mi_page_t* page) {
  mi_block_t* const block = page->free;
  if mi_likely(block != NULL) return block;
  mi_block_t* const freed = page->local_free;
  if (freed == NULL || theap->generic_count + 1 >= GM_UNTIL_DUE) return NULL;
  theap->generic_count++;
  page->free          = freed;
  page->local_free    = NULL;
  page->free_is_zero  = false;
  page->retire_expire = 0;
  return freed;
}

/* Takes the first free block of a page of this thread's and notes that it lives. */
static inline gm_found_t gm_take(const gm_table_t* table, mi_theap_t* theap, mi_page_t* page) {
  gm_found_t found = { gm_first_free(theap, page), 0 };
  if mi_unlikely(found.block == NULL) return found;
  const uintptr_t at = (uintptr_t)found.block;
  if mi_unlikely(!gm_may_start_at(table, at)) return found;
  const gm_life_t life = gm_life_of(table, at);
  if mi_unlikely((life.live & life.bit) != 0) return found;
  gm_turn(&life);
  found.bytes = mi_page_usable_block_size(page);
  /* As mi_page_malloc_zero does it. */
  mi_block_t* const block = (mi_block_t*)found.block;
  page->free = mi_block_next(page, block);
  page->used++;
  block->next = 0;
  return found;
}

_Static_assert(MI_SMALL_SIZE_MAX == 1024, "QUICK_MAX in heap.rs");

/* The lock-free half of allocation: takes a block only from the free lists of a
 * page that this thread owns, and still does afterwards, and notes that it lives.
 * No block says "ask gm_allocate". Size at least 16 and at most MI_SMALL_SIZE_MAX. */
gm_found_t gm_allocate_quick(const gm_table_t* table, size_t size) {
  mi_theap_t* const theap = gm_cached_of(gm_current(table));
  if mi_unlikely(theap == NULL) {
    const gm_found_t none = { NULL, 0 };
    return none;
  }
  return gm_take(table, theap, _mi_theap_get_free_small_page(theap, size));
}

/* The same for the sizes above, and for zeros of any size. */
gm_found_t gm_allocate_other(const gm_table_t* table, size_t size, bool zero) {
  gm_found_t found = { NULL, 0 };
  mi_theap_t* const theap = gm_is_between(size)
    ? gm_between_of(atomic_load_explicit(&table->between, memory_order_acquire))
    : gm_cached_of(gm_current(table));
  if mi_unlikely(theap == NULL) return found;
  mi_page_t* page;
  if (size <= MI_SMALL_SIZE_MAX) {
    page = _mi_theap_get_free_small_page(theap, size);
  }
  else {
    page = mi_page_queue(theap, size)->first;
    /* The general half has to see a page of large blocks become full. */
    if (page == NULL || page->used + 1 >= page->reserved) return found;
  }
  found = gm_take(table, theap, page);
  if (zero && found.bytes != 0 && !page->free_is_zero) {
    _mi_memzero_aligned(found.block, found.bytes);
  }
  return found;
}

/* The lock-free half of a free: a live block of a page that this thread owns,
 * that is not full, keeps other blocks in use and has none that begins inside
 * another. Its bytes; 0, and nothing happened, for all else. */
size_t gm_free_quick(const gm_table_t* table, void* p) {
  const uintptr_t at = (uintptr_t)p;
  if mi_unlikely(!gm_may_start_at(table, at)) return 0;
  const gm_life_t life = gm_life_of(table, at);
  if mi_unlikely((life.live & life.bit) == 0) return 0;
  mi_page_t* const page = _mi_ptr_page(p);
  if mi_unlikely(page == NULL || mi_page_xthread_id(page) != _mi_prim_thread_id()) return 0;
  /* The last block: the general half retires the page, once. The count by itself:
   * a wider load would wait for the store of the last malloc or free to land. */
  const uint16_t used = *(volatile uint16_t*)&page->used;
  if mi_unlikely(used == 1 && page->retire_expire == 0) return 0;
  gm_turn(&life);
  /* As mi_free_block_local does it. */
  mi_block_t* const block = (mi_block_t*)p;
  mi_block_set_next(page, block, page->local_free);
  page->local_free = block;
  page->used = used - 1;
  return mi_page_usable_block_size(page);
}

/* Bytes of a live block that may be used; 0 where none starts, or one begins
 * inside another. */
size_t gm_size_quick(const gm_table_t* table, const void* p) {
  const uintptr_t at = (uintptr_t)p;
  if mi_unlikely(!gm_may_start_at(table, at)) return 0;
  const gm_life_t life = gm_life_of(table, at);
  if mi_unlikely((life.live & life.bit) == 0) return 0;
  const mi_page_t* const page = _mi_ptr_page(p);
  if mi_unlikely(page == NULL || mi_page_has_interior_pointers(page)) return 0;
  return mi_page_usable_block_size(page);
}

/* What mimalloc does for a theap at every thousandth turn of its general half is done for
 * this thread's theap of `beside`, too: that one may have nothing else to do. */
static void gm_see_to(mi_heap_t* beside) {
  mi_theap_t* const theap = gm_theap_if_any(beside);
  if (theap != NULL) { _mi_theap_collect_retired(theap, false); }
}

/* The general half: may take mimalloc's locks, search, map and purge. `beside` is the heap
 * with the other sizes. */
void* gm_allocate(mi_heap_t* heap, mi_heap_t* beside, size_t size, size_t align, bool zero, bool between) {
  mi_theap_t* const theap = gm_theap_of(heap, between);
  if (theap == NULL) return NULL;
  if (align <= MI_MAX_ALIGN_SIZE) {
    const long turns = theap->generic_count;
    void* const block = _mi_theap_malloc_zero(theap, size, zero, NULL);
    if mi_unlikely(theap->generic_count < turns) { gm_see_to(beside); }
    return block;
  }
  /* With the theap in place (and cached) this finds it and makes none. */
  return zero ? mi_heap_zalloc_aligned(heap, size, align) : mi_heap_malloc_aligned(heap, size, align);
}

typedef struct gm_block_info_s {
  mi_page_t* page;  /* NULL when the block has none any more */
  uint32_t   bytes; /* of the block that may be used */
  uint32_t   own;   /* whether the calling thread owns the page */
} gm_block_info_t;

/* What mimalloc knows of a block in use. Only the owner of a page can give it
 * up, so `own` stays true or false until this thread calls mimalloc again. */
gm_block_info_t gm_block_info(const void* block) {
  mi_page_t* const page = _mi_ptr_page(block);
  gm_block_info_t info = { page, 0, 0 };
  if mi_likely(page != NULL) {
    /* A block of odd size and large alignment may begin inside of mimalloc's. */
    info.bytes = (uint32_t)(mi_page_has_interior_pointers(page) ? mi_usable_size(block)
                                                                 : mi_page_usable_block_size(page));
    info.own   = (_mi_prim_thread_id() ^ mi_page_xthread_id(page)) <= MI_PAGE_FLAG_MASK;
  }
  return info;
}

/* mi_free, for a caller that has the page. */
void gm_free(mi_page_t* page, bool own, void* block) { _mi_free_generic(page, own, block); }

/* Gives free memory back now: this thread's empty pages of `heap`, then everything free in
 * any arena. False, and nothing happened, where the thread has no part in the heap. */
bool gm_trim(mi_heap_t* heap) {
  mi_theap_t* const theap = gm_theap_if_any(heap);
  if (theap == NULL) return false;
  mi_theap_collect(theap, true);
  return true;
}

/* Gives back everything free in any arena. */
void gm_trim_arenas(void) {
  mi_theap_t* const base = _mi_theap_default_safe();
  if (mi_theap_is_initialized(base)) { _mi_arenas_collect(true, true, base->tld); }
}

/* Takes the calling thread, which is about to end, off all our heaps. */
void gm_leave_thread(void) {
  mi_theap_t* const base = _mi_theap_default();
  if (!mi_theap_is_initialized(base)) return;
  mi_tld_t* const tld = base->tld;
  gm_between_set(NULL);
  for (;;) {
    mi_theap_t* leaving = NULL;
    mi_lock(&tld->theaps_lock) {
      for (mi_theap_t* theap = tld->theaps; theap != NULL && leaving == NULL; theap = theap->tnext) {
        if (gm_is_ours(_mi_theap_heap(theap))) { leaving = theap; }
      }
    }
    if (leaving == NULL) break;
    mi_heap_t* const heap = _mi_theap_heap(leaving);
    _mi_theap_collect_abandon(leaving);
    if (_mi_theap_cached() == leaving) { _mi_theap_cached_set(_mi_theap_empty_get()); }
    _mi_thread_local_set(heap->theap, NULL);
    _mi_theap_free(leaving, true, true);
  }
#if defined(_WIN32)
  /* mimalloc hears of a thread's end by a callback of the loader's, which not
   * every compiler places for it. A second time changes nothing. */
  mi_thread_done();
#endif
}

/* Has the hook of gm_setup called when this thread ends, whether it uses a heap or not.
 * Before the first heap nothing can be called. */
void gm_hear_of_thread_end(void) { if (gm_exit_hook_made()) { gm_call_at_thread_end(); } }

/* A page's thread id that is no thread's: they are addresses. Above those of
 * abandoned pages, below the flags' bits. */
#define GM_NOBODY ((mi_threadid_t)8)
_Static_assert(GM_NOBODY > MI_THREADID_ABANDONED_MAPPED, "GM_NOBODY is an abandoned page");
_Static_assert((GM_NOBODY & MI_PAGE_FLAG_MASK) == 0, "GM_NOBODY has flags");

/* In a child of fork: no thread owns the pages of the threads that are not here,
 * whatever their ids come to be used for. Blocks there are freed as another's. */
void gm_disown(mi_heap_t* heap) {
  mi_theap_t* const base = _mi_theap_default();
  const mi_tld_t* const own = mi_theap_is_initialized(base) ? base->tld : NULL;
  for (mi_theap_t* theap = heap->theaps; theap != NULL; theap = theap->hnext) {
    if (theap->tld == own) continue;
    for (size_t bin = 0; bin < MI_BIN_COUNT; bin++) {
      for (mi_page_t* page = theap->pages[bin].first; page != NULL; page = page->next) {
        mi_atomic_store_relaxed(&page->xthread_id, GM_NOBODY | mi_page_flags(page));
      }
    }
  }
}

/* Exclusion of gm_leave_thread, destruction and fork. */
void gm_teardown_lock(void)   { gm_lock(&gm_teardown); }
void gm_teardown_unlock(void) { gm_unlock(&gm_teardown); }

/* The theap list of a heap (NULL: of mimalloc's main heap), for fork. */
void gm_theaps_lock(mi_heap_t* heap) {
  if (heap == NULL) { heap = mi_heap_main(); }
  mi_lock_acquire(&heap->theaps_lock);
}
void gm_theaps_unlock(mi_heap_t* heap) {
  if (heap == NULL) { heap = mi_heap_main(); }
  mi_lock_release(&heap->theaps_lock);
}

/* For the tests: whether this thread's theap of `heap` lies outside
 * [base, base+len), and whether our key's destructor runs before mimalloc's. */
bool gm_theap_is_outside(mi_heap_t* heap, size_t base, size_t len) {
  const size_t at = (size_t)_mi_thread_local_get(heap->theap);
  return at > 1 && (at < base || at >= base + len);
}
bool gm_no_theap_inside(mi_heap_t* heap, size_t base, size_t len) {
  return gm_theap_if_any(heap) == NULL || gm_theap_is_outside(heap, base, len);
}
#if defined(_WIN32)
/* gm_leave_thread tells mimalloc itself, last; nobody does it before. */
bool gm_leaves_first(void) { return gm_exit_slot != FLS_OUT_OF_INDEXES; }
#else
extern pthread_key_t _mi_heap_default_key;
bool gm_leaves_first(void) { return gm_exit_key_made && gm_exit_key < _mi_heap_default_key; }
#endif
