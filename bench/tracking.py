#!/usr/bin/env python3
"""Dirty tracking by `log` and by `scan`, side by side: what each costs the guest, and what it costs when the delta is needed.

Guest: clones of one template, of a guest that touches its memory on command. `read`: first read of each page of one half of its
memory; `write_read`: first write to those pages; `write_cold`: first write to the other half, never touched before; `rewrite` and
`reread`: the first half again, which is the same code with nothing left to fault; `rewrite_shown`: after a `vm show`, which harvests
a log, so that each page faults once more. Nanoseconds a page, by the guest's TSC.

Move: clones of a guest that rewrites a working set and verifies all of its memory, each moved once and back by `suspend` and by
`live`. duration_ms includes the scan, which is a phase of its own; what the guest saw itself stands beside the downtime.

The two take turns, and who begins changes each time. JSON on standard output, a table on standard error."""
import argparse
import json
import os
import re
import shutil
import socket
import sys
import tempfile

from migrate import summary, wait_warm
from lab import GUEST, Ballast, Daemon, guest_gap_ms, heartbeats, wait_for, wait_steps  # noqa: E402  (migrate.py has set the path)

KINDS = ("log", "scan")
TOUCH = os.path.join(os.path.dirname(GUEST), "touch.elf")
STEPS = (("read", "r", "READ"), ("write_read", "w", "WROTE"), ("write_cold", "c", "COLD"), ("rewrite", "w", "WROTE"),
         ("reread", "r", "READ"), ("rewrite_shown", "w", "WROTE"))


def make_template(host, name, kernel, cmdline, memory, ready):
    host.ctl("vm", "create", "seed", "--memory", memory, "--kernel", kernel, "--cmdline", cmdline, "--tracking", "log", "--start")
    wait_for("the guest to fill its memory", lambda: ready in host.serial("seed"))
    host.ctl("template", "create", name, "--from", "seed")
    host.ctl("vm", "stop", "seed")
    host.ctl("vm", "rm", "seed")


def clone(host, template, name, kind):
    wait_warm(host)
    vm = host.ctl("vm", "clone", name, "--template", template, "--tracking", kind, "--start")["vms"][0]
    if vm["config"]["tracking"] != kind:
        raise SystemExit(f"{name} tracks by {vm['config']['tracking']}")
    return vm


def touched(host, vm, console, key, word):
    """One command to the touching guest; nanoseconds a page. Nothing here asks for the VM, which would harvest its log."""
    pattern = re.compile(rf"^{word} pages=\d+ us=\d+ ns_page=(\d+)\s*$", re.MULTILINE)
    seen = len(pattern.findall(host.serial(vm)))
    console.sendall(key.encode())
    return int(wait_for(f"{word} of {vm}", lambda: pattern.findall(host.serial(vm))[seen:])[0])


def guest_cost(host, options):
    """ns a page of each step, for each kind, over all turns."""
    make_template(host, "touch", TOUCH, "", options.memory, "TOUCH ready")
    figures = {kind: {name: [] for name, _, _ in STEPS} for kind in KINDS}
    starts = {kind: [] for kind in KINDS}
    for turn in range(options.times):
        for kind in KINDS if turn % 2 == 0 else KINDS[::-1]:
            ballast = Ballast(options.ballast)
            vm = clone(host, "touch", "web", kind)
            starts[kind].append(vm["start_ms"])
            with socket.socket(socket.AF_UNIX) as console:
                console.connect(vm["console_path"])
                ballast.release()
                for name, key, word in STEPS:
                    if name == "rewrite_shown":
                        host.ctl("vm", "show", "web")
                    figures[kind][name].append(touched(host, "web", console, key, word))
            host.ctl("vm", "stop", "web")
            host.ctl("vm", "rm", "web")
    host.ctl("template", "rm", "touch")
    out = {kind: {name: summary(values) for name, values in of.items()} for kind, of in figures.items()}
    for kind in KINDS:
        out[kind]["start_ms"] = summary(starts[kind])
    out["log_over_scan"] = {name: round(out["log"][name]["median"] / max(out["scan"][name]["median"], 1e-9), 2) for name, _, _ in STEPS}
    return out


def move(source, target, mode, options):
    result = source.ctl("migrate", "web", "--to", target.listen, "--mode", mode, "--max-downtime", options.max_downtime)
    result["scan_ms"] = result["phases"].get("scan", 0)
    return result


