"""Look-ups by a zipf law in a dictionary of profiles, a few of which change."""

import bisect
import itertools
import random
import sys

scale = float(sys.argv[1])
count = int(220_000 * scale)
random.seed(11)
towns = ["Aachen", "Bergen", "Como", "Delft", "Evora", "Fulda", "Gent", "Honfleur"]
profiles = {
    f"user:{number:08d}": f"{towns[number % 8]} {number} since {1990 + number % 35}; " * 30
    for number in range(count)
}
order = list(profiles)
random.shuffle(order)
frequencies = list(itertools.accumulate((rank + 1) ** -0.95 for rank in range(count)))
total = frequencies[-1]
length = letters = 0
for step in range(int(600_000 * scale)):
    key = order[bisect.bisect(frequencies, random.random() * total)]
    profile = profiles[key]
    length += len(profile)
    letters += ord(profile[step % 100])
    if step % 50 == 0:
        profiles[key] = profile[1:] + profile[0]
print(length, letters, sum(map(len, profiles.values())))
