/* Bytes that do not compress, text that does, and both looked at again. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MIB (1u << 20)

static inline uint64_t next(uint64_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}
static inline uint64_t seed_of(uint64_t key) {
    return (key + 1) * 0x9e3779b97f4a7c15u;
}
/* The word number `at` of the text `key`: 64 bytes differ in 12. */
static inline uint64_t text_word(uint64_t key, size_t at) {
    return at % 8 == 0 ? (key << 32 | at) * 0x9e3779b97f4a7c15u >> 32 : 0x2065687420666f20u + at % 8;
}
__attribute__((unused)) static void fill_noise(uint64_t *words, size_t count, uint64_t key) {
    uint64_t state = seed_of(key);
    for (size_t at = 0; at < count; at++)
        words[at] = next(&state);
}
__attribute__((unused)) static void fill_text(uint64_t *words, size_t count, uint64_t key) {
    for (size_t at = 0; at < count; at++)
        words[at] = text_word(key, at);
}
__attribute__((unused)) static void look_at_noise(const uint64_t *words, size_t count, uint64_t key) {
    uint64_t state = seed_of(key);
    for (size_t at = 0; at < count; at++)
        if (words[at] != next(&state)) {
            puts("wrong data");
            exit(9);
        }
}
__attribute__((unused)) static void look_at_text(const uint64_t *words, size_t count, uint64_t key) {
    for (size_t at = 0; at < count; at++)
        if (words[at] != text_word(key, at)) {
            puts("wrong data");
            exit(9);
        }
}
/* Begins a new phase of what is measured. */
__attribute__((unused)) static void mark(void) {
    const char *marks = getenv("PROOF_MARKS");
    if (marks && write(atoi(marks), "+", 1) != 1)
        exit(8);
}
