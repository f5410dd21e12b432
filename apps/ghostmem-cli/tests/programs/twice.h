/* The same calls on ordinary memory and on memory from malloc: what they come to is noted, and
 * compared. */
#include "ghosts.h"
#include <stdarg.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096ul

static char noted[2][1 << 20];
static size_t noted_bytes;
static int which;

static void note(const char *form, ...) {
    va_list list;
    va_start(list, form);
    int bytes = vsnprintf(noted[which] + noted_bytes, sizeof noted[0] - noted_bytes, form, list);
    va_end(list);
    CHECK(bytes >= 0 && noted_bytes + bytes < sizeof noted[0]);
    noted_bytes += bytes;
}

/* What a call answers. */
#define ANSWER(call) do { errno = 0; long answer = (long)(call); note("%d %s: %ld %d\n", __LINE__, #call, answer, answer == -1 ? errno : 0); } while (0)

/* Memory of the kind that it is about: ordinary at first, then the heap's. Pages of its own. */
static char *memory(size_t bytes) {
    if (which == 1) return ghost(bytes);
    char *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(p != MAP_FAILED);
    return p;
}

static void both(void (*body)(const char *), const char *folder) {
    for (which = 0; which < 2; which++) {
        noted_bytes = 0;
        body(folder);
    }
    char *one = noted[0], *other = noted[1];
    int wrong = 0;
    while ((*one || *other) && wrong < 12) {
        size_t n = strcspn(one, "\n"), m = strcspn(other, "\n");
        if (n != m || memcmp(one, other, n)) {
            printf("wrong: on ordinary memory %.*s\n       on the heap's       %.*s\n", (int)n, one, (int)m, other);
            wrong++;
        }
        one += n + (one[n] != 0), other += m + (other[m] != 0);
    }
    if (wrong) exit(1);
}
