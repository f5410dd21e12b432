"""A redis-server: filled, saved in the background while it is written to, read back, and
started again from what was saved: server.py FOLDER"""

import hashlib
import os
import socket
import subprocess
import sys
import time

folder = sys.argv[1]
place = os.path.join(folder, f"socket-{os.getpid()}")
saved = os.path.join(folder, f"saved-{os.getpid()}.rdb")
COUNT = 400_000


def start():
    server = subprocess.Popen(
        ["redis-server", "--port", "0", "--unixsocket", place, "--dir", folder, "--dbfilename", os.path.basename(saved),
         "--save", "", "--appendonly", "no"], stdout=subprocess.DEVNULL)
    for _ in range(3000):
        try:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(place)
            return server, connection, connection.makefile("rb")
        except OSError:
            connection.close()
            time.sleep(0.02)
    sys.exit("no redis-server answers")


def answer(file):
    line = file.readline()
    if line[:1] == b"$":
        length = int(line[1:])
        return file.read(length + 2)[:-2] if length >= 0 else None
    if line[:1] == b"-" and not line.startswith(b"-LOADING"):
        sys.exit(line.decode())
    return line[1:].strip()


def ask(connection, file, commands):
    """The answers to commands, sent together."""
    packed = b"".join(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)
                      for words in commands)
    connection.sendall(packed)
    return [answer(file) for _ in commands]


def value(number, version):
    return b"visit %d to shop %d, version %d; " % (number, number % 1009, version) * 12


def fill(connection, file, numbers, version):
    for first in range(0, len(numbers), 500):
        ask(connection, file, [(b"SET", b"key %d" % number, value(number, version)) for number in numbers[first:first + 500]])


def read(connection, file):
    digest = hashlib.sha256()
    for first in range(0, COUNT, 500):
        for found in ask(connection, file, [(b"GET", b"key %d" % number) for number in range(first, first + 500)]):
            digest.update(found or b"none")
    return digest.hexdigest()


server, connection, file = start()
fill(connection, file, range(COUNT), 1)
print(read(connection, file))
ask(connection, file, [(b"BGSAVE",)])
fill(connection, file, range(0, COUNT, 7), 2)
while b"rdb_bgsave_in_progress:1" in ask(connection, file, [(b"INFO", b"persistence")])[0]:
    time.sleep(0.05)
status = ask(connection, file, [(b"INFO", b"persistence")])[0]
print("saved" if b"rdb_last_bgsave_status:ok" in status else "not saved", read(connection, file))
connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
server.wait()
# What was saved is of the moment of the fork.
server, connection, file = start()
while ask(connection, file, [(b"PING",)])[0] != b"PONG":
    time.sleep(0.05)
print(read(connection, file))
connection.sendall(b"*2\r\n$8\r\nSHUTDOWN\r\n$6\r\nNOSAVE\r\n")
server.wait()
os.remove(saved)
