#!/usr/bin/env python3
"""Downtime, duration and bytes of migrations between two fvmmds on this machine, as one JSON object with ratios.

Each size: one guest filled with incompressible data on a template that both hosts hold, moved back and forth --times times
by `suspend`, then by `precopy`, in the same run. What the guest itself saw (largest gap in a spin on its TSC) stands beside."""
import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools"))
from lab import GUEST, Ballast, Daemon, heartbeats, wait_for, wait_steps  # noqa: E402


def summary(values):
    values = sorted(values)
    return {"median": round(statistics.median(values), 3), "min": round(values[0], 3), "max": round(values[-1], 3)}


def gap_ms(daemon, offset):
    beats = wait_for("a heartbeat after the move", lambda: heartbeats(daemon.serial("web")[offset:]))
    return max(beats[0]["gap_us"], beats[0]["io_us"]) / 1000


def wait_warm(host):
    """A warm worker is what the budget is about; a pool miss is a figure of its own."""
    wait_for("a warm worker", lambda: host.ctl("host", "show")["warm_workers"] >= 1)


def move(source, target, mode, options):
    ballast = Ballast(options.ballast if mode == "precopy" else min(options.ballast, 64))
    offset = len(target.serial("web")) if any(
        vm["config"]["name"] == "web" for vm in target.ctl("vm", "list").get("vms", [])) else 0
    ballast.release()
    result = source.ctl("migrate", "web", "--to", target.listen, "--mode", mode, "--max-downtime", options.max_downtime)
    result["guest_gap_ms"] = gap_ms(target, offset)
    beats = heartbeats(target.serial("web")[offset:])
    if any(beat["errors"] for beat in beats):
        raise SystemExit("the guest found errors in its memory")
    return result


def figures(results):
    phases = {}
    for result in results:
        for name, ms in result["phases"].items():
            phases.setdefault(name, []).append(ms)
    return {
        "downtime_ms": summary([r["downtime_ms"] for r in results]),
        "duration_ms": summary([r["duration_ms"] for r in results]),
        "guest_gap_ms": summary([r["guest_gap_ms"] for r in results]),
        "setup_ms": summary([r["setup_ms"] for r in results]),
        "pages_sent": summary([r["pages_sent"] for r in results]),
        "bytes_sent": summary([r["bytes_sent"] for r in results]),
        "phases_ms": {name: round(statistics.median(values), 3) for name, values in phases.items()},
    }


def one_size(options, memory, root):
    a = Daemon("A-" + memory, root, [memory])
    b = Daemon("B-" + memory, root, [memory])
    try:
        cmdline = f"seed=5 ws={options.ws} rate={options.rate} beat=50 cpu={options.cpu}"
        a.ctl("vm", "create", "web", "--memory", memory, "--kernel", GUEST, "--cmdline", cmdline, "--start")
        wait_for("the guest to fill its memory", lambda: "FILLED" in a.serial("web"))
        template = a.ctl("template", "create", "base", "--from", "web")
        push = (b.ctl("template", "import", f"{a.state}/templates/base", "--link") if options.link
                else a.ctl("template", "push", "base", "--to", b.listen))
        hosts = [a, b]
        suspend = []
        for _ in range(options.times):
            wait_warm(hosts[1])
            suspend.append(move(hosts[0], hosts[1], "suspend", options))
            hosts.reverse()
        out = {"memory": memory, "rate": options.rate, "ws_mib": options.ws, "suspend": figures(suspend),
               "template_create_ms": template["duration_ms"], "template_pause_ms": template["pause_ms"],
               "template_push_ms": push.get("duration_ms")}
        if options.precopy:
            precopy = []
            for _ in range(options.precopy):
                wait_warm(hosts[1])
                precopy.append(move(hosts[0], hosts[1], "precopy", options))
                hosts.reverse()
            out["precopy"] = figures(precopy)
            out["precopy_over_suspend_duration"] = round(
                out["precopy"]["duration_ms"]["median"] / out["suspend"]["duration_ms"]["median"], 1)
        return out
    finally:
        for daemon in (a, b):
            daemon.stop()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs="+", default=["1G", "8G"])
    parser.add_argument("--ws", type=int, default=4, help="working set in MiB")
    parser.add_argument("--rate", type=int, default=1000, help="pages rewritten a second")
    parser.add_argument("--cpu", type=int, default=50, help="percent of the time for verification sweeps")
    parser.add_argument("--times", type=int, default=20, help="suspend migrations of each size")
    parser.add_argument("--precopy", type=int, default=2, help="precopy migrations of each size")
    parser.add_argument("--max-downtime", default="5ms")
    parser.add_argument("--ballast", type=int, default=0, metavar="MIB", help="warm memory given back just before each "
                        "move: hosts that take freed memory away at once would else be what is measured")
    parser.add_argument("--link", action="store_true", help="share the template's page cache (import --link)")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    try:
        print(json.dumps([one_size(options, memory, root) for memory in options.memory], indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
