"""Two hosts on one machine: fvmmds with their own directories, and what our guests print. For tools/demo.py and bench/."""
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
BIN = os.path.join(ROOT, "build", "release", "bin")
GUEST = os.path.join(ROOT, "build", "release", "guests", "workload.elf")
WAIT_S = 180  # for any one thing a guest is waited for


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Daemon:
    """One fvmmd with its own runtime and state directories, as a host would have."""

    def __init__(self, name, root, warm, test_hooks=False):
        self.name = name
        self.dead = False
        self.runtime = os.path.join(root, name, "run")
        self.state = os.path.join(root, name, "state")
        os.makedirs(self.runtime)
        os.makedirs(self.state)
        self.listen = f"127.0.0.1:{free_port()}"
        self.log = open(os.path.join(root, name, "fvmmd.log"), "w")
        command = [f"{BIN}/fvmmd", "--runtime-dir", self.runtime, "--state-dir", self.state, "--listen", self.listen]
        for shape in warm:
            command += ["--warm", shape]
        if test_hooks:
            command.append("--test-hooks")
        self.process = subprocess.Popen(command, stderr=self.log, stdout=self.log)
        deadline = time.monotonic() + 20
        while subprocess.run(self.command("host", "show"), capture_output=True).returncode != 0:
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"fvmmd {name} did not start; see {self.log.name}")
            time.sleep(0.05)

    def command(self, *words):
        return [f"{BIN}/fvmmctl", "--socket", f"{self.runtime}/fvmmd.sock", "--output", "json", *words]

    def ctl(self, *words):
        done = subprocess.run(self.command(*words), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"fvmmctl {' '.join(words)} on {self.name}: exit {done.returncode}: {done.stderr.strip()}\n{done.stdout}")
        return json.loads(done.stdout) if done.stdout.strip() else {}

    def serial(self, vm):
        done = subprocess.run([f"{BIN}/fvmmctl", "--socket", f"{self.runtime}/fvmmd.sock", "vm", "logs", vm],
                              capture_output=True, text=True, errors="replace")
        return done.stdout

    def type(self, vm, text):
        path = self.ctl("vm", "show", vm)["console_path"]
        with socket.socket(socket.AF_UNIX) as console:
            console.connect(path)
            console.sendall(text.encode())
            time.sleep(0.3)  # the server reads before we hang up

    def kill(self):
        """The host is gone: SIGKILL to fvmmd and to every worker that carries a VM."""
        workers = [vm["worker_pid"] for vm in self.ctl("vm", "list").get("vms", []) if vm["worker_pid"]]
        for pid in [self.process.pid, *workers]:
            os.kill(pid, signal.SIGKILL)
        self.process.wait(timeout=20)
        self.dead = True

    def stop(self):
        if self.dead:
            return end_workers(self.runtime)
        listing = self.ctl("vm", "list")
        for vm in listing.get("vms", []):
            if vm["state"] in ("running", "paused"):
                self.ctl("vm", "stop", vm["config"]["name"])
        self.process.terminate()
        self.process.wait(timeout=20)


def end_workers(runtime):
    """Workers whose fvmmd is gone, warm ones included."""
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                if (runtime + "/workers").encode() in file.read():
                    os.kill(int(entry), signal.SIGKILL)
        except OSError:
            pass  # it has ended meanwhile


# A whole line and nothing else: a move cuts a line between two hosts, and the next one joins a half with what was printed elsewhere.
HEARTBEAT = re.compile(r"HB n=(?P<n>\d+) step=(?P<step>\d+) sweeps=(?P<sweeps>\d+) sweep_step=(?P<sweep_step>\d+) pages=(?P<pages>\d+) "
                       r"errors=(?P<errors>\d+) gap_us=(?P<gap_us>\d+) maxgap_us=(?P<maxgap_us>\d+) io_us=(?P<io_us>\d+) ms=(?P<ms>\d+)\s*$")


def heartbeats(text):
    found = (HEARTBEAT.match(line) for line in text.splitlines())
    return [{key: int(value) for key, value in beat.groupdict().items()} for beat in found if beat]


def wait_for(what, look):
    deadline = time.monotonic() + WAIT_S
    while time.monotonic() < deadline:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise SystemExit(f"waited {WAIT_S} s for {what}")


def wait_steps(daemon, vm, steps):
    """Until the guest has rewritten that many more pages; its last heartbeat."""
    first = wait_for(f"a heartbeat of {vm}", lambda: heartbeats(daemon.serial(vm)))[-1]["step"]
    return wait_for(f"{steps} steps of {vm}", lambda: [
        beat for beat in heartbeats(daemon.serial(vm)) if beat["step"] >= first + steps])[-1]


def verified_after(daemon, vm):
    """The first heartbeat that shows a whole sweep begun after now, on that host."""
    now = wait_for(f"a heartbeat of {vm} on {daemon.name}", lambda: heartbeats(daemon.serial(vm)))[-1]
    return wait_for(f"a whole sweep of {vm} on {daemon.name}", lambda: [
        beat for beat in heartbeats(daemon.serial(vm)) if beat["sweeps"] >= now["sweeps"] + 2])[0]


def guest_gap_ms(daemon, vm):
    """Largest gap that the guest saw in its own spin on the TSC, in its first heartbeat after the move."""
    beat = heartbeats(daemon.serial(vm))[0]
    return max(beat["gap_us"], beat["io_us"]) / 1000


class Ballast:
    """Touched memory, given back to the kernel when it is wanted. A virtual machine whose own host takes freed memory
    away at once pays 10 to 30 microseconds for each page that it touches anew; without this a benchmark measures that."""

    def __init__(self, mib):
        self.memory = mmap.mmap(-1, mib << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) if mib else None
        if self.memory:
            self.memory.madvise(mmap.MADV_HUGEPAGE)
            for offset in range(0, mib << 20, 4096):
                self.memory[offset] = 1

    def release(self):
        if self.memory:
            self.memory.close()
            self.memory = None
