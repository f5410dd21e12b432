"""What programs take, as the kernel says it, sampled while they run.

A sampler is a thread: it reads, notes the largest value and the longest time between two
readings, and goes on until its program has ended. Nothing is averaged, and no reading is
left out. A program may mark that another phase begins, by a byte written to the pipe
whose number is in PROOF_MARKS; each phase has a largest value of its own.
"""

import os
import threading
import time

FIELDS = (b"RssAnon:", b"RssShmem:", b"VmPTE:", b"VmSwap:")


def status_bytes(text, fields=FIELDS):
    """The sum of fields of a /proc/PID/status, bytes; None where it has none of them."""
    total, seen = 0, False
    for field in fields:
        at = text.find(b"\n" + field)
        if at >= 0:
            seen = True
            total += int(text[at + len(field) + 1:].split(None, 1)[0])
    return total << 10 if seen else None


class Process:
    """What one process takes: RssAnon + RssShmem + VmPTE + VmSwap."""

    def __init__(self, number):
        self._file = os.open(f"/proc/{number}/status", os.O_RDONLY | os.O_CLOEXEC)

    def bytes(self, fields=FIELDS):
        """Bytes; None once it has ended."""
        try:
            return status_bytes(os.pread(self._file, 1 << 13, 0), fields)
        except ProcessLookupError:
            return None

    def close(self):
        os.close(self._file)


class Members:
    """What all processes of a group take together: pages as the group counts them, so that
    one which several map counts once, and each one's page tables."""

    def __init__(self, group):
        self._group = group
        self._known = {}

    def bytes(self):
        total = self._group.pages()
        numbers = self._group.members()
        for number in set(self._known).difference(numbers):
            self._known.pop(number).close()
        for number in numbers:
            try:
                if number not in self._known:
                    self._known[number] = Process(number)
                total += self._known[number].bytes((b"VmPTE:", b"VmSwap:")) or 0
            except OSError:
                # It ended between the two readings.
                pass
        return total

    def close(self):
        for process in self._known.values():
            process.close()


class Sampler:
    """Calls `read` so many times a second, until it gives None or `stop` is called."""

    def __init__(self, read, hertz, bound_bytes, marks=None):
        self._read = read
        self._period = 1 / hertz
        self._bound = bound_bytes
        self._marks = marks
        self._stopped = threading.Event()
        self.most = [0]
        self.count = 0
        self.over = 0
        self.longest_gap_s = 0.0
        self.error = None
        self._begun = time.monotonic()
        self._last = self._begun
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        try:
            due = time.monotonic()
            while not self._stopped.is_set():
                if not self._sample():
                    break
                due += self._period
                rest = due - time.monotonic()
                if rest > 0:
                    time.sleep(rest)
                else:
                    due = time.monotonic()
        except Exception as error:  # noqa: BLE001 - told to whoever asks for the samples
            self.error = error

    def _sample(self):
        if self._marks is not None:
            try:
                for _ in os.read(self._marks, 64):
                    self.most.append(0)
            except BlockingIOError:
                pass
        value = self._read()
        now = time.monotonic()
        if value is None:
            return False
        if self.count:
            self.longest_gap_s = max(self.longest_gap_s, now - self._last)
        self._last = now
        self.count += 1
        self.most[-1] = max(self.most[-1], value)
        self.over += value > self._bound
        return True

    def stop(self):
        """Ends it; raises what a reading raised."""
        self._stopped.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    @property
    def hertz(self):
        return self.count / max(self._last - self._begun, 1e-9)
