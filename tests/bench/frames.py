"""Measures `striate sample` beside the ffmpeg program, PyAV and torchcodec, side by side in one run.

    scripts/bench-frames [random keyframes dense memory files] [--rounds N] [--quick]

The films are made once from the real videos in STRIATE_DATA (or ../shared/data) and kept in outputs/bench/films:
640x360, a minute each, x264 defaults, ten of them for each interval between key frames. Contenders take turns,
A B C A B C, and the medians count. Prints Markdown.
"""

import argparse
import concurrent.futures
import hashlib
import io
import json
import math
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time

import av
import numpy
import pyarrow.parquet
from PIL import Image

import with_pyav

ROOT = pathlib.Path(__file__).resolve().parents[2]
HERE = pathlib.Path(__file__).resolve().parent
STRIATE = os.environ.get("STRIATE", str(ROOT / "target/release/striate"))
DATA = pathlib.Path(os.environ.get("STRIATE_DATA", ROOT / "../shared/data")).resolve()
FILMS = ROOT / "outputs/bench/films"
INTERVALS = {"2 s": 50, "10 s": 250}
SQUARE = "crop=360:360,scale=200:200:flags=bicubic"


def run(*command):
    """Runs a command to its end; its standard output, and an error with its last words if it fails."""
    done = subprocess.run([str(word) for word in command], capture_output=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed ({done.returncode}): {done.stderr.decode(errors='replace')[-2000:]}")
    return done.stdout


def ffmpeg(*arguments):
    return run("ffmpeg", "-nostdin", "-v", "error", "-y", *arguments)


def two_at_a_time(commands):
    """Runs commands as processes of their own, two at any time; the seconds that it took."""
    start = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda command: run(*command), commands):
            pass
    return time.perf_counter() - start


def in_turn(rounds, contenders):
    """Times each contender (a function of an empty folder that returns seconds) `rounds` times in turn."""
    seconds = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, contender in contenders.items():
            with tempfile.TemporaryDirectory(dir=FILMS.parent) as out:
                seconds[name].append(contender(pathlib.Path(out)))
    return {name: statistics.median(times) for name, times in seconds.items()}


def timed(*command):
    start = time.perf_counter()
    run(*command)
    return time.perf_counter() - start


def table(head, rows):
    print("| " + " | ".join(head) + " |")
    print("|" + " --- |" * len(head))
    for row in rows:
        print("| " + " | ".join(str(cell) for cell in row) + " |")
    print(flush=True)


def samples(frames):
    """The samples of a frame set in order: record and picture."""
    for path in sorted(frames.glob("*.tar")):
        with tarfile.open(path) as shard:
            members = list(shard)
            for picture, record in zip(members[::2], members[1::2], strict=True):
                yield json.load(shard.extractfile(record)), io.BytesIO(shard.extractfile(picture).read())


def films(gop):
    """Ten films with a key frame every `gop` frames, cut together from the real videos, each in its own way."""
    folder = FILMS / f"gop{gop}"
    folder.mkdir(parents=True, exist_ok=True)
    clips = [f"{DATA}/videos/{name}" for name in [
        "bikes.mp4", "people_walking.mp4", "cat_running_mpeg4.mp4", "film_friday.mp4", "pancake.mkv",
        "person_sign_book.mkv", "flower.webm", "cat_phone_rotated_vfr.mp4", "nasa_multistream.mp4", "bottle.mp4",
    ]]  # fmt: skip
    paths = []
    for number in range(10):
        path = folder / f"film{number}.mp4"
        paths.append(path)
        if path.exists():
            continue
        order = clips[number:] + clips[:number]
        shape = "fps=25,scale=640:360:force_original_aspect_ratio=increase,crop=640:360,setsar=1,format=yuv420p"
        parts = [f"[{i}:v:0]trim=duration=12,setpts=PTS-STARTPTS,{shape}[v{i}]" for i in range(len(order))]
        joined = "".join(f"[v{i}]" for i in range(len(order))) + f"concat=n={len(order)}[all]"
        inputs = [word for clip in order for word in ("-i", clip)]
        graph = ";".join([*parts, joined, "[all]trim=duration=60[out]"])
        keys = ["-g", gop, "-keyint_min", gop, "-sc_threshold", 0]
        unfinished = path.with_suffix(".tmp.mp4")
        ffmpeg(*inputs, "-filter_complex", graph, "-map", "[out]", "-c:v", "libx264", *keys, unfinished)
        unfinished.rename(path)
    return paths


