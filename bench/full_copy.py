#!/usr/bin/env python3
"""A full copy beside the plainest C sender and receiver: `precopy` and `template push` as shares of the plain rate.

In each turn, alternating in one run: plain C over loopback TCP into fresh memory (bin/net_channel), a precopy of a filled guest,
and a push of its template into an empty store. Prints one JSON object with medians and ratios."""
import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools"))
from lab import BIN, GUEST, Ballast, Daemon, wait_for  # noqa: E402


def plain_mb_s(mib):
    done = subprocess.run([f"{BIN}/net_channel", str(mib), "1"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory-mib", type=int, default=1024)
    parser.add_argument("--times", type=int, default=5)
    options = parser.parse_args()
    memory = f"{options.memory_mib}M"
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    hosts = [Daemon("A", root, [memory]), Daemon("B", root, [memory])]
    rows = []
    try:
        a, b = hosts
        a.ctl("vm", "create", "web", "--memory", memory, "--kernel", GUEST, "--cmdline", "seed=5 ws=0 rate=0 cpu=0 beat=500",
              "--start")
        wait_for("the guest to fill its memory", lambda: "FILLED" in a.serial("web"))
        a.ctl("template", "create", "base", "--from", "web")
        for _ in range(options.times):
            ballast = Ballast(options.memory_mib + 256)
            ballast.release()
            plain = plain_mb_s(options.memory_mib)
            wait_for("a warm worker", lambda: hosts[1].ctl("host", "show")["warm_workers"] >= 1)
            ballast = Ballast(options.memory_mib + 256)
            ballast.release()
            moved = hosts[0].ctl("migrate", "web", "--to", hosts[1].listen, "--mode", "precopy")
            hosts.reverse()
            ballast = Ballast(options.memory_mib + 256)
            ballast.release()
            push = a.ctl("template", "push", "base", "--to", b.listen)
            b.ctl("template", "rm", "base")
            rows.append({"plain": plain, "precopy_mb_s": moved["bytes_sent"] / 1e3 / moved["phases"]["copy"],
                         "push_mb_s": push["bytes_sent"] / 1e3 / push["duration_ms"]})
    finally:
        for host in (a, b):
            host.stop()
        shutil.rmtree(root, ignore_errors=True)
    plain = statistics.median(row["plain"]["plain_mb_s_median"] for row in rows)
    out = {"memory_mib": options.memory_mib, "plain_mb_s": plain}
    for name in ("precopy", "push"):
        rate = statistics.median(row[name + "_mb_s"] for row in rows)
        out[name + "_mb_s"] = round(rate, 1)
        out[name + "_over_plain"] = round(rate / plain, 2)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
