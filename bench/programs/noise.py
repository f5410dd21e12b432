"""Random numbers of NumPy, which do not compress: what there is to lose."""

import hashlib
import sys

import numpy

scale = float(sys.argv[1])
noise = numpy.random.default_rng(14).integers(0, 2**63, int(24_000_000 * scale), dtype=numpy.int64)
for _ in range(3):
    print(hashlib.sha1(noise[: len(noise) // 4].tobytes()).hexdigest(), int((noise & 255).sum()))
