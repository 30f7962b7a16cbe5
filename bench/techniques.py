#!/usr/bin/env python3
"""The techniques side by side, at several dirty rates: migrations by `live`, `suspend` and `precopy`, QEMU's pre-copy of the same guest
(`-accel kvm -M microvm -cpu qemu64,-cx16`, downtime limit 10 ms), and the pauses of generations (`replicate`) and of templates of the
running guest, all in one run. JSON on standard output, tables on standard error (the second: each budget that the run can judge, and
whether it was met), and with --svg DIR one plot for each figure.

A guest filled with incompressible data rewrites pages of its working set at the rate. What it saw itself (the largest gap in a spin
on its TSC) stands beside each downtime. Full copies begin with warm memory (lab.Ballast): else a host that takes freed memory away is
what is measured. Where qemu-system-x86_64 is not installed, its rows are absent and the JSON says so."""
import argparse
import json
import math
import os
import shutil
import sys
import tempfile

from migrate import figures, move, summary, wait_warm
from qemu import qemu_precopy
from full_copy import plain_mb_s
from lab import GUEST, Daemon, heartbeats, wait_for, wait_steps  # noqa: E402  (migrate.py has set the path)

COLORS = {"live": "#1f77b4", "suspend": "#2ca02c", "precopy": "#d62728", "qemu": "#ff7f0e", "generation": "#9467bd", "template": "#8c564b"}


def generations(a, b, options):
    """Pauses and round trips of --generations generations, one status a generation."""
    a.ctl("replicate", "start", "web", "--to", b.listen, "--interval", f"{options.interval_ms}ms")
    pauses, lags, seen = [], [], 0
    while len(pauses) < options.generations:
        status = wait_for("a sealed generation", lambda: sealed_after(a, seen))
        seen = status["generation_sealed"]
        pauses.append(status["pause_ms"])
        lags.append(status["lag_ms"])
    last = a.ctl("replicate", "stop", "web")
    return {"pause_ms": summary(pauses), "lag_ms": summary(lags), "pages": round(last["pages_acknowledged"] / max(1, seen)),
            "interval_ms": last["interval_ms"], "buffer_waits": last["buffer_waits"]}


def sealed_after(host, seen):
    status = host.ctl("replicate", "status", "web")
    return status if status["generation_sealed"] > max(seen, 1) else None  # the first one holds all since the template


def templates(host, times):
    """Pauses of templates of the running guest, each a delta over the one before."""
    made = [host.ctl("template", "create", f"t{i}", "--from", "web") for i in range(times)]
    return {"pause_ms": summary([m["pause_ms"] for m in made]), "duration_ms": summary([m["duration_ms"] for m in made]),
            "pause_pages": summary([m["pause_pages"] for m in made])}


def mib_of(memory):
    return int(memory[:-1]) * {"M": 1, "G": 1024}[memory[-1]]


def cmdline_of(options, rate):
    return f"seed=5 ws={options.ws} rate={rate} beat=50 cpu={options.cpu}"


def one(options, memory, rate, root):
    row = fvmm(options, memory, rate, root)
    if not options.qemu:
        return row
    if not shutil.which("qemu-system-x86_64"):
        return {**row, "qemu_absent": "qemu-system-x86_64 is not installed"}
    row["qemu"] = qemu_precopy(root, mib_of(memory), options.qemu, cmdline_of(options, rate))
    return {**row, "against_qemu": ratios(row)}


def ratios(row):
    """Durations of full copies over those by delta, and what creating the template adds: after how many moves it has paid."""
    out = {}
    for mode in ("live", "suspend"):
        ours, theirs = row[mode]["duration_ms"]["median"], row["qemu"]["duration_ms"]["median"]
        out[mode] = {"duration": round(theirs / ours, 1), "downtime": round(
                         row["qemu"]["downtime_ms"]["median"] / row[mode]["downtime_ms"]["median"], 2),
                     "guest_gap": round(row["qemu"]["guest_gap_ms"]["median"] / row[mode]["guest_gap_ms"]["median"], 2),
                     "duration_with_template": round(theirs / (ours + row["base_create_ms"]), 2),
                     "paid_back_after": math.ceil(row["base_create_ms"] / (theirs - ours)) if theirs > ours else None}
    return out


