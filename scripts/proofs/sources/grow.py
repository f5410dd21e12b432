"""Blocks of 1 MiB that do not compress, until one is refused: MIB of them at most."""

import os
import sys

kept = []
try:
    for _ in range(int(sys.argv[1])):
        kept.append(os.urandom(1 << 20))
    print("all of it")
except MemoryError:
    kept.clear()
    print("refused")
