/* Records that are put away, found, and changed: for a debugger to look at. */
#include "ghosts.h"

struct record {
    int number;
    char name[60];
};

static struct record *records;
static int changes;

/* Here a debugger stops: the record was brought back just now. */
__attribute__((noinline)) void record_found(struct record *record) { changes += record->number; }

__attribute__((noinline)) void record_changes(struct record *record) {
    evict();
    record->number++;
    evict();
    /* A debugger cannot look at what is not there. */
    if (record->number) record_found(record);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    prepare(argv[1]);
    records = malloc(40000 * sizeof *records);
    CHECK(records);
    for (int i = 0; i < 40000; i++) {
        records[i].number = i;
        snprintf(records[i].name, sizeof records[i].name, "record %d", i);
    }
    evict();
    if (records[31000].number == 31000) record_found(&records[31000]);
    record_changes(&records[31000]);
    for (int i = 0; i < 40000; i++) CHECK(records[i].number == i + (i == 31000));
    CHECK(changes == 62001);
    puts("ok");
    return 0;
}