def fvmm(options, memory, rate, root):
    a = Daemon(f"A-{memory}-{rate}", root, [memory])
    b = Daemon(f"B-{memory}-{rate}", root, [memory])
    try:
        a.ctl("vm", "create", "web", "--memory", memory, "--kernel", GUEST, "--cmdline", cmdline_of(options, rate), "--start")
        wait_for("the guest to fill its memory", lambda: "FILLED" in a.serial("web"))
        base = a.ctl("template", "create", "base", "--from", "web")
        b.ctl("template", "import", f"{a.state}/templates/base", "--link")
        wait_steps(a, "web", min(rate, options.ws * 256))
        out = {"memory": memory, "rate": rate, "ws_mib": options.ws, "base_create_ms": base["duration_ms"],
               "base_pause_ms": base["pause_ms"]}
        hosts = [a, b]
        options.ballast = mib_of(memory) + 256 if options.precopy else 64
        for mode, times in (("live", options.times), ("suspend", options.times), ("generation", 0), ("precopy", options.precopy)):
            if mode == "generation":  # before precopy, which leaves the VM on no template
                out[mode] = generations(a, b, options)
                out["template"] = templates(a, options.templates)
                continue
            results = []
            for _ in range(times + times % 2):  # it comes home each time
                wait_warm(hosts[1])
                results.append(move(hosts[0], hosts[1], mode, options))
                hosts.reverse()
            if results:
                out[mode] = figures(results)
        if any(beat["errors"] for host in hosts for beat in heartbeats(host.serial("web"))):
            raise SystemExit("the guest found errors in its memory")
        return out
    finally:
        for daemon in (a, b):
            daemon.stop()
            shutil.rmtree(daemon.state, ignore_errors=True)  # one row's stores are as large as its memory, several times


def table(rows):
    lines = [f"{'memory':>7} {'rate/s':>7} {'technique':<11} {'pages':>8} {'duration ms':>12} {'downtime ms':>12} {'worst':>8} {'guest saw':>10}"]
    for row in rows:
        head = f"{row['memory']:>7} {row['rate']:>7} "
        for mode in ("live", "suspend", "precopy", "qemu"):
            if mode in row:
                r = row[mode]
                lines.append(head + f"{mode:<11} {r['pages_sent']['median']:>8.0f} {r['duration_ms']['median']:>12.2f} "
                             f"{r['downtime_ms']['median']:>12.2f} {r['downtime_ms']['max']:>8.2f} {r['guest_gap_ms']['median']:>10.2f}")
        g, t = row["generation"], row["template"]
        lines.append(head + f"{'generation':<11} {g['pages']:>8} {'':>12} {g['pause_ms']['median']:>12.2f} {g['pause_ms']['max']:>8.2f}")
        lines.append(head + f"{'template':<11} {'':>8} {t['duration_ms']['median']:>12.2f} {t['pause_ms']['median']:>12.2f} {t['pause_ms']['max']:>8.2f}")
        for mode, r in row.get("against_qemu", {}).items():
            lines.append(head + f"QEMU / {mode}: duration {r['duration']} x, downtime {r['downtime']} x, gap seen by the guest {r['guest_gap']} x; with the "
                         f"creation of the template {r['duration_with_template']} x, paid back after {r['paid_back_after']} move(s)")
    return "\n".join(lines)


def budgets(rows, tcp_mb_s):
    """What DESIGN.md's budgets ask for, beside what this run measured: [what, budget, measured, met]."""
    out = []

    def judge(what, least_or_most, limit, measured):
        met = measured <= limit if least_or_most == "<=" else measured >= limit
        out.append({"what": what, "budget": f"{least_or_most} {limit:.3g}", "measured": round(measured, 2), "met": met})

    for row in rows:
        at = f"{row['memory']}, {row['rate']}/s"
        for mode in ("live", "suspend"):
            r = row[mode]
            down, took, pages = r["downtime_ms"], r["duration_ms"]["median"], r["pages_sent"]["median"]
            if pages <= 100:
                judge(f"downtime, ms: {mode}, {at}", "<=", 2, down["median"])
                if "qemu" in row:
                    judge(f"downtime, share of QEMU's best: {mode}, {at}", "<=", 1 / 3, down["median"] / row["qemu"]["downtime_ms"]["min"])
            if mode == "live" and row["rate"] == 10000:
                judge(f"downtime, ms: {mode}, {at}", "<=", 5, down["median"])
                judge(f"downtime, worst, ms: {mode}, {at}", "<=", 15, down["max"])
            if pages <= 1000:
                allowed = r["bytes_sent"]["median"] / 1e3 / tcp_mb_s + 10
                judge(f"duration over (delta / TCP rate + 10 ms): {mode}, {at}", "<=", 1.3, took / allowed)
            if row["rate"] == 0 and row["memory"] == "8G" and "qemu" in row:
                judge(f"duration, QEMU's over ours: {mode}, {at}", ">=", 200, row["qemu"]["duration_ms"]["median"] / took)
            small = next((other for other in rows if other["rate"] == row["rate"]), row)
            if small is not row and pages <= 1000:
                judge(f"duration over that of {small['memory']}: {mode}, {at}", "<=", 1.3, took / small[mode]["duration_ms"]["median"])
        g = row["generation"]
        if g["pages"] <= 10000:
            judge(f"pause of a generation of {g['pages']} pages, ms: {at}", "<=", 1 if g["pages"] <= 100 else 10, g["pause_ms"]["median"])
    return out


