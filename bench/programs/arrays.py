"""Passes over large arrays of NumPy: sums by group, running sums, a table look-up."""

import sys

import numpy

scale = float(sys.argv[1])
count = int(12_000_000 * scale)
chance = numpy.random.default_rng(13)
amounts = chance.integers(0, 5000, count).astype(numpy.int64)
shops = numpy.arange(count, dtype=numpy.int64) // 64 % 2000
rates = chance.random(5000)
answers = []
for _ in range(3):
    answers.append(int(numpy.bincount(shops, weights=amounts, minlength=2000).max()))
    for part in numpy.array_split(numpy.arange(count, dtype=numpy.int32), 16):
        amounts[part[0] : part[-1] + 1] += shops[part[0] : part[-1] + 1] & 3
        answers.append(round(float(rates[amounts[part] % 5000].sum()), 3))
    answers.append(int(numpy.cumsum(amounts[:: 7])[-1]))
print(*answers)