def there_and_back(a, b, mode, kind, options):
    clone(a, "base", "web", kind)
    wait_steps(a, "web", options.steps)
    wait_warm(b)
    there = move(a, b, mode, options)
    wait_for("a heartbeat after the move", lambda: heartbeats(b.serial("web")))
    there["guest_gap_ms"] = guest_gap_ms(b, "web")
    wait_steps(b, "web", options.steps // 10)
    wait_warm(a)
    back = move(b, a, mode, options)
    wait_steps(a, "web", 1)
    if any(beat["errors"] for host in (a, b) for beat in heartbeats(host.serial("web"))):
        raise SystemExit("the guest found errors in its memory")
    a.ctl("vm", "stop", "web")
    for host in (a, b):
        host.ctl("vm", "rm", "web")
    return there, back


def move_cost(a, b, options):
    cmdline = f"seed=5 ws={options.ws} rate={options.rate} beat=50 cpu={options.cpu}"
    make_template(a, "base", GUEST, cmdline, options.memory, "FILLED")
    b.ctl("template", "import", f"{a.state}/templates/base", "--link")
    results = {}
    for turn in range(options.moves):
        for mode in ("suspend", "live"):
            for kind in KINDS if turn % 2 == 0 else KINDS[::-1]:
                there, back = there_and_back(a, b, mode, kind, options)
                results.setdefault((mode, kind, "there"), []).append(there)
                results.setdefault((mode, kind, "back"), []).append(back)
    out = {}
    for (mode, kind, way), moved in results.items():
        keys = ["duration_ms", "downtime_ms", "scan_ms", "pages_sent"] + (["guest_gap_ms"] if way == "there" else [])
        out.setdefault(mode, {}).setdefault(way, {})[kind] = {key: summary([one[key] for one in moved]) for key in keys}
    for ways in out.values():
        for of in ways.values():
            of["scan_over_log"] = {key: round(of["scan"][key]["median"] / max(of["log"][key]["median"], 1e-9), 2)
                                   for key in ("duration_ms", "downtime_ms", "pages_sent")}
    return out


def table(out):
    guest = out["guest"]
    lines = [f"{'ns a page':<14} {'log':>8} {'scan':>8} {'log/scan':>9}"]
    for name, _, _ in STEPS:
        lines.append(f"{name:<14} {guest['log'][name]['median']:>8.0f} {guest['scan'][name]['median']:>8.0f} {guest['log_over_scan'][name]:>9.2f}")
    lines.append(f"{'start ms':<14} {guest['log']['start_ms']['median']:>8.2f} {guest['scan']['start_ms']['median']:>8.2f}")
    lines.append(f"\n{'move':<14} {'kind':<5} {'pages':>8} {'duration ms':>12} {'scan ms':>8} {'downtime ms':>12} {'worst':>8} {'guest saw':>10}")
    for mode, ways in out["move"].items():
        for way, of in ways.items():
            for kind in KINDS:
                r = of[kind]
                saw = f"{r['guest_gap_ms']['median']:>10.2f}" if "guest_gap_ms" in r else ""
                lines.append(f"{mode + ' ' + way:<14} {kind:<5} {r['pages_sent']['median']:>8.0f} {r['duration_ms']['median']:>12.2f} "
                             f"{r['scan_ms']['median']:>8.2f} {r['downtime_ms']['median']:>12.2f} {r['downtime_ms']['max']:>8.2f} {saw}")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", default="1G")
    parser.add_argument("--times", type=int, default=7, help="turns of each kind of guest")
    parser.add_argument("--moves", type=int, default=5, help="turns of each kind of move")
    parser.add_argument("--ws", type=int, default=16, help="working set in MiB")
    parser.add_argument("--rate", type=int, default=2000, help="pages rewritten a second")
    parser.add_argument("--steps", type=int, default=4000, help="pages that a clone rewrites before it is moved")
    parser.add_argument("--cpu", type=int, default=50, help="percent of the time for verification sweeps")
    parser.add_argument("--max-downtime", default="20ms")
    parser.add_argument("--ballast", type=int, default=1100, metavar="MIB", help="as in bench/migrate.py: what a clone's writes will need")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    daemons = []
    try:
        try:
            daemons.append(Daemon("A", root, [options.memory]))
            daemons.append(Daemon("B", root, [options.memory]))
            out = {"memory": options.memory, "times": options.times, "moves": options.moves, "guest": guest_cost(daemons[0], options),
                   "move": move_cost(*daemons, options)}
        finally:
            for daemon in daemons:
                daemon.stop()
        print(json.dumps(out, indent=1))
        print(table(out), file=sys.stderr)
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
