#!/usr/bin/env python3
"""FVMM shown and checked: two daemons, one guest of gigabytes, and the six techniques.

Exits with 0 only if every guest verified all of its memory with zero errors where it must, and named exactly the three
pages that were spoiled on purpose."""
import argparse
import json
import re
import shutil
import sys
import tempfile
import time

from lab import GUEST, Ballast, Daemon, heartbeats, verified_after, wait_for, wait_steps


def mib(size):
    """"4G" or "512M" in MiB."""
    return int(size[:-1]) * {"M": 1, "G": 1024}[size[-1].upper()]


def bad_pages(text):
    return [(int(m[1]), m[2]) for m in re.finditer(r"^ERR page=(\d+) kind=(\w+)", text, re.M)]


def spoil_three_pages(daemon, vm):
    """Flip, replay and drop one page each; returns ({page: what}, {page: kinds the guest named})."""
    boot = re.search(r"ws_pages=(\d+)", ALL_BOOT[vm])
    ws_pages = int(boot[1])
    # The working set is one run of pages behind the image: heartbeats do not say where, the reserved ranges do.
    reserved_end = max(int(end) for end in re.findall(r"-(\d+)", re.search(r"reserved=(\S+)", ALL_BOOT[vm])[1])
                       if int(end) < 4096)
    first_ws = reserved_end + 1
    replay, drop = first_ws + 3, first_ws + ws_pages // 2
    flip = first_ws + ws_pages + 1000  # outside the working set
    daemon.ctl("debug", "poke", vm, "--capture", str(replay))
    wait_steps(daemon, vm, 2 * ws_pages)  # every page of the working set is written again, twice
    daemon.type(vm, "p")
    wait_for(f"{vm} to stop writing", lambda: "PAUSED" in daemon.serial(vm))
    before = len(bad_pages(daemon.serial(vm)))
    for verb, page in (("--flip", flip), ("--replay", replay), ("--drop", drop)):
        daemon.ctl("debug", "poke", vm, verb, str(page))
    verified_after(daemon, vm)
    named = {}
    for page, kind in bad_pages(daemon.serial(vm))[before:]:
        named.setdefault(page, set()).add(kind)
    return {flip: "flipped a byte", replay: "replayed an old page", drop: "dropped the page"}, named


ALL_BOOT = {}


def run(options, root):
    print(f"two fvmmds in {root}; a guest of {options.memory} with a working set of {options.ws} MiB, "
          f"{options.rate} pages rewritten a second", flush=True)
    a = Daemon("A", root, [options.memory], test_hooks=True)
    b = Daemon("B", root, [options.memory], test_hooks=True)
    try:
        return story(options, a, b)
    finally:
        a.stop()
        b.stop()


def say(text):
    print(f"  {text}", flush=True)


def story(options, a, b):
    began = time.monotonic()
    cmdline = f"seed=42 ws={options.ws} rate={options.rate} beat=100"
    a.ctl("vm", "create", "web", "--memory", options.memory, "--kernel", GUEST, "--cmdline", cmdline, "--start")
    wait_for("the guest to fill its memory", lambda: "FILLED" in a.serial("web"))
    ALL_BOOT["web"] = ALL_BOOT["web2"] = a.serial("web")
    say(f"A: booted and filled        {time.monotonic() - began:8.2f} s")
    template = a.ctl("template", "create", "base", "--from", "web")
    say(f"A: template of the running guest sealed {template['duration_ms'] / 1000:8.2f} s  (paused {template['pause_ms']:.2f} ms, "
        f"{template['pages']} pages)")
    push = a.ctl("template", "push", "base", "--to", b.listen)
    say(f"A: template pushed to B     {push['duration_ms'] / 1000:8.2f} s")
    wait_steps(a, "web", options.ws * 256)  # every page of the working set differs from the template now
    rows = [move(a, b, "suspend (SFVMM)", "web", "--mode", "suspend")]
    wait_for("A to keep the way back", lambda: any(".back@" in t["ref"]["name"] for t in a.ctl("template", "list")["templates"]))
    rows.append(move(b, a, "live, the way back (LFVMM)", "web", "--mode", "live"))

    a.ctl("vm", "clone", "web2", "--template", "base", "--start")
    wait_steps(a, "web2", options.ws * 64)
    Ballast(mib(options.memory) + 64).release()  # a full copy fills fresh memory: not the host's price for it is shown
    rows.append(move(a, b, "precopy (everything)", "web2", "--mode", "precopy", "--max-downtime", "20ms"))
    b.ctl("vm", "stop", "web2")

    status, recovered, beat = replicate_and_recover(options, a, b)
    spoiled, named = spoil_three_pages(b, "web")
    print_table(rows, template, push)
    print_replication(status, recovered)
    print("\nthe verifier sees:")
    for page, what in spoiled.items():
        print(f"  page {page:>8}: {what:<22} guest named it: {', '.join(sorted(named.get(page, {'NOT NAMED'})))}")
    errors = beat["errors"] + sum(row[2]["errors"] for row in rows)
    if set(named) != set(spoiled):
        print(f"  the guest named {sorted(named)}, spoiled were {sorted(spoiled)}")
    print(f"errors found by guests after migration and recovery: {errors}")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"template": template, "push": push, "moves": {name: result for name, result, _, _ in rows},
                       "replication": status, "recovery": recovered}, out, indent=1)
    return 0 if errors == 0 and set(named) == set(spoiled) else 1


