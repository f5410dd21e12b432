// The original library's test of concurrent allocations, word for word, and a
// program around it.

#include "../seed/test_concurrent_allocations.inc"

int main() {
    test_concurrent_allocations();
}
