/* main leaves, a thread goes on, and the process ends with it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <threads.h>
#include <unistd.h>

static int numbers(void *argument) { return *(int *)argument; }

/* The last of all, made the standard's way. */
static int last(void *unused) {
    (void)unused;
    usleep(50000);
    printf("ok\n");
    fflush(stdout);
    return 0;
}

static void *body(void *unused) {
    (void)unused;
    usleep(50000);
    char *p = malloc(100000);
    p[99999] = 1;
    thrd_t t;
    if (thrd_create(&t, last, NULL) != thrd_success || thrd_detach(t) != thrd_success) exit(2);
    return NULL;
}

int main(void) {
    pthread_t t;
    thrd_t standard;
    int number = -42, result = 0;
    if (thrd_create(&standard, numbers, &number) != thrd_success) return 3;
    if (thrd_join(standard, &result) != thrd_success || result != -42) return 4;
    if (pthread_create(&t, NULL, body, NULL) != 0) return 1;
    pthread_detach(t);
    pthread_exit(NULL);
}
