#!/usr/bin/env python3
"""Clones of a sealed template: time to the first instruction (warm and cold worker), 100 at once, and private memory.

Prints one JSON object. start_ms: the worker has its command until the vCPU thread enters KVM_RUN; command_ms: the whole
fvmmctl process, which includes finding or starting the worker."""
import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "tools"))
from lab import GUEST, Daemon, heartbeats, wait_for  # noqa: E402


def private_kib(pid):
    """Memory that this process alone holds: what one more clone costs the host, without KVM's own."""
    fields = {}
    with open(f"/proc/{pid}/smaps_rollup") as rollup:
        for line in rollup.readlines()[1:]:
            name, value = line.split(":")
            fields[name] = int(value.split()[0])
    return fields["Private_Dirty"] + fields["Private_Clean"]


def make_template(host, memory, name, cmdline):
    host.ctl("vm", "create", "seed-" + name, "--memory", memory, "--kernel", GUEST, "--cmdline", cmdline, "--start")
    wait_for("the guest to fill its memory", lambda: "FILLED" in host.serial("seed-" + name))
    host.ctl("template", "create", name, "--from", "seed-" + name)
    host.ctl("vm", "stop", "seed-" + name)
    host.ctl("vm", "rm", "seed-" + name)


def timed_clone(host, template, name):
    began = time.monotonic()
    answer = host.ctl("vm", "clone", name, "--template", template, "--start")
    took = (time.monotonic() - began) * 1000
    vm = answer["vms"][0] if "vms" in answer else answer
    return vm["start_ms"], took, vm["worker_pid"]


def drop(host, name):
    host.ctl("vm", "stop", name)
    host.ctl("vm", "rm", name)


def one_size(host, memory, times):
    # A clone that sleeps and neither verifies nor writes shows what a clone itself costs.
    make_template(host, memory, "t" + memory, "seed=3 ws=0 rate=0 cpu=0 beat=1000")
    warm, cold, private = [], [], []
    for turn in range(times):
        if turn > 0:
            wait_for("a warm worker", lambda: host.ctl("host", "show")["warm_workers"] >= 1)
        start, took, pid = timed_clone(host, "t" + memory, "one")
        second, second_took, _ = timed_clone(host, "t" + memory, "two")  # the pool is empty now
        warm.append((start, took))
        cold.append((second, second_took))
        private.append(private_kib(pid))
        drop(host, "one")
        drop(host, "two")
    def column(rows, index):
        return round(statistics.median(row[index] for row in rows), 2)
    return {"memory": memory, "warm_start_ms": column(warm, 0), "warm_command_ms": column(warm, 1),
            "cold_start_ms": column(cold, 0), "cold_command_ms": column(cold, 1),
            "private_kib": statistics.median(private)}


def many(host, memory, count):
    make_template(host, memory, "many", "seed=4 ws=0 rate=0 cpu=0 beat=1000")
    began = time.monotonic()
    answer = host.ctl("vm", "clone", "c", "--template", "many", "--start", "--count", str(count))
    commanded = time.monotonic() - began
    # A clone's own first heartbeat proves that it runs.
    names = [vm["config"]["name"] for vm in answer["vms"]]
    for name in names:
        wait_for(f"{name} to run", lambda name=name: heartbeats(host.serial(name)))
    for name in names:
        drop(host, name)
    return {"clones": count, "memory": memory, "all_started_s": round(commanded, 2)}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs="+", default=["128M", "8G"])
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--count-memory", default="512M")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    out = {}
    try:
        host = Daemon("A", root, [])
        try:
            out["sizes"] = [one_size(host, memory, options.times) for memory in options.memory]
            out["many"] = many(host, options.count_memory, options.count)
        finally:
            host.stop()
        print(json.dumps(out, indent=1))
    finally:
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    main()
