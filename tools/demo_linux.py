#!/usr/bin/env python3
"""Linux guests shown and checked: booted, made a template, cloned, migrated while they compute; then one with a disk and a
network, migrated there and back while it writes and a TCP connection is open.

Exits with 0 only if every mark that any of the guests wrote, on either host, is what its computation must give, and every
byte came back over the connection. The network is one of its own (unshare -n) and needs root; without, that part is left
out, and it says so."""
import argparse
import concurrent.futures
import os
import random
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time

from lab import ROOT, Daemon, wait_for

GUESTS = os.path.join(ROOT, "build", "release", "guests")
PAGES = 256  # of memory that each of init's threads works on
# docs/linux.md: what a KVM-PVM host needs, and harms nowhere.
CMDLINE = ("console=ttyS0 noxsave clearcpuid=151,59,295,308,298,311,312,150,129,131,297,580,514 nokaslr mitigations=off nosmap nosmep "
           "tsc=reliable no_timer_check random.trust_cpu=on panic=-1 reboot=k rodata=off lpj=25961480 quiet "
           "-- ws={pages} cpus={cpus}")


def say(text):
    print(f"  {text}", flush=True)


def kernel(name):
    found = subprocess.run([os.path.join(ROOT, "tools", "build-linux"), name], stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        raise SystemExit(f"no kernel \"{name}\": see above")
    return found.stdout.strip()


def marks(log):
    return len(re.findall(r"^BEAT cpu=\d+ step=\d+ sum=[0-9a-f]+\s*$", log, re.M))


class Tux:
    """A Linux VM and the hosts that its log is on."""

    def __init__(self, name, cpus):
        self.name = name
        self.cpus = cpus
        self.logs = []

    def log(self, daemon):
        text = daemon.serial(self.name)
        if "Kernel panic" in text:
            raise SystemExit(f"{self.name} on {daemon.name} has panicked:\n{text}")
        return text

    def goes_on(self, daemon):
        """Waits for new marks there, then computes everything anew that the guest says it has computed."""
        before = marks(self.log(daemon))
        wait_for(f"{self.name} to go on at {daemon.name}", lambda: marks(self.log(daemon)) >= before + 2 * self.cpus)
        checked = subprocess.run([os.path.join(GUESTS, "linux-verify"), str(PAGES), str(self.cpus)],
                                 input=self.log(daemon), stdout=subprocess.PIPE, text=True)
        if checked.returncode != 0:
            raise SystemExit(f"{self.name} at {daemon.name} computes wrongly: {checked.stdout}")
        return checked.stdout.strip().replace("\n", "; ")


def move(source, target, tux, mode):
    result = source.ctl("migrate", tux.name, "--to", target.listen, "--mode", mode, "--max-downtime", "100ms")
    say(f"{source.name} to {target.name} by {mode:<8}: {result['duration_ms']:8.2f} ms, downtime {result['downtime_ms']:6.2f} ms, "
        f"{result['pages_sent']} pages; right so far: {tux.goes_on(target)}")


def story(options, a, b):
    tux = Tux("tux", options.cpus)
    began = time.monotonic()
    a.ctl("vm", "create", "tux", "--memory", options.memory, "--vcpus", str(options.cpus), "--rng",
          "--kernel", kernel("up" if options.cpus == 1 else "smp"), "--initrd", os.path.join(GUESTS, "linux-init.cpio"),
          "--cmdline", CMDLINE.format(pages=PAGES, cpus=options.cpus), "--start")
    wait_for("Linux to start init", lambda: "INIT START" in tux.log(a))
    say(f"A: Linux reached user space in {time.monotonic() - began:.2f} s; right so far: {tux.goes_on(a)}")

    template = a.ctl("template", "create", "gold", "--from", "tux")
    say(f"A: template of the running guest: {template['duration_ms']:.1f} ms, paused {template['pause_ms']:.2f} ms, {template['pages']} pages")
    began = time.monotonic()
    a.ctl("vm", "clone", "twin", "--template", "gold", "--count", "2", "--start")
    say(f"A: two clones run after {(time.monotonic() - began) * 1000:.1f} ms")
    ids = {a.ctl("vm", "show", name)["config"]["id"] for name in ("tux", "twin-1", "twin-2")}
    if len(ids) != 3:
        raise SystemExit(f"clones share an id: {ids}")
    for name in ("tux", "twin-1", "twin-2"):
        say(f"A: {name:<7} goes on; right so far: {Tux(name, options.cpus).goes_on(a)}")
    move(a, b, tux, "suspend")
    move(b, a, tux, "live")
    move(a, b, Tux("twin-1", options.cpus), "live")
    b.type("twin-1", "hello\n")
    wait_for("the clone to answer on its console", lambda: "ECHO hello" in b.serial("twin-1"))
    say("B: twin-1 answers on its console")


class Echo:
    """A TCP connection to the guest's echo server that stays open: each call sends, and checks what comes back."""

    def __init__(self, address):
        self.stream = socket.create_connection((address, 7), timeout=60)
        self.random = random.Random(7)
        self.bytes = 0

    def talk(self, kib):
        data = self.random.randbytes(kib << 10)
        sender = threading.Thread(target=self.stream.sendall, args=(data,))
        sender.start()
        got = bytearray()
        while len(got) < len(data):
            part = self.stream.recv(65536)
            if not part:
                raise SystemExit("the guest has closed the connection")
            got += part
        sender.join()
        if got != data:
            raise SystemExit("what came back over the connection is not what was sent")
        self.bytes += len(data)


def own_network():
    """This process again, in a network of its own; False when that is not allowed."""
    if os.environ.get("FVMM_DEMO_NETWORK"):
        return True
    if os.geteuid() != 0 or subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
        return False
    os.environ["FVMM_DEMO_NETWORK"] = "1"
    os.execvp("unshare", ["unshare", "-n", sys.executable, *sys.argv])


def make_network():
    for words in ("link set lo up", "link add fvmmbr type bridge", "link set fvmmbr up", "addr add 10.77.0.1/24 dev fvmmbr",
                  "tuntap add dev sea-a mode tap", "tuntap add dev sea-b mode tap", "link set sea-a master fvmmbr up",
                  "link set sea-b master fvmmbr up"):
        subprocess.run(["ip", *words.split()], check=True)


def disk_steps(log):
    return max((int(step) for step in re.findall(r"^DISK step=(\d+)\s*$", log, re.M)), default=-1)


def disk_goes_on(tux, daemon):
    """Each good step wrote a block, read it back and compared it; a bad one is an ERROR."""
    before = disk_steps(tux.log(daemon))
    wait_for(f"the disk of {tux.name} at {daemon.name}", lambda: disk_steps(tux.log(daemon)) > before or "ERROR" in tux.log(daemon))
    if "ERROR" in tux.log(daemon):
        raise SystemExit(f"{tux.name} at {daemon.name}:\n{tux.log(daemon)}")
    return disk_steps(tux.log(daemon))


def disk_and_network(root, a, b):
    """One VM with a layer over a base image, which both hosts see, and a TAP device on each host."""
    base, layer = os.path.join(root, "base.ext2"), os.path.join(root, "sea.layer")
    with open(base, "wb") as image:
        image.truncate(8 << 20)
    subprocess.run(["/sbin/mkfs.ext2", "-q", "-F", base], check=True)
    sea = Tux("sea", 1)
    a.ctl("vm", "create", "sea", "--memory", "64M", "--kernel", kernel("up"), "--initrd", os.path.join(GUESTS, "linux-init.cpio"),
          "--cmdline", CMDLINE.format(pages=PAGES, cpus=1) + " net=2 disk=64", "--net", "tap=sea-a",
          "--disk", f"path={layer},base={base},shared", "--start")
    wait_for("the network of sea", lambda: "NET up" in sea.log(a))
    say(f"A: sea has a disk and a network; {disk_goes_on(sea, a)} good steps on the disk")
    echo = Echo("10.77.0.2")
    echo.talk(256)
    pool = concurrent.futures.ThreadPoolExecutor(1)
    for source, target, tap, mode in ((a, b, "sea-b", "live"), (b, a, "sea-a", "suspend")):
        talking = pool.submit(echo.talk, 1024)  # bytes are under way while it moves
        result = source.ctl("migrate", "sea", "--to", target.listen, "--mode", mode, "--max-downtime", "100ms", "--net", f"net0:tap={tap}")
        talking.result()
        echo.talk(64)
        say(f"{source.name} to {target.name} by {mode:<8}: {result['duration_ms']:8.2f} ms, downtime {result['downtime_ms']:6.2f} ms; "
            f"connection open, {echo.bytes >> 10} KiB echoed; disk: {disk_goes_on(sea, target)} good steps; {sea.goes_on(target)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", default="64M")
    parser.add_argument("--cpus", type=int, default=1, choices=range(1, 17), metavar="1..16")
    parser.add_argument("--keep", action="store_true", help="keep logs and state")
    options = parser.parse_args()
    network = own_network()
    root = tempfile.mkdtemp(prefix="fvmm-demo-")
    print(f"two fvmmds in {root}; a Linux guest of {options.memory} with {options.cpus} vCPU(s)", flush=True)
    daemons = []
    good = False
    try:
        if network:
            make_network()
        daemons = [Daemon(name, root, [f"{options.memory}"]) for name in ("A", "B")]
        story(options, *daemons)
        if network:
            disk_and_network(root, *daemons)
        else:
            say("no network and disk shown: that needs root and unshare -n")
        good = True
    finally:
        for daemon in daemons:
            daemon.stop()
        if options.keep or not good:
            print(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
        print("demo: good" if good else "demo: FAILED")
    return 0


if __name__ == "__main__":
    sys.exit(main())
