#!/usr/bin/env python3
"""The main job of FVMM, shown and checked: two daemons, one guest of gigabytes, moved by its delta.

Exits with 0 only if every guest verified all of its memory with zero errors where it must, and named exactly the three
pages that were spoiled on purpose."""
import argparse
import json
import re
import shutil
import sys
import tempfile
import time

from lab import GUEST, Ballast, Daemon, guest_gap_ms, heartbeats, verified_after, wait_for, wait_steps


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


def story(options, a, b):
    rows = []
    began = time.monotonic()
    cmdline = f"seed=42 ws={options.ws} rate={options.rate} beat=100"
    a.ctl("vm", "create", "web", "--memory", options.memory, "--kernel", GUEST, "--cmdline", cmdline, "--start")
    wait_for("the guest to fill its memory", lambda: "FILLED" in a.serial("web"))
    ALL_BOOT["web"] = ALL_BOOT["web2"] = a.serial("web")
    print(f"  A: booted and filled        {time.monotonic() - began:8.2f} s", flush=True)
    template = a.ctl("template", "create", "base", "--from", "web")
    print(f"  A: template sealed          {template['duration_ms'] / 1000:8.2f} s  (guest paused {template['pause_ms'] / 1000:.2f} s, "
          f"{template['pages']} pages)", flush=True)
    push = a.ctl("template", "push", "base", "--to", b.listen)
    print(f"  A: template pushed to B     {push['duration_ms'] / 1000:8.2f} s", flush=True)
    wait_steps(a, "web", options.ws * 256)  # every page of the working set differs from the template now
    suspend = a.ctl("migrate", "web", "--to", b.listen, "--mode", "suspend")
    beat = verified_after(b, "web")
    rows.append(("suspend (delta)", suspend, beat, guest_gap_ms(b, "web")))
    print("  B: web verified all its memory after the move", flush=True)

    a.ctl("vm", "clone", "web2", "--template", "base", "--start")
    wait_steps(a, "web2", options.ws * 64)
    Ballast(mib(options.memory) + 64).release()  # a full copy fills fresh memory: not the host's price for it is shown
    precopy = a.ctl("migrate", "web2", "--to", b.listen, "--mode", "precopy", "--max-downtime", "20ms")
    beat2 = verified_after(b, "web2")
    rows.append(("precopy (everything)", precopy, beat2, guest_gap_ms(b, "web2")))
    print("  B: web2 verified all its memory after the move", flush=True)
    errors = beat["errors"] + beat2["errors"]
    b.ctl("vm", "stop", "web2")

    spoiled, named = spoil_three_pages(b, "web")
    print_table(rows, template, push)
    print("\nthe verifier sees:")
    for page, what in spoiled.items():
        print(f"  page {page:>8}: {what:<22} guest named it: {', '.join(sorted(named.get(page, {'NOT NAMED'})))}")
    good = errors == 0 and set(named) == set(spoiled)
    if set(named) != set(spoiled):
        print(f"  the guest named {sorted(named)}, spoiled were {sorted(spoiled)}")
    print(f"errors found by guests after migration: {errors}")
    if options.json:
        with open(options.json, "w") as out:
            json.dump({"suspend": suspend, "precopy": precopy, "template": template, "push": push}, out, indent=1)
    return 0 if good else 1


def print_table(rows, template, push):
    print(f"\n{'mode':<22}{'duration':>12}{'downtime':>12}{'guest saw':>12}{'pages':>10}{'bytes':>12}{'errors':>8}")
    for name, result, beat, gap in rows:
        print(f"{name:<22}{result['duration_ms']:>9.2f} ms{result['downtime_ms']:>9.2f} ms{gap:>9.2f} ms"
              f"{result['pages_sent']:>10}{result['bytes_sent'] / 1e6:>9.1f} MB{beat['errors']:>8}")
    delta, full = rows[0][1], rows[1][1]
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