def collection(gop, count, folder, put=shutil.copy):
    """A folder of `count` files with the ten films in turn."""
    folder.mkdir()
    for number in range(count):
        paths = films(gop)
        put(paths[number % len(paths)], folder / f"{number:05}.mp4")
    return folder


def bench_random(options):
    print("### One random frame per video\n")
    count = 20 if options.quick else 200
    rows, names = [], None
    for interval, gop in INTERVALS.items():
        with tempfile.TemporaryDirectory(dir=FILMS.parent) as temporary:
            temporary = pathlib.Path(temporary)
            videos = collection(gop, count, temporary / "videos")
            command = [STRIATE, "sample", videos, "--size", 200, "--quiet", "--threads", 2, "--out"]
            run(*command, temporary / "frames")
            jobs = [
                {"path": record["source"], "pts": record["pts"], "seconds": record["seconds"]}
                for record, _ in samples(temporary / "frames")
            ]
            assert len(jobs) == count
            list_of_jobs = temporary / "jobs.json"
            list_of_jobs.write_text(json.dumps(jobs))

            def one_ffmpeg(job, number, out):
                seek = ["-ss", f"{job['seconds']:.6f}", "-i", job["path"], "-frames:v", 1]
                return ["ffmpeg", "-nostdin", "-v", "error", "-threads", 1, *seek, "-vf", SQUARE, "-q:v", 2, out / f"{number}.jpg"]  # fmt: skip

            def script(name, *more):
                return lambda out: float(run(sys.executable, HERE / name, list_of_jobs, out, *more))

            contenders = {
                "striate": lambda out: timed(*command, out / "frames"),
                "ffmpeg -ss, two at a time": lambda out: two_at_a_time(
                    one_ffmpeg(job, number, out) for number, job in enumerate(jobs)
                ),
                "PyAV": script("with_pyav.py"),
                "torchcodec, approximate": script("with_torchcodec.py", "approximate"),
                "torchcodec, exact": script("with_torchcodec.py", "exact"),
            }
            medians = in_turn(options.rounds, contenders)
            names = list(contenders)
            rows.append([interval, *(f"{medians[name]:.2f} s" for name in names)])
            rows.append(["ratio to striate", "1", *(f"{medians[name] / medians['striate']:.2f}" for name in names[1:])])
            check_same_frames(jobs[:20], temporary)
    table(["key frames every", *names], rows)
    print(f"{count} files; medians of {options.rounds} rounds; striate and ffmpeg from the start of the process, the Python")
    print("scripts after their imports.\n")


