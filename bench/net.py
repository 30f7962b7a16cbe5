#!/usr/bin/env python3
"""virtio-net over a unix stream socket, FVMM against QEMU (-M microvm, -netdev stream), same guest (echo.elf), in one run, as one JSON object.

Latency: one frame of 64 bytes at a time, there and back. Throughput: frames of 1514 bytes, 32 under way. The other end is this script for both, and
costs the same for both, so the ratio is a lower bound of the devices' own."""
import argparse
import json
import os
import shutil
import socket
import statistics
import struct
import subprocess
import tempfile
import time

from qemu import microvm, printed
import lab  # noqa: E402 (qemu.py has set the path)
from lab import Daemon, wait_for  # noqa: E402

ECHO = os.path.join(os.path.dirname(lab.GUEST), "echo.elf")
WINDOW = 32


class Peer:
    """The other end: a listening socket, and the connection of one VM."""

    def __init__(self, path):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.listener.settimeout(lab.WAIT_S)
        self.path = path

    def accept(self):
        self.connection, _ = self.listener.accept()
        self.connection.settimeout(lab.WAIT_S)
        self.stream = self.connection.makefile("rb")

    def send(self, frames):
        self.connection.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def receive(self):
        """The next frame of the experimental EtherType; others are not ours."""
        while True:
            size, = struct.unpack(">I", self.stream.read(4))
            frame = self.stream.read(size)
            if frame[12:14] == b"\x88\xb5":
                return frame

    def close(self):
        self.stream.close()
        self.connection.close()
        self.listener.close()


def frame_of(size):
    return b"\xff" * 6 + bytes([2, 4, 6, 8, 10, 12]) + b"\x88\xb5" + b"x" * (size - 14)


def measure(peer, rounds, seconds):
    small, large = frame_of(64), frame_of(1514)
    took = []
    for turn in range(rounds + 100):
        began = time.perf_counter()
        peer.send([small])
        peer.receive()
        if turn >= 100:  # the first ones find cold caches
            took.append((time.perf_counter() - began) * 1e6)
    took.sort()
    peer.send([large] * WINDOW)
    frames, began = 0, time.perf_counter()
    while time.perf_counter() - began < seconds:
        for _ in range(WINDOW // 2):
            if peer.receive()[12:] != large[12:]:  # addresses have changed places
                raise SystemExit("a frame came back as another")
        peer.send([large] * (WINDOW // 2))
        frames += WINDOW // 2
    rate = frames / (time.perf_counter() - began)
    return {"latency_us_median": round(statistics.median(took), 1), "latency_us_p99": round(took[int(len(took) * 0.99)], 1),
            "frames_s": round(rate), "mbit_s_each_way": round(rate * 1514 * 8 / 1e6, 1)}


def ours(root, options):
    peer = Peer(os.path.join(root, "fvmm.net"))
    host = Daemon("A", root, [])
    try:
        host.ctl("vm", "create", "web", "--memory", "64M", "--kernel", ECHO, "--cmdline", "beat=60000", "--net", "unix=" + peer.path, "--start")
        peer.accept()
        wait_for("the guest's driver", lambda: "FVMM echo slot=" in host.serial("web"))
        return measure(peer, options.rounds, options.seconds)
    finally:
        host.stop()


def qemus(root, options):
    peer = Peer(os.path.join(root, "qemu.net"))
    serial = os.path.join(root, "qemu.serial")
    process = subprocess.Popen(
        [*microvm(64, ECHO, serial, "beat=60000"), "-global", "virtio-mmio.force-legacy=false", "-netdev",
         "stream,id=n,server=off,addr.type=unix,addr.path=" + peer.path, "-device", "virtio-net-device,netdev=n"])
    try:
        peer.accept()
        wait_for("the guest's driver in QEMU", lambda: "FVMM echo slot=" in printed(serial))
        return measure(peer, options.rounds, options.seconds)
    finally:
        process.kill()
        process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--turns", type=int, default=3, help="of both, one after the other")
    options = parser.parse_args()
    if shutil.which("qemu-system-x86_64") is None:
        raise SystemExit("qemu-system-x86_64 is not there: apt-get install qemu-system-x86")
    turns = []
    for _ in range(options.turns):
        root = tempfile.mkdtemp(prefix="fvmm-bench-")
        try:
            turns.append((ours(root, options), qemus(root, options)))
        finally:
            shutil.rmtree(root, ignore_errors=True)
    best = [{key: (min if "latency" in key else max)(turn[side][key] for turn in turns) for key in turns[0][0]} for side in (0, 1)]
    print(json.dumps({
        "fvmm": best[0], "qemu": best[1], "turns": [{"fvmm": a, "qemu": b} for a, b in turns],
        "latency_ratio": round(best[1]["latency_us_median"] / best[0]["latency_us_median"], 2),
        "throughput_ratio": round(best[0]["frames_s"] / best[1]["frames_s"], 2)}, indent=1))


if __name__ == "__main__":
    main()
