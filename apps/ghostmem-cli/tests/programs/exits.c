/* _exit in a signal handler, which comes in the midst of malloc, libc's own among
 * them; another thread makes libc take its locks. */
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void handler(int number) { (void)number; _exit(5); }
static void *sleeps(void *unused) { for (;;) pause(); return unused; }

int main(int argc, char **argv) {
    pthread_t t;
    pthread_create(&t, 0, sleeps, 0);
    signal(SIGALRM, handler);
    ualarm(1000 + atoi(argv[1]) * 37 % 9000, 0);
    unsigned x = argc;
    void *block[64] = {0};
    for (;;) {
        x = x * 1103515245 + 12345;
        int i = x >> 8 & 63;
        free(block[i]);
        block[i] = malloc(1100 + (x >> 16) % 20000);
    }
}
