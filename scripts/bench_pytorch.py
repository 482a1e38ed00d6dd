#!/usr/bin/env python3
"""Measures one training step of a stage in PyTorch beside `striate bench`: same sizes, minibatch and threads, one run.

The step is the `local` one of a single stage with plain SGD, as `step/stage1/local-sgd` of `striate bench` measures
it: filter with weights of its own at every position, pool, decode with the transpose, take the loss, make all
gradients and update both arrays of weights. Contrast normalisation has no part in this objective: its output feeds
only the next stage, so neither side computes it. PyTorch's contenders are

    naive     Tensor.unfold, einsum, F.fold, autograd and torch.optim.SGD
    compiled  the same through torch.compile
    best      written by hand: see `Strips`

All must agree on losses and new weights before they are timed, and on small sizes with the float64 reference in
STRIATE_REFERENCE (../shared/reference if unset); that is skipped where there is none.

Set-up: python3 -m venv outputs/bench/venv && outputs/bench/venv/bin/pip install torch numpy
and a C++ compiler for torch.compile. Naive steps take up to 6 GB of memory.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import tomllib
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    torch = None  # --help works without it

ROOT = Path(__file__).resolve().parent.parent
# Sides of the square picture with which a stage's tile fits: 64x64x3 for the first, 40x40x8 for the second.
PICTURE_SIDES = {1: 64, 2: 61}
EXPECTED = {"stride": 1, "pool_stride": 1, "reconstruction": "sum"}  # settings that the contenders have built in
RATE = 1e-6  # of timed steps, as in `striate bench`: nothing diverges
CHECKED_RATE = 1e-3  # of steps that are compared: changes stand out from rounding
SLOW, SLOW_ROUNDS = 2.0, 3  # a step of more seconds is made once a round, and only in the first rounds
EXAMPLES = """examples:
  outputs/bench/venv/bin/python scripts/bench_pytorch.py --stage 1 --threads 1 --rounds 1
  outputs/bench/venv/bin/python scripts/bench_pytorch.py --json > outputs/bench/pytorch.json"""


@dataclass(frozen=True)
class Sizes:
    """Sizes of a stage with strides of 1, and what its objective needs."""

    batch: int
    channels: int
    rows: int
    cols: int
    maps: int
    field: int
    pool: int
    sparsity: float
    epsilon: float

    @property
    def positions(self) -> tuple[int, int]:
        return self.rows - self.field + 1, self.cols - self.field + 1

    @property
    def taps(self) -> int:
        return self.channels * self.field**2

    @property
    def flops(self) -> int:
        """Of the five products of a step, as `striate bench` counts them."""
        return 5 * 2 * self.positions[0] * self.positions[1] * self.maps * self.taps * self.batch

    def start(self, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pictures `[B, C, H, W]`, encoder and decoder `[Ho, Wo, M, C, k, k]`, the same for every contender."""
        random = torch.Generator().manual_seed(0)
        pictures = torch.randn(self.batch, self.channels, self.rows, self.cols, generator=random)
        weights = (*self.positions, self.maps, self.channels, self.field, self.field)
        encoder, decoder = (torch.randn(weights, generator=random) * self.taps**-0.5 for _ in range(2))
        return pictures.to(dtype), encoder.to(dtype), decoder.to(dtype)


