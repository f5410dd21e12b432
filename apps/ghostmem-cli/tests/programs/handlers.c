/* malloc and free in a handler of a signal that comes in the middle of malloc and
 * free: against the rules, and done. No block is handed out twice, and none is
 * freed that lives. */
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BYTES 48
#define LARGE 40000
#define RING 64
#define STASH 32

static _Atomic(char*) to_free[STASH], from_handler[STASH];
static atomic_int handled, freed, stop;
static pthread_t victim;

static void fail(const char* what) {
  printf("%s\n", what);
  fflush(stdout);
  _Exit(1);
}

static char* marked(size_t bytes, char mark) {
  char* block = malloc(bytes);
  if (block == NULL) fail("no memory");
  memset(block, mark, BYTES);
  return block;
}

static void check_and_free(char* block, char mark) {
  for (int i = 0; i < BYTES; i++) {
    if (block[i] != mark) fail("a block's bytes changed");
  }
  memset(block, 0, BYTES);
  free(block);
}

static void on_signal(int signal) {
  const int n = atomic_fetch_add(&handled, 1) % STASH;
  char* block = atomic_exchange(&to_free[n], NULL);
  if (block != NULL) {
    check_and_free(block, 'f');
    atomic_fetch_add(&freed, 1);
  }
  if (atomic_load(&from_handler[n]) == NULL) {
    atomic_store(&from_handler[n], realloc(marked(BYTES, 'h'), 2 * BYTES));
  }
}

static void* disturb(void* nothing) {
  while (!atomic_load(&stop)) {
    const int before = atomic_load(&handled);
    pthread_kill(victim, SIGUSR1);
    while (atomic_load(&handled) == before && !atomic_load(&stop)) {}
  }
  return nothing;
}

int main(void) {
  char* ring[RING] = {0};
  pthread_t disturber;
  struct sigaction action = {.sa_handler = on_signal};
  victim = pthread_self();
  sigaction(SIGUSR1, &action, NULL);
  pthread_create(&disturber, NULL, disturb, NULL);
  for (int round = 0; round < 500000 || atomic_load(&freed) < 5000; round++) {
    const int n = round % RING, s = round % STASH;
    if (ring[n] != NULL) check_and_free(ring[n], 'r');
    ring[n] = marked(round % 512 == 0 ? LARGE : BYTES, 'r');
    if (atomic_load(&to_free[s]) == NULL) {
      atomic_store(&to_free[s], marked(round % 128 == 0 ? LARGE : BYTES, 'f'));
    }
    char* block = atomic_exchange(&from_handler[s], NULL);
    if (block != NULL) check_and_free(block, 'h');
  }
  atomic_store(&stop, 1);
  pthread_join(disturber, NULL);
  puts("ok");
  return 0;
}
