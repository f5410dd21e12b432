/* Records that several processes write to one end come whole: appended to a file, and within
 * PIPE_BUF to a pipe. */
#define _GNU_SOURCE
#include "ghosts.h"
#include <fcntl.h>
#include <limits.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

enum { WRITERS = 4, RECORDS = 6, RECORD = 3 << 20, LINES = 2000, LINE = 4000 };

static void appends(const char *folder) {
    char name[4096];
    snprintf(name, sizeof name, "%s/records", folder);
    int file = open(name, O_RDWR | O_CREAT | O_TRUNC | O_APPEND, 0600);
    CHECK(file >= 0 && unlink(name) == 0);
    for (int writer = 0; writer < WRITERS; writer++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child > 0) continue;
        char *record = ghost(RECORD);
        memset(record, 'a' + writer, RECORD);
        evict();
        for (int i = 0; i < RECORDS; i++) CHECK(write(file, record, RECORD) == RECORD);
        _exit(0);
    }
    for (int i = 0; i < WRITERS; i++) {
        int status;
        CHECK(wait(&status) > 0 && status == 0);
    }
    struct stat is;
    CHECK(fstat(file, &is) == 0 && is.st_size == (off_t)WRITERS * RECORDS * RECORD);
    static char piece[64 << 10];
    int seen[WRITERS] = {0};
    for (off_t at = 0; at < is.st_size; at += RECORD) {
        char writer = 0;
        for (off_t part = 0; part < RECORD; part += sizeof piece) {
            CHECK(pread(file, piece, sizeof piece, at + part) == sizeof piece);
            if (part == 0) writer = piece[0];
            for (size_t i = 0; i < sizeof piece; i++) CHECK(piece[i] == writer);
        }
        CHECK(writer >= 'a' && writer < 'a' + WRITERS);
        seen[writer - 'a']++;
    }
    for (int writer = 0; writer < WRITERS; writer++) CHECK(seen[writer] == RECORDS);
    close(file);
}

static void lines(void) {
    int ends[2];
    CHECK(LINE <= PIPE_BUF && pipe(ends) == 0);
    for (int writer = 0; writer < WRITERS; writer++) {
        pid_t child = fork();
        CHECK(child >= 0);
        if (child > 0) continue;
        close(ends[0]);
        /* Each line over a page's end, where half of it may be away. */
        char *block = ghost(64 << 10), *line = block + 4096 - LINE / 2;
        memset(line, 'a' + writer, LINE - 1);
        line[LINE - 1] = '\n';
        for (int i = 0; i < LINES; i++) {
            if (i % 500 == 0) evict();
            CHECK(write(ends[1], line, LINE) == LINE);
        }
        _exit(0);
    }
    close(ends[1]);
    FILE *in = fdopen(ends[0], "r");
    char *line = NULL;
    size_t room = 0;
    int seen[WRITERS] = {0};
    ssize_t got;
    while ((got = getline(&line, &room, in)) > 0) {
        CHECK(got == LINE);
        for (int i = 1; i < LINE - 1; i++) CHECK(line[i] == line[0]);
        CHECK(line[0] >= 'a' && line[0] < 'a' + WRITERS);
        seen[line[0] - 'a']++;
    }
    for (int writer = 0; writer < WRITERS; writer++) CHECK(seen[writer] == LINES);
    for (int i = 0; i < WRITERS; i++) {
        int status;
        CHECK(wait(&status) > 0 && status == 0);
    }
    fclose(in);
}

int main(int argc, char **argv) {
    CHECK(argc == 3);
    prepare(argv[2]);
    appends(argv[1]);
    lines();
    printf("ok\n");
    return 0;
}
