/* main leaves, a thread goes on, and the process ends with it. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static void *body(void *unused) {
    (void)unused;
    usleep(50000);
    char *p = malloc(100000);
    p[99999] = 1;
    printf("ok\n");
    fflush(stdout);
    return NULL;
}

int main(void) {
    pthread_t t;
    if (pthread_create(&t, NULL, body, NULL) != 0) return 1;
    pthread_detach(t);
    pthread_exit(NULL);
}
