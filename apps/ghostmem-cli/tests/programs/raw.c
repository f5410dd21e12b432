/* System calls that libc does not make, on memory that is not there; and, with
 * GO defined, the note by which a Go program is known. Prints what read said. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifdef GO
__asm__(".section .note.go.buildid, \"a\", @note\n"
        ".balign 4\n .long 4, 8, 4\n .ascii \"Go\\0\\0\"\n .ascii \"a build!\"\n"
        ".previous\n");
#endif

static long raw_read(int fd, void *buffer, size_t bytes) {
    long answer;
    __asm__ volatile("syscall" : "=a"(answer) : "a"(0L), "D"((long)fd), "S"(buffer), "d"(bytes)
                     : "rcx", "r11", "memory");
    return answer;
}

int main(void) {
    size_t bytes = 64 << 10, pressure = 8 << 20;
    /* The first makes the heap; behind the last, readahead would find the buffer. */
    char *first = malloc(1 << 20), *buffer = malloc(bytes), *other = malloc(pressure);
    *(volatile char *)first = 1;
    memset(buffer, 'x', bytes);
    for (int round = 0; round < 3; round++)
        for (size_t at = 0; at < pressure; at += 64) other[at] = (char)(at + round);
    int fd = open("/dev/zero", O_RDONLY);
    long got = raw_read(fd, buffer, bytes);
    if (got == (long)bytes) {
        for (size_t at = 0; at < bytes; at++) if (buffer[at]) { puts("wrong: not zero"); return 1; }
        puts("read");
    } else {
        puts(got == -EFAULT ? "refused" : "wrong");
    }
    /* A ring cannot be had where the kernel cannot see the memory. */
    char parameters[120] = { 0 };
    long ring = syscall(SYS_io_uring_setup, 2, parameters);
    puts(ring < 0 && errno == ENOSYS ? "no ring" : "as the kernel says");
    return 0;
}
