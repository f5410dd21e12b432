/* What shim.c needs of the system's threads: an exclusive lock, and a call on
 * every thread that used a heap, when it ends. */
#ifndef GM_THREADS_H
#define GM_THREADS_H

#include <stdbool.h>
#include <stddef.h>

#if defined(_WIN32)

#include <windows.h>

typedef SRWLOCK gm_lock_t;
#define GM_LOCK_INIT SRWLOCK_INIT
static void gm_lock(gm_lock_t* lock)   { AcquireSRWLockExclusive(lock); }
static void gm_unlock(gm_lock_t* lock) { ReleaseSRWLockExclusive(lock); }

static DWORD gm_exit_slot = FLS_OUT_OF_INDEXES;
static INIT_ONCE gm_exit_once = INIT_ONCE_STATIC_INIT;
static void (*gm_at_thread_end)(void) = NULL;

/* RtlDllShutdownInProgress, looked up beforehand: a callback of FlsAlloc may run
 * under a lock that the loader takes while it holds its own, and looking up a
 * function asks for the loader's. */
typedef BOOLEAN (NTAPI *gm_ask_t)(void);
static gm_ask_t gm_is_process_ending = NULL;

/* As the process ends, other threads are gone, wherever they were: with them
 * the locks they held. There is nothing left to put in order either. */
static void NTAPI gm_exit_callback(void* value) {
  if (value == NULL || gm_at_thread_end == NULL) return;
  if (gm_is_process_ending == NULL || !gm_is_process_ending()) { gm_at_thread_end(); }
}

static BOOL CALLBACK gm_make_exit_slot(INIT_ONCE* once, void* parameter, void** context) {
  (void)once; (void)parameter; (void)context;
  const HMODULE ntdll = GetModuleHandleA("ntdll.dll");
  gm_is_process_ending = (gm_ask_t)(void*)GetProcAddress(ntdll, "RtlDllShutdownInProgress");
  gm_exit_slot = FlsAlloc(&gm_exit_callback);
  return TRUE;
}

/* Makes `hook` be called on threads that said gm_call_at_thread_end. */
static bool gm_make_exit_hook(void (*hook)(void)) {
  gm_at_thread_end = hook;
  InitOnceExecuteOnce(&gm_exit_once, &gm_make_exit_slot, NULL, NULL);
  return gm_exit_slot != FLS_OUT_OF_INDEXES;
}

static bool gm_exit_hook_made(void) { return gm_exit_slot != FLS_OUT_OF_INDEXES; }
static void gm_call_at_thread_end(void) { FlsSetValue(gm_exit_slot, (void*)1); }

#else

#include <pthread.h>

typedef pthread_mutex_t gm_lock_t;
#define GM_LOCK_INIT PTHREAD_MUTEX_INITIALIZER
static void gm_lock(gm_lock_t* lock)   { pthread_mutex_lock(lock); }
static void gm_unlock(gm_lock_t* lock) { pthread_mutex_unlock(lock); }

static pthread_key_t  gm_exit_key;
static pthread_once_t gm_exit_key_once = PTHREAD_ONCE_INIT;
static bool           gm_exit_key_made = false;
static void         (*gm_at_thread_end)(void) = NULL;

static void gm_exit_callback(void* value) {
  (void)value;
  if (gm_at_thread_end != NULL) { gm_at_thread_end(); }
}

static void gm_create_exit_key_once(void) {
  gm_exit_key_made = (pthread_key_create(&gm_exit_key, &gm_exit_callback) == 0);
}

/* Destructors of pthread keys run in the order of the keys (glibc, musl), and
 * mimalloc makes its key in a constructor of priority 101. Ours is made before
 * it, so a thread leaves our heaps before mimalloc tears the thread down. */
__attribute__((constructor(100))) static void gm_create_exit_key(void) {
  pthread_once(&gm_exit_key_once, &gm_create_exit_key_once);
}

/* Makes `hook` be called on threads that said gm_call_at_thread_end. */
static bool gm_make_exit_hook(void (*hook)(void)) {
  gm_create_exit_key();
  gm_at_thread_end = hook;
  return gm_exit_key_made;
}

static bool gm_exit_hook_made(void) { return gm_exit_key_made; }
static void gm_call_at_thread_end(void) { pthread_setspecific(gm_exit_key, (void*)1); }

#endif

#endif
