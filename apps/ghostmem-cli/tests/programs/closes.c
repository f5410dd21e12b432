/* Closes all that it did not open, as daemons do, and says what it sees of descriptors;
 * then waits for a line. It never asks for much. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Numbers above the standard streams that look open. */
static int seen(void) {
    struct stat about;
    int count = 0;
    for (int number = 3; number < 5000; number++)
        count += fcntl(number, F_GETFD) != -1 || fstat(number, &about) == 0;
    DIR *folder = opendir("/proc/self/fd");
    struct dirent *entry;
    while ((entry = readdir(folder)))
        count += atoi(entry->d_name) > 2 && atoi(entry->d_name) != dirfd(folder);
    closedir(folder);
    return count;
}

int main(int argc, char **argv) {
    int before = seen(), closed = 0;
    if (strcmp(argv[1], "range") == 0) syscall(SYS_close_range, 3, ~0u, 0);
    else for (int number = 3; number < 5000; number++) closed += close(number) == 0;
    printf("%d %d seen, %d closed, %d seen\n", getpid(), before, closed, seen());
    fflush(stdout);
    return getchar() == EOF;
}
