#!/usr/bin/env bash
# git: a repository of several versions of this machine's headers is packed anew and checked.
set -eu
cd "$2"
if [ "${3-}" = prepare ]; then
    git init -q -b main repository
    python3 - "$1" <<'PY' | git -C repository fast-import --quiet
import os, random, sys
scale = float(sys.argv[1])
random.seed(20)
out = sys.stdout.buffer
files = []
size = 0
for folder, folders, names in os.walk("/usr/include"):
    folders.sort()
    for name in sorted(names):
        path = os.path.join(folder, name)
        text = open(path, "rb").read() if os.path.isfile(path) else b""
        if 200 < len(text) < 400000 and size < 50e6 * scale:
            files.append((path.strip("/").encode(), text.split(b"\n")))
            size += len(text)
for version in range(4):
    message = b"version %d" % version
    out.write(b"commit refs/heads/main\ncommitter A <a@example.org> %d +0000\ndata %d\n%s\n"
              % (10 ** 9 + version, len(message), message))
    for path, lines in files:
        for _ in range(3):
            lines[random.randrange(len(lines))] = b"/* version %d */" % version
        text = b"\n".join(lines)
        out.write(b"M 644 inline %s\ndata %d\n%s\n" % (path, len(text), text))
PY
    git -C repository config gc.auto 0
    # As a run leaves it: what fast-import packs is slow to read.
    git -C repository repack -adfq
    exit
fi
cd repository
git -c pack.threads=1 -c pack.window=20 repack -adfq
git fsck --full 2>&1
git rev-parse main
git count-objects -v | grep -E 'in-pack|packs'
