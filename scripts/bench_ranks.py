"""What training on several ranks costs, beside what docs/cluster.md says it should: bytes of a minibatch over TCP on loopback, minibatches
a second, how old weights are; what bf16 gradients do to the loss; and what a worker slowed five times does to another.

    cargo build --release --features mpi
    python3 scripts/bench_ranks.py [--only bytes|slow|loss|model] [--seeds 3] [FRAMES]

FRAMES: 32x32 grey frames; without them some are drawn. Needs Open MPI and an otherwise idle machine: bytes are those of the loopback
interface. Prints tables for BENCHMARKS.md.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
STRIATE = os.environ.get("STRIATE", str(HERE / "target/release/striate"))
MPIRUN = ["mpirun", "--allow-run-as-root", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "--mca", "btl", "self,tcp"]
CONFIG = HERE / "configs/faces32.toml"
# A tenth of the rate: with six workers that of the config makes the loss jump.
TOGETHER = ["training.schedule=together", "training.rate=0.004", "training.checkpoint_minutes=600", "training.validate_every=0"]


def job(folder, frames, ranks, servers, settings, split=1, meanwhile=None, cores=None):
    """One run, its ranks on these cores: its summary, and bytes that went over loopback meanwhile."""
    out = tempfile.mkdtemp(dir=folder)
    train = [STRIATE, "train", str(CONFIG), "--frames", str(frames), "--out", out + "/run", "--servers", str(servers), "--split",
             str(split), "--threads", "1", "--json", "--quiet", "--seed", "1"]
    for setting in settings:
        train += ["--set", setting]
    line = [*MPIRUN, "-n", str(ranks), *train]
    if cores:
        each = [["-n", "1", "taskset", "-c", str(core), *train, ":"] for core in cores]
        line = [*MPIRUN, "--bind-to", "none", *sum(each, [])[:-1]]
    before = loopback()
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    stop = threading.Event()
    helper = meanwhile and threading.Thread(target=meanwhile, args=(process.pid, stop))
    if helper:
        helper.start()
    said, wrong = process.communicate()
    stop.set()
    if helper:
        helper.join()
    if process.returncode:
        raise SystemExit(f"{' '.join(line)}: {wrong}")
    return json.loads(said), loopback() - before


def loopback():
    """Bytes that were ever sent over loopback."""
    for line in Path("/proc/net/dev").read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name.strip() == "lo":
            return int(numbers.split()[8])
    raise SystemExit("no loopback interface")


def info(config=CONFIG):
    """What a network of these settings costs."""
    return json.loads(subprocess.check_output([STRIATE, "info", str(config), "--json"], text=True))


def stages(config=CONFIG):
    """Sizes and costs of the stages."""
    return info(config)["stages"]


def exchanged(parts, batch=96, config=CONFIG):
    """Bytes of rows that the parts of a split replica exchange in a minibatch of all stages, objective local (docs/cluster.md)."""
    def share(rows, part):
        return range(rows * part // parts, rows * (part + 1) // parts)

    def missing(rows, of, needed):
        """Rows that parts need and others make, where a part with rows `r` of `of` needs those of `needed(r)`."""
        return sum(len(set(needed(share(of, part))) - set(share(rows, part))) for part in range(parts) if share(of, part))

    total = 0
    of_stages = stages(config)
    for number, stage in enumerate(of_stages):
        s = stage["shape"]
        rows = [s[kind]["rows"] for kind in ("input", "filtered", "pooled")]
        values = [s[kind]["cols"] * s[kind]["channels"] for kind in ("input", "filtered", "pooled")]
        below = lambda step, size: lambda r: range(r[0] * step, r[-1] * step + size)
        above = lambda r: range(-(-max(r[0] + 1 - s["pool"], 0) // s["pool_stride"]), min(r[-1] // s["pool_stride"] + 1, rows[2]))
        around = lambda r: range(max(r[0] - s["lcn"] // 2, 0), min(r[-1] + 1 + s["lcn"] // 2, rows[2]))
        # Reconstruction, residual, and beyond the first stage the input; then simple units, complex units, and twice single maps.
        total += (3 if number else 2) * missing(rows[0], rows[1], below(s["stride"], s["field"])) * values[0]
        total += missing(rows[1], rows[2], below(s["pool_stride"], s["pool"])) * values[1]
        total += missing(rows[2], rows[1], above) * values[2]
        if number + 1 < len(of_stages):
            total += 2 * missing(rows[2], rows[2], around) * s["pooled"]["cols"]
    return 4 * batch * total


PUSH = {"f32": 4, "bf16": 2, "top-percent": 0.08}


def bytes_table(folder, frames):
    """Bytes of a minibatch: those of a long run less those of a short one."""
    count = sum(stage["weights"] for stage in stages())
    print(f"{count:,} weights\n")
    print("| workers | servers | settings | MB a minibatch | model | measured / model | minibatches/s | updates of others while a push was made |")
    print("|---|---|---|---|---|---|---|---|")
    for workers, servers, push, every, split in [
        (1, 1, "f32", 1, 1), (2, 1, "f32", 1, 1), (2, 2, "f32", 1, 1), (4, 2, "f32", 1, 1), (4, 4, "f32", 1, 1), (6, 2, "f32", 1, 1),
        (2, 2, "bf16", 1, 1), (2, 2, "top-percent", 1, 1), (2, 2, "f32", 4, 1), (2, 2, "bf16", 4, 1), (2, 1, "f32", 1, 2), (4, 2, "f32", 1, 2),
    ]:
        settings = [*TOGETHER, f"training.push_as={push}", f"training.fetch_every={every}", f"training.push_every={every}"]
        results = [job(folder, frames, workers + servers, servers, [*settings, f"training.steps=[{steps}]"], split) for steps in (200, 800)]
        (_, short), (summary, long) = results
        sent = (long - short) / 600
        # What the optimiser remembers travels with the weights to workers that learn on between fetches.
        fetched = 8 if every > 1 else 4
        model = (PUSH[push] + fetched) * count / every + (exchanged(split) if split > 1 else 0)
        rate = summary["new_steps"] / summary["seconds"]
        name = f"{push}" + (f", P = G = {every}" if every > 1 else "") + (f", --split {split}" if split > 1 else "")
        print(f"| {workers} | {servers} | {name} | {sent / 1e6:.2f} | {model / 1e6:.2f} | {sent / model:.3f} | {rate:.0f} "
              f"| {summary['mean_staleness']:.2f} |", flush=True)


def loss_table(folder, frames, seeds):
    """Held-out loss of each stage by how gradients travel. One worker and one server: its weights are always one step old, so runs repeat."""
    print("| gradients | held-out loss of stages 1, 2, 3; mean of seeds | to f32 |\n|---|---|---|")
    first = None
    for push in PUSH:
        losses = []
        for seed in range(1, seeds + 1):
            settings = [f"training.push_as={push}", "training.steps=[2000,2000,4000]"]
            out = tempfile.mkdtemp(dir=folder)
            line = [*MPIRUN, "-n", "2", STRIATE, "train", str(CONFIG), "--frames", str(frames), "--out", out + "/run", "--servers", "1",
                    "--threads", "1", "--json", "--quiet", "--seed", str(seed)]
            line += [part for setting in settings for part in ("--set", setting)]
            summary = json.loads(subprocess.check_output(line, text=True, stderr=subprocess.DEVNULL))
            losses.append([stage["validation_loss"] for stage in summary["stages"]])
        mean = [statistics.mean(values) for values in zip(*losses)]
        first = first or mean
        off = ", ".join(f"{100 * (a / b - 1):+.2f} %" for a, b in zip(mean, first))
        print(f"| {push} | {', '.join(f'{loss:.2f}' for loss in mean)} | {off} |", flush=True)


def slowed(rank, share):
    """Lets a rank of a job run for that share of the time only."""
    def work(mpirun, stop):
        children = Path(f"/proc/{mpirun}/task/{mpirun}/children")
        while not stop.is_set():
            pids = children.read_text().split() if children.exists() else []
            if len(pids) <= rank:
                stop.wait(0.05)
                continue
            pid = int(pids[rank])
            try:
                os.kill(pid, signal.SIGSTOP)
                stop.wait(0.02 * (1 - share))
                os.kill(pid, signal.SIGCONT)
                time.sleep(0.02 * share)
            except ProcessLookupError:
                return
    return work


def slow_table(folder, frames, rounds):
    """What a worker on a core of its own does while another, beside the server on the other core, is not there, slowed, or not slowed."""
    kinds = {"alone": ([0, 1], None), "beside a worker slowed five times": ([0, 1, 1], slowed(1, 0.2)), "beside one as fast": ([0, 1, 1], None)}
    rates = {kind: [] for kind in kinds}
    settings = [*TOGETHER, "training.fetch_every=10", "training.push_every=10", "training.steps=[1500]"]
    for _ in range(rounds):
        for kind, (cores, meanwhile) in kinds.items():
            summary, _ = job(folder, frames, len(cores), 1, settings, meanwhile=meanwhile, cores=cores)
            rates[kind].append([count / summary["seconds"] for count in summary["of_replicas"]])
    print("| worker 0, P = G = 10 | minibatches/s | to alone | the other |\n|---|---|---|---|")
    for kind, of_rounds in rates.items():
        ratio = statistics.median(rate[0] / alone[0] for rate, alone in zip(of_rounds, rates["alone"]))
        both = [f"{statistics.median(values):.0f}" for values in zip(*of_rounds)]
        print(f"| {kind} | {both[0]} | {ratio:.3f} | {' '.join(both[1:])} |", flush=True)


# What a worker of 8 cores computes in a second (the paper's network, BENCHMARKS.md), and bytes that a server is to take and give.
FLOPS, SERVER = 8 * 50e9, 1e9


def model_table():
    """1,000 workers and 10 million frames, on paper: all stages learn together."""
    print("| config | workers | replicas | P = G, gradients | s a minibatch | MB a minibatch: weights and gradients; rows | MB/s of a worker | servers of 1 GB/s "
          "| minibatches in which weights grow old | hours for 10 million frames |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, workers, split, every, push in [
        ("faces32", 8, 1, 1, "f32"), ("faces32", 100, 1, 10, "bf16"), ("faces32", 1000, 1, 100, "bf16"),
        ("paper", 8, 1, 1, "f32"), ("paper", 96, 8, 10, "bf16"), ("paper", 1000, 10, 10, "bf16"), ("paper", 1000, 10, 10, "top-percent"),
    ]:
        config = HERE / f"configs/{name}.toml"
        whole = info(config)
        batch, count = whole["config"]["training"]["batch"], sum(stage["weights"] for stage in whole["stages"])
        lanes = -(-batch // 16) * 16
        flops = batch * sum(stage["learn_flops"] for stage in whole["stages"])
        seconds, replicas = flops / FLOPS / split, workers // split
        weights = (PUSH[push] + (8 if every > 1 else 4)) * count / every / split
        rows = exchanged(split, lanes, config) / split if split > 1 else 0
        servers = workers * weights / seconds / SERVER
        hours = 1e7 / batch / replicas * seconds / 3600
        print(f"| {name} | {workers} | {replicas} | {every}, {push} | {seconds:.3g} | {weights / 1e6:,.{0 if weights > 1e8 else 1}f}; {rows / 1e6:.0f} "
              f"| {(weights + rows) / seconds / 1e6:,.0f} | {max(1, servers):.0f} | {1.7 * (replicas - 1) * every:,.0f} | {hours:.2g} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("frames", nargs="?", help="32x32 grey frames")
    parser.add_argument("--only", choices=["bytes", "slow", "loss", "model"])
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    if options.only in (None, "model"):
        model_table()
    if options.only == "model":
        return
    with tempfile.TemporaryDirectory() as folder:
        frames = options.frames
        if not frames:
            videos, frames = Path(folder, "videos"), Path(folder, "frames")
            subprocess.check_call([STRIATE, "synth", "--out", videos, "--videos", "200", "--seconds", "6", "--fps", "5", "--quiet"])
            subprocess.check_call([STRIATE, "sample", videos, "--out", frames, "--size", "32", "--grey", "--per-video", "20", "--quiet"],
                                  stdout=subprocess.DEVNULL)
        if options.only in (None, "bytes"):
            bytes_table(folder, frames)
        if options.only in (None, "slow"):
            slow_table(folder, frames, 5)
        if options.only in (None, "loss"):
            loss_table(folder, frames, options.seeds)


if __name__ == "__main__":
    main()
