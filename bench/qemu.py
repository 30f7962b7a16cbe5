#!/usr/bin/env python3
"""The same guest moved by FVMM (`suspend`, template at both hosts) and by QEMU's pre-copy, in one run, as one JSON object.

QEMU: -accel kvm -M microvm -cpu qemu64,-cx16, TCP over loopback, downtime limit 10 ms, no bandwidth limit, driven over QMP. The guest is
filled with incompressible data and idle. Beside the ratio stands the same with template creation and push included."""
import argparse
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools"))
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import migrate  # noqa: E402
from lab import GUEST, Ballast, free_port, heartbeats, wait_for  # noqa: E402

IDLE = "seed=5 ws=0 rate=0 cpu=0 beat=500"
BEAT_WAIT_S = 30  # for the first heartbeat after a move
LOST_MAX = 3      # guests that QEMU says it has moved, and that do not go on: counted, and begun anew


class GuestLost(Exception):
    """QEMU's migration completed, and the guest stands still."""


def microvm(mib, kernel, serial, cmdline):
    """QEMU as every benchmark here runs it; options of one may follow."""
    return ["qemu-system-x86_64", "-accel", "kvm", "-M", "microvm", "-cpu", "qemu64,-cx16", "-m", str(mib), "-nodefaults", "-no-user-config",
            "-display", "none", "-serial", "file:" + serial, "-kernel", kernel, "-append", cmdline]


def printed(serial):
    """What a guest has written to its serial port so far."""
    try:
        with open(serial, errors="replace") as text:
            return text.read()
    except FileNotFoundError:
        return ""


def connected(path):
    """A connection to the socket; None while nobody listens there."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(path)
        return connection
    except OSError:
        connection.close()
        return None


class Qemu:
    """One qemu-system-x86_64 with a QMP socket."""

    def __init__(self, root, name, mib, cmdline, *options):
        self.serial = os.path.join(root, name + ".serial")
        path = os.path.join(root, name + ".qmp")
        self.process = subprocess.Popen(
            [*microvm(mib, GUEST, self.serial, cmdline), "-qmp", f"unix:{path},server=on,wait=off", *options])
        self.socket = wait_for("QEMU's QMP socket", lambda: connected(path))
        self.stream = self.socket.makefile("r")
        self.stream.readline()  # greeting
        self.do("qmp_capabilities")

    def do(self, command, **arguments):
        self.socket.sendall(json.dumps({"execute": command, "arguments": arguments}).encode())
        while True:
            answer = json.loads(self.stream.readline())
            if "error" in answer:
                raise SystemExit(f"QEMU: {command}: {answer['error']}")
            if "return" in answer:
                return answer["return"]

    def close(self):
        self.socket.close()
        self.process.kill()
        self.process.wait()


    def printed(self):
        return printed(self.serial)


def guest_gap_ms(host):
    """What the guest saw itself, in its first heartbeat at the destination; and that its memory is whole."""
    end = time.monotonic() + BEAT_WAIT_S
    while not (beats := heartbeats(host.printed())):
        if time.monotonic() > end:
            raise GuestLost
        time.sleep(0.01)
    if any(beat["errors"] for beat in beats):
        raise SystemExit("the guest found errors in its memory in QEMU")
    return max(beats[0]["gap_us"], beats[0]["io_us"]) / 1000


def qemu_precopy(root, mib, times, cmdline=IDLE):
    """That many migrations by QEMU's pre-copy; the figures are QEMU's, the gap the guest's. `guests_lost` is how often a guest did not
    go on after the move."""
    rows, lost = [], 0
    while len(rows) < times:
        try:
            qemu_moves(rows, root, mib, times, cmdline)
        except GuestLost:
            lost += 1
            print(f"QEMU has lost its guest of {mib} MiB", file=sys.stderr)
            if lost > LOST_MAX:
                raise SystemExit(f"QEMU loses its guest again and again ({lost} times)")
    return {**{name: migrate.summary([row[name] for row in rows]) for name in rows[0]}, "guests_lost": lost}


def qemu_moves(rows, root, mib, times, cmdline):
    """One guest, moved until there are that many rows."""
    port = free_port()
    hosts = [Qemu(root, "q0", mib, cmdline)]
    try:
        wait_for("QEMU's guest to fill its memory", lambda: "FILLED" in hosts[0].printed())
        for turn in range(times - len(rows)):
            ballast = Ballast(mib + 256)
            ballast.release()
            target = Qemu(root, f"q{turn + 1}", mib, cmdline, "-incoming", f"tcp:127.0.0.1:{port}")
            hosts.append(target)
            source = hosts[0]
            source.do("migrate-set-parameters", **{"downtime-limit": 10, "max-bandwidth": 1 << 40})
            source.do("migrate", uri=f"tcp:127.0.0.1:{port}")

            def done():
                state = source.do("query-migrate")
                return state if state.get("status") in ("completed", "failed") else None
            state = wait_for("QEMU's migration", done)
            if state["status"] != "completed":
                raise SystemExit(f"QEMU: {state}")
            rows.append({"duration_ms": state["total-time"], "downtime_ms": state["downtime"], "guest_gap_ms": guest_gap_ms(target),
                         "pages_sent": state["ram"]["normal"] + state["ram"]["duplicate"]})
            hosts.pop(0).close()
            os.unlink(source.serial)
    finally:
        for host in hosts:
            host.close()
            if os.path.exists(host.serial):
                os.unlink(host.serial)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, default=8192)
    parser.add_argument("--times", type=int, default=10, help="migrations by FVMM")
    parser.add_argument("--qemu-times", type=int, default=2)
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    try:
        settings = argparse.Namespace(ws=0, rate=0, cpu=0, times=options.times, precopy=0, max_downtime="10ms", link=True,
                                      ballast=0)
        ours = migrate.one_size(settings, f"{options.memory_mib}M", root)
        began = time.monotonic()
        qemu = qemu_precopy(root, options.memory_mib, options.qemu_times)
        ours_ms = ours["suspend"]["duration_ms"]["median"]
        once = ours["template_create_ms"]
        print(json.dumps({
            "memory_mib": options.memory_mib, "fvmm": ours["suspend"], "fvmm_template_create_ms": once,
            "qemu_precopy": qemu, "qemu_run_s": round(time.monotonic() - began, 1),
            "duration_ratio": round(qemu["duration_ms"]["median"] / ours_ms, 1),
            "downtime_ratio": round(qemu["downtime_ms"]["median"] / ours["suspend"]["downtime_ms"]["median"], 2),
            "duration_ratio_with_template_creation": round(qemu["duration_ms"]["median"] / (ours_ms + once), 2),
        }, indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