def check_same_frames(jobs, temporary):
    """For each job: PyAV's frame with this pts has the planes of ffmpeg's, and striate's picture is ffmpeg's."""
    for number, job in enumerate(jobs):
        frame = with_pyav.frame_at(job["path"], job["pts"])
        assert frame.pts == job["pts"], (job, frame.pts)
        select = ["-i", job["path"], "-vf", f"select=eq(pts\\,{job['pts']})", "-fps_mode", "passthrough", "-frames:v", 1]
        planes = ffmpeg(*select, "-f", "rawvideo", "-pix_fmt", "yuv420p", "-")
        assert hashlib.sha1(frame.to_ndarray().tobytes()).digest() == hashlib.sha1(planes).digest(), job
        out = temporary / f"same{number}"
        run(STRIATE, "sample", job["path"], "--at", job["seconds"], "--size", "640x360", "--format", "png", "--quiet", "--out", out)  # fmt: skip
        [(record, picture)] = samples(out)
        assert record["pts"] == job["pts"], (record, job)
        expected = ffmpeg(*select, "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
        assert Image.open(picture).tobytes() == expected, job


def bench_keyframes(options):
    print("### Key frames of a long film\n")
    minutes = 2 if options.quick else 30
    rows = []
    for interval, gop in INTERVALS.items():
        with tempfile.TemporaryDirectory(dir=FILMS.parent) as temporary:
            temporary = pathlib.Path(temporary)
            paths = [films(gop)[number % 10] for number in range(minutes)]
            (temporary / "list.txt").write_text("".join(f"file '{path}'\n" for path in paths))
            film = temporary / "long.mp4"
            ffmpeg("-f", "concat", "-safe", 0, "-i", temporary / "list.txt", "-c", "copy", film)
            command = [STRIATE, "sample", film, "--keyframes", "--quiet", "--threads", 1, "--out"]
            medians = in_turn(options.rounds, {
                "keys": lambda out: timed(*command, out / "frames"),
                "full": lambda out: timed("ffmpeg", "-v", "error", "-threads", 1, "-i", film, "-f", "null", "-"),
            })  # fmt: skip
            run(*command, temporary / "frames")
            count = sum(1 for _ in samples(temporary / "frames"))
            ratio = f"{medians['full'] / medians['keys']:.1f}"
            rows.append([interval, count, f"{medians['keys']:.2f} s", f"{medians['full']:.2f} s", ratio])
    table(["key frames every", "key frames", "striate sample --keyframes", "full decode by ffmpeg", "ratio"], rows)
    print(f"A film of {minutes} minutes; one thread each; striate's time includes scaling, JPEG and the shard.\n")


def bench_dense(options):
    print("### Two frames a second of whole videos\n")
    count = 2 if options.quick else 8
    rows = []
    for size, scale in {"200x200": SQUARE, "640x360": None}.items():
        with tempfile.TemporaryDirectory(dir=FILMS.parent) as temporary:
            temporary = pathlib.Path(temporary)
            videos = collection(250, count, temporary / "videos")
            command = [STRIATE, "sample", videos, "--every", "0.5s", "--size", size, "--quiet", "--threads", 2, "--out"]

            def one_ffmpeg(video, out):
                (out / video.stem).mkdir()
                filters = ",".join(["fps=2"] + ([scale] if scale else []))
                return ["ffmpeg", "-nostdin", "-v", "error", "-threads", 1, "-i", video, "-vf", filters, "-q:v", 2, out / video.stem / "%05d.jpg"]  # fmt: skip

            medians = in_turn(options.rounds, {
                "striate": lambda out: timed(*command, out / "frames"),
                "ffmpeg": lambda out: two_at_a_time([one_ffmpeg(video, out) for video in sorted(videos.iterdir())]),
            })  # fmt: skip
            frames = 120 * count
            rates = {name: frames / seconds for name, seconds in medians.items()}
            rows.append([size, f"{rates['striate']:.0f}", f"{rates['ffmpeg']:.0f}", f"{rates['striate'] / rates['ffmpeg']:.2f}"])
    table(["pictures", "striate, frames/s", "ffmpeg -vf fps=2, frames/s", "ratio"], rows)
    print(f"{count} files of a minute, two at a time, one decoding thread each.\n")


def peak_memory(command):
    """Runs a command; the largest resident memory in MB of it and of any of its workers, at each quarter of the run."""
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    marks, start = [], time.perf_counter()
    parent = worker = 0
    while process.poll() is None:
        for status in pathlib.Path("/proc").glob("[0-9]*/status"):
            try:
                fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
                arguments = status.with_name("cmdline").read_bytes().split(b"\0")
                peak = int(fields["VmHWM"].split()[0]) / 1024
            except (OSError, KeyError):
                continue
            if int(fields["Pid"]) == process.pid:
                parent = max(parent, peak)
            elif int(fields["PPid"]) == process.pid and b"worker" in arguments:
                worker = max(worker, peak)
        marks.append((time.perf_counter() - start, parent, worker))
        time.sleep(0.02)
    if process.returncode != 0:
        sys.exit(f"{command} failed ({process.returncode})")
    took = marks[-1][0]
    at = [max(mark for mark in marks if mark[0] <= took * quarter / 4) for quarter in range(1, 5)]
    return [(parent, worker) for _, parent, worker in at]


def bench_memory(options):
    print("### Memory\n")
    with tempfile.TemporaryDirectory(dir=FILMS.parent) as temporary:
        temporary = pathlib.Path(temporary)
        large = temporary / "1080p"
        large.mkdir()
        for number in range(4):
            ffmpeg("-t", 10, "-i", films(250)[number], "-vf", "scale=1920:1080", "-c:v", "libx264", large / f"{number}.mp4")
        many = collection(50, 40 if options.quick else 2000, temporary / "many", put=os.link)
        rows = []
        for name, arguments in {
            "4 files of 1080p, --every 1s": [large, "--every", "1s"],
            "2,000 files of 640x360, one frame each": [many],
        }.items():
            marks = peak_memory([STRIATE, "sample", *arguments, "--threads", 2, "--quiet", "--out", temporary / str(len(rows))])
            rows.append([name, "a worker", *(f"{worker:.0f} MB" for _, worker in marks)])
            rows.append([name, "the parent", *(f"{parent:.0f} MB" for parent, _ in marks)])
    table(["input", "peak of", "at 25 % of the run", "50 %", "75 %", "100 %"], rows)


def psnr(picture, expected):
    """PSNR in dB of two pictures of bytes; infinite where they are the same."""
    error = numpy.mean((numpy.frombuffer(picture, "u1").astype("f8") - numpy.frombuffer(expected, "u1")) ** 2)
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def least_psnr(path, temporary):
    """The least PSNR over five random frames of a file against ffmpeg's picture at the same pts, upright, at full size."""
    first, frames = temporary / "first", temporary / "full"
    run(STRIATE, "sample", path, "--out", first, "--quiet")
    [(record, _)] = samples(first)
    width, height = record["original_width"], record["original_height"]
    if record["rotation"] in (90, 270):
        width, height = height, width
    full = ["--size", f"{width}x{height}", "--format", "png", "--interlaced", "keep", "--per-video", 5]
    run(STRIATE, "sample", path, "--out", frames, "--quiet", *full)
    least = math.inf
    for record, picture in samples(frames):
        select = f"select=eq(pts\\,{record['pts']})"
        expected = ffmpeg("-threads", 1, "-copyts", "-i", path, "-map", f"0:{record['stream']}", "-vf", select, "-fps_mode", "passthrough", "-frames:v", 1, "-f", "rawvideo", "-pix_fmt", "rgba", "-")  # fmt: skip
        colours, alpha = numpy.split(numpy.frombuffer(expected, "u1").reshape(-1, 4).astype("u2"), [3], axis=1)
        expected = ((colours * alpha + 127) // 255).astype("u1").tobytes()  # over black
        seen = Image.open(picture).convert("RGB")
        if record["crop"]["width"] != width or record["crop"]["height"] != height:
            return "pixels not square"
        if len(expected) != len(seen.tobytes()):
            return f"ffmpeg gives {len(expected)} bytes"
        least = min(least, psnr(seen.tobytes(), expected))
    return "the same bytes" if least == math.inf else f"{least:.1f} dB"


def bench_files(options):
    print("### File by file\n")
    with tempfile.TemporaryDirectory(dir=FILMS.parent) as temporary:
        temporary = pathlib.Path(temporary)
        run(STRIATE, "sample", DATA / "videos", DATA / "broken", "--per-video", 5, "--quiet", "--out", temporary / "all")
        rows = []
        for number, row in enumerate(pyarrow.parquet.read_table(temporary / "all/inputs.parquet").to_pylist()):
            folder = temporary / str(number)
            agreement = least_psnr(row["path"], folder) if row["frames"] else ""
            why = row["reason"] or row["damage"] or ""
            seconds = f"{row['seconds_spent']:.2f}"
            rows.append([row["name"], row["outcome"], row["codec"] or "", row["frames"], seconds, agreement, why])
    table(["file", "outcome", "codec", "frames", "seconds", "least agreement", "why, or damage"], rows)
    print("Agreement: PSNR of up to five random frames at full size with what the ffmpeg program, decoding with one thread,")
    print("gives for their pts; with more threads it differs from itself in damaged places.\n")


PARTS = {
    "random": bench_random,
    "keyframes": bench_keyframes,
    "dense": bench_dense,
    "memory": bench_memory,
    "files": bench_files,
}


def main():
    parser = argparse.ArgumentParser(prog="scripts/bench-frames", description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all if none is named")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of which the median counts")
    parser.add_argument("--quick", action="store_true", help="few files, one round: only to see that it works")
    options = parser.parse_args()
    if unknown := [part for part in options.parts if part not in PARTS]:
        parser.error(f"no such part: {unknown[0]}; there are {', '.join(PARTS)}")
    if options.quick:
        options.rounds = 1
    for part in options.parts or PARTS:
        PARTS[part](options)


if __name__ == "__main__":
    main()
