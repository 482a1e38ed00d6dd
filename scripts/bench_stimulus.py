"""Preferred stimuli of all units of a trained run: ours, and the same search in PyTorch unit by unit.

    python3 scripts/bench_stimulus.py RUN [THREADS]

Times `striate visualize RUN --units all --norm natural --positive-only`, everything included, and takes from it how often it asked a unit for its value
and gradient. PyTorch (from a virtual environment of its own, float32, the same network, one search at a time) is timed for
some units of each stage; only those evaluations are counted, no optimiser, so it is flattered. Its part of the table is skipped without torch.
Uses target/release/striate and overwrites RUN/visualize.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import time
import tomllib

ROOT = pathlib.Path(__file__).resolve().parent.parent
UNITS_TIMED = 5
EVALUATIONS_TIMED = 40


def ours(run, threads):
    line = [ROOT / "target/release/striate", "visualize", run, "--units", "all", "--norm", "natural", "--positive-only", "--json", "--quiet"]
    begun = time.time()
    text = subprocess.run([*map(str, line), "--threads", str(threads)], check=True, capture_output=True, text=True).stdout
    return time.time() - begun, json.loads(text)


def network(run, torch):
    """The stages of the newest checkpoint as functions of [1, channels, rows, columns]."""
    from safetensors.torch import load_file

    newest = max((run / "checkpoints").iterdir(), key=lambda folder: int("".join(filter(str.isdigit, folder.name)) or 0))
    tensors = {}
    for file in newest.glob("model*.safetensors"):
        tensors |= load_file(file)
    stages = []
    for number, settings in enumerate(tomllib.loads((run / "config.toml").read_text())["stages"], 1):
        weights = tensors[f"stage{number}.W1"].float()
        rows, cols, maps, channels, field, _ = weights.shape
        flat = weights.reshape(rows * cols, maps, channels * field * field)
        stages.append((settings, flat, (rows, cols, maps, field)))
    return stages


def forward(x, stages, torch):
    functional = torch.nn.functional
    for settings, weights, (rows, cols, maps, field) in stages:
        seen = functional.unfold(x, field, stride=settings.get("stride", 1))[0].T
        a = torch.bmm(weights, seen.unsqueeze(2)).reshape(rows, cols, maps).permute(2, 0, 1)
        pool, step = settings.get("pool", 5), settings.get("pool_stride", 1)
        square = functional.avg_pool2d((a * a)[None], pool, step) * pool * pool
        h = torch.sqrt(settings.get("epsilon", 1e-4) + square)
        side = settings.get("lcn", 5)
        if side == 0:
            x = h
            continue
        place = torch.arange(side, dtype=torch.float32) - side // 2
        bell = torch.exp(-0.5 * (place / (0.25 * side)) ** 2)
        kernel = (torch.outer(bell, bell) / bell.sum() ** 2)[None, None]
        inside = functional.conv2d(torch.ones_like(h[:, :1]), kernel, padding=side // 2)
        mean = lambda z: functional.conv2d(z.mean(1, keepdim=True), kernel, padding=side // 2) / inside
        g = h - mean(h)
        x = g / torch.sqrt(mean(g * g).clamp(min=settings.get("lcn_floor", 0.01) ** 2))
    return x


def theirs(run, gallery, threads):
    """Seconds of one evaluation of a unit of each stage."""
    import torch

    torch.set_num_threads(threads)
    stages, seconds = network(run, torch), []
    settings = tomllib.loads((run / "config.toml").read_text())["input"]
    shape = (1, settings["channels"], settings["height"], settings["width"])
    for stage in range(len(stages)):
        units = [page["unit"] for page in gallery["units"] if page["stage"] == stage + 1]
        times = []
        for unit in units[:: max(1, len(units) // UNITS_TIMED)][:UNITS_TIMED]:
            z = torch.randn(shape)
            for number in range(EVALUATIONS_TIMED + 5):
                if number == 5:  # the first are slower
                    begun = time.time()
                z = z.detach().requires_grad_(True)
                value = forward(z / z.norm(), stages[: stage + 1], torch)[0, unit["map"], unit["row"], unit["col"]]
                z = z + 0.1 * torch.autograd.grad(value, z)[0]
            times.append((time.time() - begun) / EVALUATIONS_TIMED)
        seconds.append(statistics.median(times))
    return seconds


def main(run, threads):
    took, gallery = ours(run, threads)
    units, searched = sum(gallery["stage_units"]), gallery["searched"]
    evaluations = [stage["evaluations"] for stage in searched]
    searches = sum(stage["searches"] for stage in searched)
    print(f"striate, {threads} threads: {units} units, {searches} searches, {sum(evaluations)} evaluations: {took:.1f} s, all included")
    print(f"that is {1000 * took / units:.1f} s for 1,000 units")
    best = [s for page in gallery["units"] for s in page["stimuli"] if s["value"] is not None]
    beaten = sum(s["value"] > s["best_frame_value"] for s in best)
    print(f"above every frame of that norm: {beaten} of {len(best)}")
    try:
        seconds = theirs(run, gallery, threads)
    except ImportError as error:
        sys.exit(f"skipped: PyTorch ({error})")
    total = sum(number * each for number, each in zip(evaluations, seconds))
    each = ", ".join(f"{1000 * s:.2f}" for s in seconds)
    print(f"PyTorch, {threads} threads, unit by unit: {each} ms for an evaluation in stages 1, 2, 3; as many take {total:.0f} s")
    print(f"ratio {total / took:.0f}")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(pathlib.Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 2)