class Naive:
    """What comes to mind first."""

    def __init__(self, sizes: Sizes, compiled: bool = False) -> None:
        self.sizes = sizes
        self.pictures, *self.weights = sizes.start(torch.float32)
        self.optimiser = torch.optim.SGD([w.requires_grad_() for w in self.weights], lr=RATE)
        self.loss = torch.compile(self.objective, dynamic=False) if compiled else self.objective

    def objective(self, pictures: torch.Tensor, encoder: torch.Tensor, decoder: torch.Tensor) -> torch.Tensor:
        s = self.sizes
        fields = pictures.unfold(2, s.field, 1).unfold(3, s.field, 1)
        a = torch.einsum("bcijuv,ijmcuv->bmij", fields, encoder)  # F.unfold instead of windows: 35 to 50 % slower
        h = torch.sqrt(F.avg_pool2d(a.square(), s.pool, stride=1) * s.pool**2 + s.epsilon)
        given_back = torch.einsum("bmij,ijmcuv->bcuvij", a, decoder).reshape(s.batch, s.taps, -1)
        reconstruction = F.fold(given_back, (s.rows, s.cols), s.field)
        return ((reconstruction - pictures).square().sum() + s.sparsity * h.sum()) / s.batch

    def step(self, rate: float = RATE) -> float:
        """One step of training; the loss before it."""
        self.optimiser.param_groups[0]["lr"] = rate
        self.optimiser.zero_grad()
        loss = self.loss(self.pictures, *self.weights)
        loss.backward()
        self.optimiser.step()
        return loss.item()

    def learnt(self) -> list[torch.Tensor]:
        """Encoder and decoder as they are now."""
        return [w.detach() for w in self.weights]


def box_sums(maps: torch.Tensor, side: int, axis: int) -> torch.Tensor:
    """Sums over windows of `side` along one axis."""
    length = maps.shape[axis] - side + 1
    return sum(maps.narrow(axis, shift, length) for shift in range(side))


class Pooling:
    """L2 pooling of `a`, the sparsity term, and its gradient, in buffers made once."""

    def __init__(self, sizes: Sizes) -> None:
        (rows, cols), margin = sizes.positions, sizes.pool - 1
        self.side, self.epsilon, self.scale = sizes.pool, sizes.epsilon, sizes.sparsity / sizes.batch
        self.squares = torch.zeros(rows - margin, cols, sizes.maps, sizes.batch)
        self.inverse = torch.zeros(rows + margin, cols + margin, sizes.maps, sizes.batch)
        self.inner = self.inverse[margin:rows, margin:cols]
        self.spread = torch.zeros(rows, cols + margin, sizes.maps, sizes.batch)

    def __call__(self, a: torch.Tensor, da: torch.Tensor) -> torch.Tensor:
        """Puts the gradient of the sparsity term into `da`; that term."""
        self.squares.copy_(box_sums(a * a, self.side, 0))
        h = torch.sqrt(box_sums(self.squares, self.side, 1) + self.epsilon)
        self.inner.copy_(self.scale / h)
        self.spread.copy_(box_sums(self.inverse, self.side, 0))
        da.copy_(box_sums(self.spread, self.side, 1) * a)
        return h.sum() * self.scale


