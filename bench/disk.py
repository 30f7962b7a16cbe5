#!/usr/bin/env python3
"""virtio-blk on a raw image in the page cache, FVMM against QEMU (-M microvm, aio=io_uring, cache=writeback), same guest (blk.elf, bench=MS),
in one run, as one JSON object.

One request at a time: random reads of 4 KiB, then sequential ones of 256 KiB. What is measured is the way through the device; the disk behind it is RAM."""
import argparse
import json
import os
import re
import shutil
import subprocess
import tempfile

from qemu import microvm, printed
import lab  # noqa: E402 (qemu.py has set the path)
from lab import Daemon, wait_for  # noqa: E402

BLK = os.path.join(os.path.dirname(lab.GUEST), "blk.elf")
LINE = re.compile(r"BENCH random=(\d+) random_us=(\d+) sequential=(\d+) sequential_bytes=(\d+) sequential_us=(\d+)")


def image_of(root, mib):
    """Random content, in the page cache."""
    path = os.path.join(root, "disk.img")
    with open(path, "wb") as out:
        for _ in range(mib):
            out.write(os.urandom(1 << 20))
    with open(path, "rb") as read:
        while read.read(1 << 20):
            pass
    return path


def figures(serial):
    found = wait_for("the guest's figures", lambda: LINE.search(serial()))
    random, random_us, sequential, size, sequential_us = map(int, found.groups())
    return {"random_reads_s": round(random * 1e6 / random_us), "random_us": round(random_us / random, 2),
            "sequential_mb_s": round(sequential * size / sequential_us, 1)}


def ours(root, image, cmdline):
    host = Daemon("A", root, [])
    try:
        host.ctl("vm", "create", "web", "--memory", "64M", "--kernel", BLK, "--cmdline", cmdline, "--disk", f"path={image},readonly", "--start")
        return figures(lambda: host.serial("web"))
    finally:
        host.stop()


def qemus(root, image, cmdline):
    serial = os.path.join(root, "qemu.serial")
    process = subprocess.Popen(
        [*microvm(64, BLK, serial, cmdline), "-global", "virtio-mmio.force-legacy=false", "-drive",
         f"file={image},format=raw,if=none,id=d,readonly=on,cache=writeback,aio=io_uring", "-device", "virtio-blk-device,drive=d"])
    try:
        return figures(lambda: printed(serial))
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256, help="size of the image")
    parser.add_argument("--ms", type=int, default=2000, help="of each measurement")
    parser.add_argument("--turns", type=int, default=3, help="of both, one after the other")
    options = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None:
        raise SystemExit("qemu-system-x86_64 is not there: apt-get install qemu-system-x86")
    cmdline = f"bench={options.ms} readonly=1 beat=60000"
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    try:
        image = image_of(root, options.mib)
        turns = []
        for turn in range(options.turns):
            place = os.path.join(root, str(turn))
            os.makedirs(place)
            turns.append((ours(place, image, cmdline), qemus(place, image, cmdline)))
    finally:
        shutil.rmtree(root, ignore_errors=True)
    best = [{key: (min if key.endswith("_us") else max)(turn[side][key] for turn in turns) for key in turns[0][0]} for side in (0, 1)]
    print(json.dumps({
        "fvmm": best[0], "qemu": best[1], "turns": [{"fvmm": a, "qemu": b} for a, b in turns],
        "random_ratio": round(best[0]["random_reads_s"] / best[1]["random_reads_s"], 2),
        "sequential_ratio": round(best[0]["sequential_mb_s"] / best[1]["sequential_mb_s"], 2)}, indent=1))


if __name__ == "__main__":
    main()
