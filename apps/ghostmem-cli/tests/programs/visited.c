/* Another process sends SIGSEGV and SIGBUS to this one, which faults all the time: the handlers
 * run on its only thread, never on one of the engine's, and nothing it counts is lost. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <dirent.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGES = 6000, SIGNALS = 1500 };
static volatile int handled, elsewhere;

static void on_signal(int signal) {
    (void)signal;
    if (gettid() != getpid()) elsewhere = 1;
    handled++;
}

/* Every other thread has its name: from then on it takes no signal. */
static int have_begun(void) {
    DIR *tasks = opendir("/proc/self/task");
    CHECK(tasks != NULL);
    int begun = 1;
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char path[300], name[32] = "ghost";
        if (task->d_name[0] == '.' || atoi(task->d_name) == getpid()) continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(path, "r");
        if (file != NULL && fgets(name, sizeof name, file)) begun &= !strncmp(name, "ghost", 5);
        if (file != NULL) fclose(file);
    }
    closedir(tasks);
    return begun;
}

int main(void) {
    unsigned char *memory = malloc((size_t)PAGES * 4096);
    CHECK(memory != NULL);
    for (size_t at = 0; at < PAGES; at++) memory[at * 4096] = 1;
    while (!have_begun()) usleep(1000);
    struct sigaction action = {.sa_handler = on_signal};
    CHECK(sigaction(SIGSEGV, &action, NULL) == 0 && sigaction(SIGBUS, &action, NULL) == 0);
    pid_t program = getpid(), sender = fork();
    CHECK(sender >= 0);
    for (int sent = 0; sender == 0; sent++) {
        if (kill(program, sent % 2 ? SIGBUS : SIGSEGV) != 0) _exit(1);
        usleep(100);
    }
    unsigned char rounds = 1;
    while (handled < SIGNALS && !elsewhere) {
        for (size_t at = 0; at < PAGES; at++) memory[at * 4096]++;
        rounds++;
    }
    CHECK(kill(sender, SIGKILL) == 0 && waitpid(sender, NULL, 0) == sender);
    CHECK(!elsewhere);
    for (size_t at = 0; at < PAGES; at++) CHECK(memory[at * 4096] == rounds);
    puts("ok");
    return 0;
}
