"""A redis server: filled with sessions over a socket, read by a zipf law, some changed."""

import bisect
import hashlib
import itertools
import os
import random
import socket
import subprocess
import sys
import time

scale, folder = float(sys.argv[1]), sys.argv[2]
count = int(200_000 * scale)
random.seed(17)
path = os.path.join(folder, "redis.sock")
server = subprocess.Popen(
    ["redis-server", "--port", "0", "--unixsocket", path, "--dir", folder, "--save", "", "--appendonly", "no"],
    stdout=subprocess.DEVNULL,
)
link = socket.socket(socket.AF_UNIX)
while True:
    try:
        link.connect(path)
        break
    except OSError:
        if server.poll() is not None:
            sys.exit("redis-server does not start")
        time.sleep(0.01)
file = link.makefile("rwb")


def send(*words):
    file.write(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))


def answer():
    line = file.readline()
    if line[:1] != b"$":
        return line
    size = int(line[1:])
    return file.read(size + 2)[:-2] if size >= 0 else None


def key(number):
    return b"session:%d" % number


pages = ["start", "search", "basket", "order", "help", "account", "offers", "map"]
for first in range(0, count, 500):
    numbers = range(first, min(first + 500, count))
    for number in numbers:
        steps = ",".join(f'{{"page":"{pages[number * step % 8]}","seconds":{number * step % 97}}}' for step in range(1, 31))
        send(b"SET", key(number), f'{{"user":{number},"since":{number % 86400},"steps":[{steps}]}}'.encode())
    file.flush()
    for number in numbers:
        assert answer() == b"+OK\r\n"
order = list(range(count))
random.shuffle(order)
frequencies = list(itertools.accumulate((rank + 1) ** -0.9 for rank in range(count)))
digest = hashlib.sha1()
for _ in range(int(1000 * scale)):
    asked = [order[bisect.bisect(frequencies, random.random() * frequencies[-1])] for _ in range(250)]
    for place, number in enumerate(asked):
        if place % 50 == 0:
            send(b"APPEND", key(number), b";seen")
        else:
            send(b"GET", key(number))
    file.flush()
    for number in asked:
        digest.update(answer())
send(b"DBSIZE")
file.flush()
print(answer(), digest.hexdigest())
send(b"SHUTDOWN", b"NOSAVE")
file.flush()
if server.wait() != 0:
    sys.exit(f"redis-server ended with {server.returncode}")
