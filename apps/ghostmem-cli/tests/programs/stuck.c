/* A system call instruction that has no room for a jump: branches lead to it and to
 * what follows it. Reads into memory that was put away; prints what came of it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

long stuck_read(int fd, void *buffer, size_t bytes);
__asm__(".text\n.globl stuck_read\n.type stuck_read,@function\nstuck_read:\n.cfi_startproc\n"
        "mov $3, %r8d\nxor %eax, %eax\ntest %rdx, %rdx\njz 1f\nnop\n"
        "1: syscall\n2: sub $1, %r8d\njg 2b\nret\n.cfi_endproc\n"
        ".size stuck_read, .-stuck_read\n");

int main(void) {
    size_t bytes = 64 << 10, pressure = 8 << 20;
    /* The first makes the heap; behind the last, readahead would find the buffer. */
    char *first = malloc(1 << 20), *buffer = malloc(bytes), *other = malloc(pressure);
    *(volatile char *)first = 1;
    memset(buffer, 'x', bytes);
    for (int round = 0; round < 3; round++)
        for (size_t at = 0; at < pressure; at += 64) other[at] = (char)(at + round);
    long got = stuck_read(open("/dev/zero", O_RDONLY), buffer, bytes);
    puts(got == (long)bytes ? "read" : got == -EFAULT ? "refused" : "wrong");
    return 0;
}