class Strips:
    """The step by hand, without autograd, in buffers made once: the fastest found.

    Inputs are `[column, row, channel, lane]` and activations `[row, column, map, lane]`, lanes being the pictures. What
    the fields of one row of positions see of one input column is then a contiguous strip of field x channels vectors,
    and the strips of all rows are a view that copies nothing. Up to `field` neighbouring positions look at a strip,
    so each product is a batch of proper matrices, (54 x 144) by (144 x 96) for the first stage of the paper, and
    baddbmm_ adds it in place: to the responses, to their gradients, or to the weights times minus the rate.

    `rows_at_once` rows make a batch. What units give back overlaps from row to row: rows that do not overlap are added
    in place, so many at a time (`apart`), or all are written to a buffer, which is then summed along its diagonals.

    Tried and slower, in GFLOP/s on one thread and on two of an AMD EPYC (AVX2) with oneMKL, for the paper's first stage
    (filtering as it is 69 and 109, decoding 63 and 113, learning 74 and 144, dense products of 1024^3 91 and 179):

    - a bmm per position over its field (one row, hot in cache): filtering 59, 116, decoding 35, 95, learning 51, 100
    - addmm_, one matrix at a time: filtering 61 and 89, decoding 59 and 82, learning 59 and 83
    - Python threads with half the rows each: filtering 100, learning 106 to 111 on two
    - two or three input columns in a strip: up to 11 % faster, but 5 to 11 % more work, and zeros to restore
    - weights transposed: filtering 71 and 112, but learning 57 and 112
    - decoding into a buffer and adding that row by row: 59 and 104
    - pooling by avg_pool2d 14 ms, by slices 9 ms, by slices through torch.compile 4 ms
    """

    def __init__(self, sizes: Sizes, rows_at_once: int, apart: bool, compiled: bool = False) -> None:
        self.sizes, self.name = sizes, f"{rows_at_once} rows at once, decoding {'apart' if apart else 'by diagonals'}"
        self.pool = torch.compile(Pooling(sizes), dynamic=False) if compiled else Pooling(sizes)
        rows, cols = sizes.positions
        pictures, *weights = sizes.start(torch.float32)
        self.input, self.residual = (pictures.permute(3, 2, 1, 0).contiguous() for _ in range(2))
        self.a, self.da = (torch.zeros(rows, cols, sizes.maps, sizes.batch) for _ in range(2))
        # The positions that look at each input column.
        self.seen_by = [(max(0, x - sizes.field + 1), min(cols, x + 1)) for x in range(sizes.cols)]
        self.encoder, self.decoder = ([self.strip(w, x) for x in range(sizes.cols)] for w in weights)

        inputs, residuals = self.fields(self.input), self.fields(self.residual)
        units, gradients = self.units(self.a), self.units(self.da)
        blocks = [slice(first, first + rows_at_once) for first in range(0, rows, rows_at_once)]
        places = list(itertools.product(blocks, range(sizes.cols)))
        w1, w2 = self.encoder, self.decoder
        self.filtering = [(units[x][b], w1[x][b].mT, inputs[x][b]) for b, x in places]
        self.learning_encoder = [(w1[x][b], inputs[x][b], gradients[x][b].mT) for b, x in places]
        self.learning_decoder = [
            (gradients[x][b], w2[x][b].mT, residuals[x][b], w2[x][b], units[x][b].mT) for b, x in places
        ]
        steps = [slice(first, None, sizes.field) for first in range(min(sizes.field, rows))] if apart else []
        columns = itertools.product(range(sizes.cols), steps)
        self.apart = [(residuals[x][some], w2[x][some], units[x][some]) for x, some in columns]
        self.by_column = list(zip(w2, units, self.residual.flatten(2), strict=True))
        # Strips given back by each row of positions, with zeros around them; row y of the reconstruction is the sum of
        # tap `field - 1` of the strip of row y - field + 1, tap `field - 2` of the next, and so on.
        around, pixel = sizes.field - 1, sizes.channels * sizes.batch
        given_back = torch.zeros(rows + 2 * around, sizes.field * sizes.channels, sizes.batch)
        self.given_back = given_back[around:][:rows]
        strides = (sizes.field * pixel, (sizes.field - 1) * pixel, 1)
        self.diagonals = given_back.as_strided((sizes.rows, sizes.field, pixel), strides, around * pixel)

    def strip(self, weights: torch.Tensor, x: int) -> torch.Tensor:
        """Weights between input column `x` and all who see it: `[row, (dy, channel), (column, map)]`."""
        columns = torch.arange(*self.seen_by[x])
        column_first = weights[:, columns, :, :, :, x - columns]  # [column, row, map, channel, dy]
        return column_first.permute(1, 4, 3, 0, 2).flatten(3, 4).flatten(1, 2).contiguous()

    def fields(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """For each input column a view `[row of positions, (dy, channel), lane]`."""
        s, pixel = self.sizes, self.sizes.channels * self.sizes.batch
        shape, strides = (s.positions[0], s.field * s.channels, s.batch), (pixel, s.batch, 1)
        return [maps.as_strided(shape, strides, x * s.rows * pixel) for x in range(s.cols)]

    def units(self, maps: torch.Tensor) -> list[torch.Tensor]:
        """For each input column a view `[row, (column, map), lane]` of the units that see it."""
        return [maps[:, first:last].flatten(1, 2) for first, last in self.seen_by]

    def decode(self) -> None:
        """Reconstruction minus input into `residual`."""
        if self.apart:
            torch.neg(self.input, out=self.residual)
            for out, weights, responses in self.apart:
                out.baddbmm_(weights, responses)
            return
        for weights, responses, out in self.by_column:
            torch.bmm(weights, responses, out=self.given_back)
            torch.sum(self.diagonals, 1, out=out)
        self.residual.sub_(self.input)

    def step(self, rate: float = RATE) -> float:
        """One step of training; the loss before it."""
        self.a.zero_()
        for out, weights, inputs in self.filtering:
            out.baddbmm_(weights, inputs)
        self.decode()
        flat = self.residual.view(-1)
        loss = torch.dot(flat, flat) / self.sizes.batch + self.pool(self.a, self.da)
        scale = 2 / self.sizes.batch
        for gradients, transposed, residuals, weights, responses in self.learning_decoder:
            gradients.baddbmm_(transposed, residuals, alpha=scale)
            weights.baddbmm_(residuals, responses, alpha=-rate * scale)
        for weights, inputs, gradients in self.learning_encoder:
            weights.baddbmm_(inputs, gradients, alpha=-rate)
        return loss.item()

    def learnt(self) -> list[torch.Tensor]:
        """Encoder and decoder in the layout in which they started."""
        s, out = self.sizes, []
        for strips in (self.encoder, self.decoder):
            weights = torch.empty(*s.positions, s.maps, s.channels, s.field, s.field)
            for x, strip in enumerate(strips):
                columns = torch.arange(*self.seen_by[x])
                parts = strip.view(s.positions[0], s.field, s.channels, len(columns), s.maps)
                weights[:, columns, :, :, :, x - columns] = parts.permute(3, 0, 4, 2, 1)
            out.append(weights)
        return out


def fastest_strips(sizes: Sizes, compiled: bool) -> Strips:
    """The fastest of a few ways to divide the work into batches, on the present number of threads."""
    times = {}
    for ways in itertools.product({min(24, sizes.positions[0]), sizes.positions[0]}, (True, False)):
        strips = Strips(sizes, *ways, compiled)
        strips.step()  # compiles the pooling
        times[ways] = measure(strips.step, 0.5)
        print(f"best, {strips.name}: {1e3 * times[ways]:.1f} ms", file=sys.stderr)
    return Strips(sizes, *min(times, key=times.get), compiled)


def measure(step: Callable[[], object], seconds: float) -> float:
    """Median seconds of a step: of three or more after one that does not count, of a slow one of itself."""
    times, begun = [], time.perf_counter()
    while len(times) < 4 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        if times[0] > SLOW:
            return times[0]
    return statistics.median(times[1:])


def differ(name: str, steps: tuple[list, list], wanted: tuple[list, list], start: list, within: float) -> None:
    """Ends the program if losses, or changes of the weights relative to the largest, are not those wanted."""
    (losses, weights), (true_losses, true_weights) = steps, wanted
    worst = max(abs(loss - true) / abs(true) for loss, true in zip(losses, true_losses, strict=True))
    for w, true, old in zip(weights, true_weights, start, strict=True):
        worst = max(worst, ((w - true).abs().max() / (true - old).abs().max()).item())
    print(f"checked: {name} differs by {worst:.1e} at most, allowed {within:.0e}", file=sys.stderr)
    if not worst <= within:
        sys.exit(f"bench_pytorch: {name} computes something else")


def train(contender: Naive | Strips, steps: int = 1) -> tuple[list, list]:
    """Losses before each step, and the weights after all."""
    return [contender.step(CHECKED_RATE) for _ in range(steps)], contender.learnt()


def check_small(folder: Path) -> None:
    """Every way of writing the step against the float64 reference, or if that is missing against `Naive`."""
    torch.set_num_threads(1)
    sizes = Sizes(batch=5, channels=3, rows=14, cols=12, maps=4, field=5, pool=3, sparsity=0.5, epsilon=1e-8)
    steps, pictures, *weights = 3, *sizes.start(torch.float64)
    found = {"naive": train(Naive(sizes), steps)}
    for ways in itertools.product((3, 8, sizes.positions[0]), (True, False)):
        strips = Strips(sizes, *ways)
        found[f"best, {strips.name}"] = train(strips, steps)
    wanted, path = found["naive"], folder / "reference.py"
    if path.exists():
        spec = importlib.util.spec_from_file_location("reference", path)
        reference = sys.modules["reference"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(reference)
        stage = reference.Stage(sizes.field, 1, sizes.maps, sizes.pool, 1, 3, lam=sizes.sparsity, eps=sizes.epsilon)
        config = reference.Config(sizes.channels, sizes.rows, sizes.cols, [stage])
        losses = []
        for _ in range(steps):
            losses.append(reference.objective(pictures, [weights], config)[1].item())
            (weights,) = reference.sgd(pictures, [weights], config, "local", CHECKED_RATE, 1)
        wanted = losses, weights
    else:
        print(f"skipped: there is no {path} to check against; see --reference", file=sys.stderr)
    for name, outcome in found.items():
        differ(f"{name}, small", outcome, wanted, sizes.start(torch.float32)[1:], within=1e-4)


def stage_of(number: int, batch: int, folder: Path) -> tuple[Sizes, Path]:
    """Sizes of the tile of a stage of configs/paper.toml, and a config with which striate measures the same."""
    config = tomllib.loads((ROOT / "configs/paper.toml").read_text())
    stages, side, channels = config["stages"][:number], PICTURE_SIDES[number], config["input"]["channels"]
    sections = [("[input]", config["input"] | {"height": side, "width": side})]
    sections += [*(("[[stages]]", stage) for stage in stages), ("[training]", config["training"])]
    for stage, (key, value) in itertools.product(stages, EXPECTED.items()):
        if stage.get(key, value) != value:
            sys.exit(f"bench_pytorch: `{key}` is {stage[key]} in configs/paper.toml, expected {value}")
    for stage in stages[:-1]:
        side, channels = side - stage["field"] + 1 - stage["pool"] + 1, stage["maps"]
    path, lines = folder / f"stage{number}.toml", []
    for title, settings in sections:
        lines += [title, *(f"{key} = {json.dumps(value)}" for key, value in settings.items())]
    path.write_text("\n".join(lines))
    maps, field, pool, sparsity = (stages[-1][key] for key in ("maps", "field", "pool", "sparsity_weight"))
    return Sizes(batch, channels, side, side, maps, field, pool, sparsity, stages[-1].get("epsilon", 1e-4)), path


def striate_step(striate: str, config: Path, stage: int, sizes: Sizes, threads: int) -> float:
    """Median seconds of striate's step, measured by itself for a second."""
    name = f"step/stage{stage}/local-sgd"
    command = [striate, "bench", "--quiet", "--json", "--seconds", "1", "--config", str(config), "--only", name]
    command += ["--threads", str(threads), "--batch", str(sizes.batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"bench_pytorch: {' '.join(command)} failed ({done.returncode}): {done.stderr.strip()}")
    (entry,) = (e for e in json.loads(done.stdout)["entries"] if e["name"] == name)
    flops = entry["gflops"] * entry["milliseconds"] * 1e6
    if abs(flops / sizes.flops - 1) > 1e-6:
        sys.exit(f"bench_pytorch: striate's {name} has {flops:.6g} FLOPs, PyTorch's step {sizes.flops:.6g}")
    return entry["milliseconds"] / 1e3


def compare(stage: int, threads: int, args: Namespace, folder: Path) -> tuple[list[dict], list[str]]:
    """Checks all contenders at full size, then times them in turn: figures of each, and notes."""
    sizes, config = stage_of(stage, args.batch, folder)
    torch.set_num_threads(threads)
    torch._dynamo.reset()  # compiled code is for a fixed number of threads
    where, start = f"stage {stage}, {threads} threads", sizes.start(torch.float32)[1:]
    contenders, notes = {"naive": Naive(sizes), "compiled": Naive(sizes, compiled=True)}, []
    wanted = train(contenders["naive"])
    try:
        outcome = train(contenders["compiled"])
    except Exception as error:  # noqa: BLE001 - torch.compile raises all sorts
        del contenders["compiled"]
        notes.append(f"{where}: torch.compile failed, {error!r:.300}")
    else:
        differ(f"compiled, {where}", outcome, wanted, start, within=1e-3)
    best = contenders["best"] = fastest_strips(sizes, "compiled" in contenders)
    differ(f"best, {where}", train(best), wanted, start, within=1e-3)
    notes.append(f"{where}: best has {best.name}")

    times = {name: [] for name in [*contenders, "striate"]}
    for number in range(args.rounds):
        for name, contender in contenders.items():
            if number < SLOW_ROUNDS or times[name][0] < 1e3 * SLOW:
                times[name].append(1e3 * measure(contender.step, 1.0))
        times["striate"].append(1e3 * striate_step(args.striate, config, stage, sizes, threads))
        so_far = ", ".join(f"{name} {each[number]:.1f} ms" for name, each in times.items() if number < len(each))
        print(f"{where}, round {number + 1} of {args.rounds}: {so_far}", file=sys.stderr)
    medians = {name: statistics.median(each) for name, each in times.items()}
    where = {"stage": stage, "input": f"{sizes.rows}x{sizes.cols}x{sizes.channels}", "threads": threads}
    rows = []
    for name, ms in medians.items():
        speed = {"images_per_second": 1e3 * sizes.batch / ms, "gflops": sizes.flops / ms / 1e6}
        row = where | {"step": name, "milliseconds": ms} | speed | {"ratio_to_striate": ms / medians["striate"]}
        rows.append(row | {"milliseconds_by_round": times[name]})
    return rows, notes


def table(result: dict) -> str:
    """The result in Markdown."""
    lines = ["| stage | input | threads | step | ms | images/s | GFLOP/s | ratio to striate |", "| --- " * 8 + "|"]
    for row in result["rows"]:
        *words, ms, images, gflops, ratio, _ = row.values()
        lines.append(f"| {' | '.join(map(str, words))} | {ms:.1f} | {images:.1f} | {gflops:.1f} | {ratio:.2f} |")
    how = "minibatch {batch}, medians of {rounds} rounds in turn, torch {torch}, at most {peak_gb:.1f} GB"
    return "\n".join([*lines, "", *result["notes"], how.format_map(result)])


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def main() -> None:
    parser = ArgumentParser(description=__doc__, epilog=EXAMPLES, formatter_class=RawDescriptionHelpFormatter)
    add, striate = parser.add_argument, ROOT / "target/release/striate"
    reference = os.environ.get("STRIATE_REFERENCE") or ROOT / "../shared/reference"
    add("--striate", metavar="PATH", default=str(striate), help="program to compare with [target/release/striate]")
    add("--stage", choices=["1", "2", "all"], default="all", help="stage to time [all]")
    add("--threads", metavar="N,...", type=numbers, default=[1, 2], help="numbers of threads [1,2]")
    add("--rounds", metavar="N", type=int, default=5, help="turns of each contender [5]")
    add("--batch", metavar="N", type=int, default=96, help="pictures in a minibatch [96]")
    add("--reference", metavar="FOLDER", type=Path, default=Path(reference), help="where reference.py is [see above]")
    add("--json", action="store_true", help="print one JSON object instead of a table")
    args = parser.parse_args()
    if min(args.rounds, args.batch, *args.threads) < 1:
        parser.error("rounds, batch and threads are 1 or more")
    if torch is None:
        make = "python3 -m venv outputs/bench/venv && outputs/bench/venv/bin/pip install torch numpy"
        sys.exit(f"bench_pytorch: this Python has no torch; run the script with one that has:\n  {make}")
    if shutil.which(args.striate) is None:
        sys.exit(f"bench_pytorch: no program {args.striate}; run `cargo build --release`, or see --striate")

    check_small(args.reference)
    with tempfile.TemporaryDirectory() as folder:
        which = itertools.product([1, 2] if args.stage == "all" else [int(args.stage)], args.threads)
        found = [compare(stage, threads, args, Path(folder)) for stage, threads in which]
    rows, notes = (list(itertools.chain(*each)) for each in zip(*found, strict=True))
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    how = {"torch": torch.__version__, "batch": args.batch, "rounds": args.rounds, "peak_gb": peak_gb}
    result = how | {"notes": notes, "rows": rows}
    print(json.dumps(result) if args.json else table(result))


if __name__ == "__main__":
    main()
