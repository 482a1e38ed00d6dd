"""Whether replicas that do not wait for each other learn as well, how much faster they are, and whether memory grows.

    python3 scripts/bench_training.py curves FRAMES        sync with 1 replica, async with 2 and with 8, three seeds each
    python3 scripts/bench_training.py throughput FRAMES    one replica on one thread, two on two, and two runs of one replica at the
                                                           same time (what the machine gives at most), in turn, 5 rounds
    python3 scripts/bench_training.py memory FRAMES [MINUTES]   resident memory over a run of two hours

FRAMES is what `striate train` takes. Uses target/release/striate; runs lie in outputs/bench/training and are removed first.
"""

import json
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
STRIATE = ROOT / "target/release/striate"
OUT = ROOT / "outputs/bench/training"
STEPS = [8000, 8000, 16000]


def command(frames, name, settings, threads, seed):
    shutil.rmtree(OUT / name, ignore_errors=True)
    line = [STRIATE, "train", ROOT / "configs/small.toml", "--frames", frames, "--out", OUT / name]
    line += ["--threads", str(threads), "--seed", str(seed), "--json", "--quiet"]
    return [str(word) for word in line] + [f"--set={setting}" for setting in settings]


def train(*arguments):
    return json.loads(subprocess.run(command(*arguments), check=True, capture_output=True, text=True).stdout)


def curves(frames):
    print("| seed | replicas | held-out loss of stage 1, 2, 3 | to sync | staleness, mean and largest (32: or more) |\n|---|---|---|---|---|")
    worst = 0
    for seed in range(3):
        reference = None
        for name, replicas, threads in [("sync", 1, 1), ("async", 2, 2), ("async", 8, 2)]:
            settings = [f"training.mode={name}", f"training.replicas={replicas}", f"training.steps={STEPS}"]
            result = train(frames, f"{name}-{replicas}", settings, threads, seed)
            losses = [stage["validation_loss"] for stage in result["stages"]]
            reference = reference or losses
            apart = [100 * (loss / wanted - 1) for loss, wanted in zip(losses, reference)]
            worst = max([worst] + [abs(share) for share in apart])
            shown = ", ".join(f"{loss:.2f}" for loss in losses)
            differences = ", ".join(f"{share:+.1f} %" for share in apart)
            age = f"{result['mean_staleness']:.2f}, {len(result['staleness']) - 1}"
            print(f"| {seed} | {name} {replicas} | {shown} | {differences} | {age} |", flush=True)
    print(f"\nlargest difference {worst:.1f} %, of {result['held_out']} held-out frames, {result['images']} images each")


def rates(frames, runs, settings, threads):
    """Images/s of runs at the same time."""
    lines = [command(frames, f"speed-{number}", settings, threads, 0) for number in range(runs)]
    children = [subprocess.Popen(line, stdout=subprocess.PIPE, text=True) for line in lines]
    results = [json.loads(child.communicate()[0]) for child in children]
    return [result["images"] / result["seconds"] for result in results]


def throughput(frames):
    # Preparing minibatches takes a third thread's time; the more there is to learn, the less it matters. What is learned does not
    # matter here: a rate that suits `small` throws the wider network off now and then, which must not end it.
    wide = ["stages.1.maps=32", "stages.2.maps=64", "training.steps=[400,200,400]"]
    for title, more in [("small", [f"training.steps={[steps // 4 for steps in STEPS]}"]), ("four times the maps", wide)]:
        ratios, limits = [], []
        for number in range(5):
            rate = {}
            for name, runs, replicas in [("one", 1, 1), ("two", 1, 2), ("apart", 2, 1)][:: 1 if number % 2 == 0 else -1]:
                rate[name] = sum(rates(frames, runs, [f"training.replicas={replicas}", "training.loss_jump=0", *more], replicas))
            ratios.append(rate["two"] / rate["one"])
            limits.append(rate["apart"] / rate["one"])
            shown = f"one replica {rate['one']:.0f} images/s, two {rate['two']:.0f}, two runs {rate['apart']:.0f}"
            print(f"{title}: {shown}: {ratios[-1]:.2f}, {limits[-1]:.2f}", flush=True)
        print(f"{title}: medians {statistics.median(ratios):.2f}, {statistics.median(limits):.2f}")


def memory(frames, minutes):
    # Longer than it may take, stage after stage.
    settings = ["training.steps=[100000000,1,1]", "training.validate_every=5000", "training.checkpoint_minutes=2"]
    with subprocess.Popen(command(frames, "memory", settings, 2, 0)) as child:
        begun, seen = time.time(), []
        while time.time() - begun < 60 * minutes and child.poll() is None:
            time.sleep(min(30, 6 * minutes))
            if child.poll() is not None:
                sys.exit("the run ended before its time")
            status = pathlib.Path(f"/proc/{child.pid}/status").read_text()
            resident = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon"))
            seen.append((time.time() - begun, resident / 1024))
            if len(seen) % 20 == 1:
                print(f"{seen[-1][0] / 60:.1f} min: {seen[-1][1]:.1f} MiB", flush=True)
        child.terminate()
        child.wait()
    tenth = max(1, len(seen) // 10)
    early = statistics.median(size for _, size in seen[tenth : 2 * tenth + 1])
    late = statistics.median(size for _, size in seen[-tenth:])
    steps = json.loads((OUT / "memory/log.jsonl").read_text().splitlines()[-1])["step"]
    print(f"{steps} steps in {seen[-1][0] / 60:.0f} minutes: {early:.1f} MiB early, {late:.1f} MiB late")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    what, frames, *rest = sys.argv[1:]
    OUT.mkdir(parents=True, exist_ok=True)
    if what == "curves":
        curves(frames)
    elif what == "throughput":
        throughput(frames)
    elif what == "memory":
        memory(frames, float(rest[0]) if rest else 120)
    else:
        sys.exit(__doc__)