def move(source, target, name, vm, *how):
    """One migration: (name, result, a heartbeat after a whole sweep there, the gap that the guest saw)."""
    seen = len(heartbeats(target.serial(vm))) if any(v["config"]["name"] == vm for v in target.ctl("vm", "list")["vms"]) else 0
    result = source.ctl("migrate", vm, "--to", target.listen, *how)
    gap = wait_for(f"{vm} on {target.name}", lambda: heartbeats(target.serial(vm))[seen:])[0]
    beat = verified_after(target, vm)
    say(f"{target.name}: {vm} verified all its memory after the move by {result['mode']}")
    return name, result, beat, max(gap["gap_us"], gap["io_us"]) / 1000


def replicate_and_recover(options, a, b):
    """Continuous templating of web from A to B, then A is gone and B goes on."""
    a.ctl("replicate", "start", "web", "--to", b.listen, "--interval", "200ms")
    wait_for("ten sealed generations", lambda: a.ctl("replicate", "status", "web")["generation_sealed"] >= 10)
    status = a.ctl("replicate", "status", "web")
    a.kill()
    say(f"A: {status['generation_sealed']} generations sealed at B; then fvmmd and the VM's worker on A were killed")
    recovered = b.ctl("replicate", "recover", "web", "--source-is-dead")
    beat = verified_after(b, "web")
    say("B: web verified all its memory after the recovery")
    return status, recovered, beat


def print_replication(status, recovered):
    print(f"\ncontinuous templating: {status['generation_sealed']} generations sealed of {status['generation_captured']} captured, "
          f"{status['pages_acknowledged']} pages, pause {status['pause_ms']:.2f} ms (worst {status['pause_ms_max']:.2f}), "
          f"lag {status['lag_ms']:.0f} ms, interval in force {status['interval_ms']} ms")
    print(f"buffer: {status['buffer_bytes_max'] >> 20} MiB, full {status['buffer_waits']} times")
    print(f"recovery: generation {recovered['generation']}, running after {recovered['duration_ms']:.1f} ms, "
          f"{recovered['lost_ms']:.0f} ms of the guest's time lost")


def print_table(rows, template, push):
    print(f"\n{'mode':<28}{'duration':>12}{'downtime':>12}{'guest saw':>12}{'pages':>10}{'bytes':>12}{'errors':>8}")
    for name, result, beat, gap in rows:
        print(f"{name:<28}{result['duration_ms']:>9.2f} ms{result['downtime_ms']:>9.2f} ms{gap:>9.2f} ms"
              f"{result['pages_sent']:>10}{result['bytes_sent'] / 1e6:>9.1f} MB{beat['errors']:>8}")
    delta, full = rows[0][1], rows[-1][1]
    once = template["duration_ms"] + push["duration_ms"]
    print(f"\nratio of durations: {full['duration_ms'] / delta['duration_ms']:.1f} x   "
          f"ratio of bytes: {full['bytes_sent'] / max(1, delta['bytes_sent']):.1f} x")
    saved = full["duration_ms"] - delta["duration_ms"]
    if saved > 0:
        print(f"template creation and push took {once / 1000:.2f} s once: paid back after {max(1, -(-once // saved)):.0f} migration(s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="4G")
    parser.add_argument("--ws", type=int, default=64, help="working set in MiB")
    parser.add_argument("--rate", type=int, default=20000, help="pages rewritten a second")
    parser.add_argument("--keep", action="store_true", help="keep logs and state")
    parser.add_argument("--json", help="write the results there")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-demo-")
    code = 1
    try:
        code = run(options, root)
    finally:
        if options.keep or code != 0:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    print("demo: good" if code == 0 else "demo: FAILED")
    return code


if __name__ == "__main__":
    sys.exit(main())