def budget_table(judged):
    return "\n".join(f"{'met   ' if b['met'] else 'MISSED'} {b['what']}: {b['measured']} (budget {b['budget']})" for b in judged)


def svg(title, series, labels):
    """Grouped bars on a logarithmic axis: series is {name: [value or None for each label]}."""
    width, height, left, bottom = 760, 360, 70, 60
    values = [v for line in series.values() for v in line if v]
    low, high = min(values) / 2, max(values) * 2
    scale = (height - bottom - 40) / math.log10(high / low)
    group = (width - left - 20) / len(labels)
    bar = group * 0.8 / len(series)
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
             f'<rect width="100%" height="100%" fill="white"/><text x="{left}" y="20" font-size="14">{title}</text>']
    tick = 10 ** math.ceil(math.log10(low))
    while tick <= high:
        y = height - bottom - math.log10(tick / low) * scale
        parts.append(f'<line x1="{left}" x2="{width - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/><text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        tick *= 10
    for i, label in enumerate(labels):
        parts.append(f'<text x="{left + (i + 0.5) * group:.1f}" y="{height - bottom + 18}" text-anchor="middle">{label}</text>')
        for j, (name, line) in enumerate(series.items()):
            if line[i]:
                tall = math.log10(line[i] / low) * scale
                x = left + i * group + group * 0.1 + j * bar
                parts.append(f'<rect x="{x:.1f}" y="{height - bottom - tall:.1f}" width="{bar * 0.9:.1f}" height="{tall:.1f}" fill="{COLORS[name]}"/>')
    for j, name in enumerate(series):
        parts.append(f'<rect x="{left + j * 120}" y="{height - 28}" width="12" height="12" fill="{COLORS[name]}"/><text x="{left + 18 + j * 120}" y="{height - 18}">{name}</text>')
    return "\n".join(parts) + "\n</svg>\n"


FULL = ("live", "suspend", "precopy", "qemu")


def plots(rows, directory):
    os.makedirs(directory, exist_ok=True)
    labels = [f"{row['memory']}, {row['rate']}/s" for row in rows]
    for figure, title, names in (("downtime_ms", "downtime, ms (median)", FULL),
                                 ("duration_ms", "duration, ms (median)", FULL),
                                 ("pause_ms", "pause of the guest, ms (median)", ("generation", "template"))):
        series = {name: [row[name][figure]["median"] if name in row else None for row in rows]
                  for name in names if any(name in row for row in rows)}
        with open(os.path.join(directory, figure.replace("_ms", "") + ".svg"), "w") as out:
            out.write(svg(title, series, labels))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--memory", nargs="+", default=["1G", "8G"])
    parser.add_argument("--rate", nargs="+", type=int, default=[0, 1000, 10000, 50000], help="pages rewritten a second")
    parser.add_argument("--ws", type=int, default=64, help="working set in MiB")
    parser.add_argument("--cpu", type=int, default=20, help="percent of the time for verification sweeps")
    parser.add_argument("--times", type=int, default=10, help="migrations by live and by suspend")
    parser.add_argument("--precopy", type=int, default=2, help="migrations by precopy")
    parser.add_argument("--generations", type=int, default=20)
    parser.add_argument("--interval-ms", type=int, default=200)
    parser.add_argument("--templates", type=int, default=5)
    parser.add_argument("--max-downtime", default="5ms")
    parser.add_argument("--qemu", type=int, default=2, help="migrations by QEMU's pre-copy; 0: none")
    parser.add_argument("--svg", metavar="DIR", help="write plots there")
    options = parser.parse_args()
    root = tempfile.mkdtemp(prefix="fvmm-bench-")
    try:
        tcp = plain_mb_s(256)["plain_mb_s_median"]
        rows = []
        for memory in options.memory:
            for rate in options.rate:
                rows.append(one(options, memory, rate, root))
                print(table(rows[-1:]), file=sys.stderr, flush=True)  # so that a row that fails later takes nothing with it
    finally:
        shutil.rmtree(root, ignore_errors=True)
    judged = budgets(rows, tcp)
    print(json.dumps({"tcp_mb_s": tcp, "rows": rows, "budgets": judged}, indent=1))
    print(table(rows), budget_table(judged), sep="\n\n", file=sys.stderr)
    if options.svg:
        plots(rows, options.svg)


if __name__ == "__main__":
    main()
