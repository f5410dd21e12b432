/* System calls by inline assembly, as Rust's rustix and others make them: with a
 * fresh buffer, with one that was put away, with a number that the code does not
 * say, with a constant in memory in front, and by way of a library (LIBRARY). */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CALL(number, one, two, three) ({ long answer; \
    __asm__ volatile("syscall" : "=a"(answer) : "0"((long)(number)), "D"((long)(one)), \
                     "S"((long)(two)), "d"((long)(three)) : "rcx", "r11", "memory"); answer; })

#ifdef LIBRARY
long read_by_library(int fd, void *buffer, size_t bytes) { return CALL(0, fd, buffer, bytes); }
#else
extern long read_by_library(int fd, void *buffer, size_t bytes);

static long read_said(int fd, void *buffer, size_t bytes) { return CALL(0, fd, buffer, bytes); }

static __attribute__((noinline)) long call(long number, long one, long two, long three) {
    return CALL(number, one, two, three);
}

long constant = 4096;
/* The instruction in front counts from where it is. */
long read_constant(int fd, void *buffer);
__asm__(".text\n.globl read_constant\n.type read_constant,@function\nread_constant:\n.cfi_startproc\n"
        "xor %eax, %eax\nmov constant(%rip), %rdx\nsyscall\nret\n.cfi_endproc\n"
        ".size read_constant, .-read_constant\n");

static int fd;

static void check(const char *how, long got, char *buffer, long bytes) {
    if (got != bytes) { printf("%s: %ld\n", how, got); exit(1); }
    for (long at = 0; at < bytes; at++) if (buffer[at] != 0) { printf("%s: wrong\n", how); exit(1); }
}

static void all(const char *when, char *(*buffer)(void)) {
    char *b = buffer();
    check(when, read_said(fd, b, 65536), b, 65536);
    b = buffer();
    check(when, call(0, fd, (long)b, 65536), b, 65536);
    b = buffer();
    check(when, read_constant(fd, b), b, 4096);
    b = buffer();
    check(when, read_by_library(fd, b, 65536), b, 65536);
}

static char *other, *kept;
enum { BYTES = 8 << 20 };

static char *fresh(void) { return malloc(65536); }

static char *put_away(void) {
    memset(kept, 'x', 65536);
    for (int round = 0; round < 3; round++)
        for (size_t at = 0; at < BYTES; at += 64) other[at] = (char)(at + round);
    return kept;
}

int main(void) {
    other = malloc(BYTES), kept = malloc(65536);
    fd = open("/dev/zero", O_RDONLY);
    all("fresh", fresh);
    all("put away", put_away);
    puts("ok");
    return 0;
}
#endif
