"""A full parent; a child that was forked from it grows by what does not compress."""

import os
import sys
import zlib

kept = [os.urandom(1 << 20) for _ in range(int(sys.argv[1]))]
marks = [zlib.crc32(block) for block in kept]
sys.stdout.flush()
child = os.fork()
if child == 0:
    more = []
    try:
        for _ in range(600):
            more.append(os.urandom(1 << 20))
        os.write(1, b"all of it\n")
    except MemoryError:
        more.clear()
        os.write(1, b"refused\n")
    os._exit(0)
status = os.waitpid(child, 0)[1]
if os.WIFSIGNALED(status):
    print("signal", os.WTERMSIG(status))
print(marks == [zlib.crc32(block) for block in kept])
