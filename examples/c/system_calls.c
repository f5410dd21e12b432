/* Reading a file into ghost memory: the buffer is pinned while the kernel
 * writes to it, as the kernel cannot touch a page that is not resident.
 *
 *     cc system_calls.c $(pkg-config --cflags --libs ghostmem) -o system_calls
 *     ./system_calls FILE
 */

#include <fcntl.h>
#include <ghostmem.h>
#include <stdio.h>
#include <unistd.h>

enum { PIECE_BYTES = 64 * GHOSTMEM_PAGE_SIZE };

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s FILE\n", argv[0]);
        return 2;
    }
    /* At most 200 pages resident: room for a pinned piece and some more. */
    ghostmem_heap *heap = ghostmem_default_heap(200);
    char *piece = ghostmem_allocate(heap, PIECE_BYTES);
    const int file = open(argv[1], O_RDONLY);
    if (piece == NULL || file < 0) {
        perror(argv[1]);
        return 1;
    }
    unsigned long long bytes = 0, lines = 0;
    for (;;) {
        ghostmem_pinned *pinned;
        if (ghostmem_pin(heap, piece, PIECE_BYTES, &pinned) != GHOSTMEM_STATUS_OK) {
            fprintf(stderr, "%s\n", ghostmem_last_error());
            return 1;
        }
        const ssize_t got = read(file, piece, PIECE_BYTES);
        ghostmem_unpin(pinned);
        if (got < 0) {
            perror(argv[1]);
            return 1;
        }
        if (got == 0) {
            break;
        }
        bytes += (unsigned long long)got;
        for (ssize_t i = 0; i < got; i++) {
            lines += piece[i] == '\n';
        }
    }
    close(file);
    ghostmem_deallocate(heap, piece);
    printf("%llu bytes, %llu lines\n", bytes, lines);
    return 0;
}
