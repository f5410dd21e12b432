"""Memory control groups: one of a limit, or one that only counts.

Version 1 where the memory controller is mounted so, else version 2.
"""

import os
import pathlib
import time


class Cannot(Exception):
    """One line that says why nothing can be measured."""


def _mounted():
    """The folder of the hierarchy with the memory controller, and its version."""
    found = {}
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        kind, _source, options = right.split(" ", 2)
        place = pathlib.Path(left.split()[4].encode().decode("unicode_escape"))
        if kind == "cgroup" and "memory" in options.split(","):
            found.setdefault(1, place)
        elif kind == "cgroup2" and "memory" in (place / "cgroup.controllers").read_text().split():
            found.setdefault(2, place)
    for version in sorted(found):
        return found[version], version
    raise Cannot("no hierarchy of control groups here has the memory controller")


def _own(version):
    """The path of this process's group below the mount."""
    for line in pathlib.Path("/proc/self/cgroup").read_text().splitlines():
        _number, controllers, path = line.split(":", 2)
        if ("memory" in controllers.split(",")) if version == 1 else controllers == "":
            return path.lstrip("/")
    return ""


def _keyed(text, names):
    """The sum of the values of `names` in a text of `name value` lines."""
    values = dict(line.split(b" ", 1) for line in text.splitlines())
    return sum(int(values.get(name, 0)) for name in names)


class Group:
    """A group without swap, of `limit_bytes`, or without a limit; a context manager."""

    def __init__(self, name, limit_bytes=None):
        mount, self.version = _mounted()
        self.limit_bytes = limit_bytes
        name = f"prove-memory-{name}-{os.getpid()}"
        why = None
        for above in (mount / _own(self.version), mount):
            self.folder = above / name
            try:
                if self.version == 2:
                    self._try("cgroup.subtree_control", "+memory", above)
                self.folder.mkdir()
                self.limit(limit_bytes)
                break
            except OSError as error:
                why = error
                self._forget()
        else:
            raise Cannot(f"no memory group can be made here ({why}): run as root")
        self._files = {}

    def _try(self, name, value, folder=None):
        try:
            ((folder or self.folder) / name).write_text(str(value))
        except OSError:
            pass

    def limit(self, limit_bytes):
        """Sets the limit; as without it, there is no swap."""
        if self.version == 1:
            self._try("memory.swappiness", 0)
            if limit_bytes is not None:
                (self.folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
                self._try("memory.memsw.limit_in_bytes", limit_bytes)
        else:
            self._try("memory.swap.max", 0)
            if limit_bytes is not None:
                (self.folder / "memory.max").write_text(str(limit_bytes))

    def _read(self, name):
        if name not in self._files:
            self._files[name] = os.open(self.folder / name, os.O_RDONLY | os.O_CLOEXEC)
        return os.pread(self._files[name], 1 << 16, 0)

    def pages(self):
        """Anonymous and shared memory, bytes: a page that processes share counts once."""
        if self.version == 1:
            return _keyed(self._read("memory.stat"), (b"total_rss", b"total_shmem"))
        return _keyed(self._read("memory.stat"), (b"anon", b"shmem"))

    def charged(self):
        """Anonymous, shared and kernel memory, bytes."""
        if self.version == 1:
            return self.pages() + int(self._read("memory.kmem.usage_in_bytes"))
        return _keyed(self._read("memory.stat"), (b"anon", b"shmem", b"kernel"))

    def kills(self):
        """Processes that the kernel killed in it for want of memory."""
        name = "memory.oom_control" if self.version == 1 else "memory.events"
        return _keyed(self._read(name), (b"oom_kill",))

    def members(self):
        """The numbers of its processes."""
        return [int(word) for word in self._read("cgroup.procs").split()]

    def entered(self, command):
        """The command, started in the group."""
        script = 'echo $$ >"$0" && exec "$@"'
        return ["sh", "-c", script, str(self.folder / "cgroup.procs"), *command]

    def _forget(self):
        try:
            self.folder.rmdir()
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for file in self._files.values():
            os.close(file)
        self._files = {}
        for _ in range(200):
            self._forget()
            if not self.folder.exists():
                return
            time.sleep(0.02)
