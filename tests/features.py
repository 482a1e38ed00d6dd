"""Runs every snippet of docs/python.md on a run, and checks what comes of them.

    python tests/features.py STRIATE FRAMES

trains the small network of configs/tiny.toml on FRAMES with the program STRIATE, once with weights in f32 and once in bf16. It fails if the
three formats of features hold different numbers, if numpy gets other values of the first stage or other neighbours than the program,
or if a thumbnail of the map is not the frame that it should be. The packages are those of readers.txt.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
import tempfile

import numpy as np
from PIL import Image

ROOT = pathlib.Path(__file__).resolve().parent.parent
STEPS = "training.steps=[200,100]"


def striate(program, *arguments):
    """Runs a command of striate; returns its result."""
    done = subprocess.run([program, *arguments, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"striate {' '.join(map(str, arguments))} failed: {done.stderr}")
    return json.loads(done.stdout)


def run_document(program):
    """Runs the commands and the Python of docs/python.md in order; returns the variables that they leave."""
    text = (ROOT / "docs/python.md").read_text()
    found, blocks = {}, re.findall(r"^```(python|sh)\n(.*?)^```$", text, re.M | re.S)
    for language, code in blocks:
        if language == "python":
            exec(compile(code, "docs/python.md", "exec"), found)
        else:
            for line in code.splitlines():
                words = shlex.split(line)
                assert words[0] == "striate", line
                striate(program, *words[1:])
    assert len(blocks) >= 9, f"only {len(blocks)} snippets found"
    return found


def close(got, want, what):
    """Fails unless two arrays agree as well as sums in f32 do."""
    error = np.abs(np.asarray(got, np.float64) - want).max()
    bound = 2e-4 * np.abs(want).max()
    assert np.shape(got) == np.shape(want) and error < bound, f"{what}: off by {error}, bound {bound}"


def check_formats(found):
    """All three formats, and what they say of themselves."""
    features, keys, table = found["features"], found["keys"], found["table"]
    maps, rows, cols = found["values"].shape[1:]
    assert features.dtype == np.float32 and features.shape == (found["index"]["count"], maps * rows * cols)
    assert np.array_equal(features, found["mapped"]), "npy has other numbers"
    assert np.array_equal(features, table.to_numpy()), "Parquet has other numbers"
    assert keys == found["names"] == list(table.index) and len(set(keys)) == len(features)
    columns = [f"{m}:{r}:{c}" for m in range(maps) for r in range(rows) for c in range(cols)]
    assert list(table.columns) == columns
    assert found["about"]["stage"] == "2" and found["about"]["kind"] == "y"
    assert found["about"]["checkpoint"].encode() == found["table_about"]
    assert np.array_equal(found["of_one_unit"].to_numpy(), found["values"][:, 3, 0, 0])


def check_first_stage(program, found):
    """Values of numpy from weights and pixels are those of the program."""
    striate(program, "encode", "outputs/run", "--stage", "1", "--kind", "a", "--out", "outputs/stage1-a.npy")
    simple, complex_ = np.load("outputs/stage1-a.npy"), np.load("outputs/stage1-h.npy")
    for number in (0, 1, len(simple) - 1):
        a, h = found["first_stage"](found["frames"][number])
        close(a.reshape(-1), simple[number], f"a of frame {number}")
        close(h.reshape(-1), complex_[number], f"h of frame {number}")


def check_bf16(program, found):
    """Both ways to read weights see the same; bf16 weights give the program's values, too."""
    model = found["checkpoint"] / "model.safetensors"
    for name, tensor in found["weights"].items():
        assert np.array_equal(found["read_tensor"](model, name), tensor), name
    model = max(pathlib.Path("outputs/bf16/checkpoints").glob("step-*")) / "model.safetensors"
    found["W1"] = found["read_tensor"](model, "stage1.W1")
    assert found["W1"].dtype == np.float32 and not np.any(found["W1"].view("<u4") & 0xFFFF)
    for name in ("whitening.mean", "whitening.matrix"):
        found["weights"][name] = found["read_tensor"](model, name)
    striate(program, "encode", "outputs/bf16", "--stage", "1", "--kind", "a", "--out", "outputs/bf16-a.npy")
    a, _ = found["first_stage"](found["frames"][0])
    close(a.reshape(-1), np.load("outputs/bf16-a.npy")[0], "a with bf16 weights")


def check_neighbours(program, found):
    """Brute force in numpy finds the frames that the program finds, with the same similarities."""
    Image.fromarray(found["frames"][7, 0]).save("outputs/frame.png")
    told = striate(program, "neighbours", "outputs/run", "outputs/frame.png")
    [image] = told["images"]
    assert told["frame_count"] == len(found["keys"]) and image["key"] == "frame"
    assert [near["frame"] for near in image["neighbours"]] == list(found["nearest"]), image
    assert [near["key"] for near in image["neighbours"]] == [found["keys"][frame] for frame in found["nearest"]]
    close([near["similarity"] for near in image["neighbours"]], found["similarities"], "similarities")
    assert pathlib.Path(image["sheet"]).is_file()


def check_map(found):
    """Frames of the map are those of the set, and neighbours on it those of brute force."""
    made, features = found["made"], found["features"]
    assert set(found["places"]) == {"pca", "tsne"} and 0 < made["explained_variance"][0] <= 1
    for places in found["places"].values():
        assert places.shape == (len(made["keys"]), 2) and abs(places.min()) < 1e-6 and places.max() == 1
    assert [found["keys"][frame] for frame in made["frames"]] == made["keys"]
    shown = features[made["frames"]].astype(np.float64)
    shown /= np.linalg.norm(shown, axis=1, keepdims=True)
    cosines = shown @ shown.T
    np.fill_diagonal(cosines, -2)
    for number in (0, len(shown) // 2, len(shown) - 1):
        near = np.array([near["similarity"] for near in made["neighbours"][number]])
        close(near, np.sort(cosines[number])[::-1][:8], f"neighbours of {number}")
        close(cosines[number][[near["index"] for near in made["neighbours"][number]]], near, f"neighbours of {number}")
        picture = np.asarray(found["thumbnail"](number), np.float64)
        difference = np.abs(picture - found["frames"][made["frames"][number], 0]).mean()
        assert difference < 12, f"thumbnail {number} is off by {difference:.1f}"
    assert len(found["most_like_the_first"]) == 8


def main():
    program, frames = (os.path.abspath(argument) for argument in sys.argv[1:3])
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        config = ROOT / "configs/tiny.toml"
        for out, precision in (("run", "f32"), ("bf16", "bf16")):
            settings = ("--set", STEPS, "--set", f"training.precision={precision}")
            striate(program, "train", config, "--frames", frames, "--out", f"outputs/{out}", *settings)
        found = run_document(program)
        check_formats(found)
        print("safetensors, npy and Parquet: the same numbers and names")
        check_first_stage(program, found)
        print("the first stage in numpy: the program's values")
        check_neighbours(program, found)
        print("neighbours by brute force in numpy: the program's")
        check_map(found)
        print("the map: frames, neighbours and thumbnails agree")
        check_bf16(program, found)
        print("bf16 weights: read, and the program's values")


if __name__ == "__main__":
    main()
