"""Reads a frame set of `striate sample` with the tools that people use: tarfile, webdataset, pandas and duckdb.

    python tests/readers.py STRIATE VIDEOS...

samples VIDEOS with the program STRIATE and fails if what one of these tools sees differs from what another one sees;
then writes a shard with webdataset and reads it with STRIATE. The packages are those of readers.txt.
"""

import io
import json
import pathlib
import subprocess
import sys
import tarfile
import tempfile

import duckdb
import pandas
import webdataset
from PIL import Image

SIZE = (48, 32)
PLACE = ["shard", "member", "offset", "length", "json_offset", "json_length"]


def striate_json(*command):
    """Runs a command of striate and returns its result."""
    done = subprocess.run([*command, "--json", "--quiet"], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command} failed: {done.stderr}")
    return json.loads(done.stdout)


def flat(metadata):
    """The JSON of a frame with the names of the table's columns: {"crop": {"left": 0}} becomes {"crop_left": 0}."""
    columns = {}
    for name, value in metadata.items():
        if isinstance(value, dict):
            columns.update({f"{name}_{inner}": number for inner, number in value.items()})
        else:
            columns[name] = value
    return columns


def read_with_tarfile(folder):
    """All samples of the shards by key: the picture's bytes, its extension and the JSON."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        stats = json.loads(path.with_name(path.stem + "_stats.json").read_text())
        with tarfile.open(path) as shard:
            members = [member for member in shard if member.isfile()]
            assert stats == {"shard": path.name, "frames": len(members) // 2, "bytes": path.stat().st_size}, stats
            for picture, record in zip(members[::2], members[1::2], strict=True):
                key, extension = picture.name.split(".")
                assert record.name == f"{key}.json", (picture.name, record.name)
                assert key not in samples, f"{key} twice"
                samples[key] = shard.extractfile(picture).read(), extension, json.load(shard.extractfile(record))
    return samples


def check_webdataset(folder, samples):
    """webdataset groups picture and JSON into the same samples and decodes them."""
    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    extension = next(iter(samples.values()))[1]
    seen = []
    for item in webdataset.WebDataset(shards, shardshuffle=False).decode("pil"):
        picture, _, metadata = samples[item["__key__"]]
        assert item["json"] == metadata
        assert item[extension].size == SIZE
        assert item[extension].tobytes() == Image.open(io.BytesIO(picture)).convert("RGB").tobytes()
        seen.append(item["__key__"])
    assert seen == list(samples), "webdataset gives other samples, or in another order"


def check_tables(folder, samples, result):
    """pandas and duckdb see a row for each frame and each input; the rows say what the shards say."""
    frames = pandas.read_parquet(folder / "frames.parquet")
    assert list(frames["key"]) == list(samples)
    for row in frames.to_dict("records"):
        picture, extension, metadata = samples[row["key"]]
        assert row["member"] == f"{row['key']}.{extension}"
        shard = (folder / row["shard"]).read_bytes()
        assert shard[row["offset"] :][: row["length"]] == picture
        assert json.loads(shard[row["json_offset"] :][: row["json_length"]]) == metadata
        told = {name: value for name, value in row.items() if name not in ["key", *PLACE] and not pandas.isna(value)}
        assert told == flat(metadata), (told, flat(metadata))

    inputs = pandas.read_parquet(folder / "inputs.parquet")
    assert len(inputs) == result["files"]
    assert (inputs["outcome"] == "ok").sum() == result["files"] - result["skipped"]
    assert inputs.loc[inputs["outcome"] != "ok", "reason"].str.len().gt(0).all(), "a skipped input without a reason"
    assert inputs["frames"].sum() == len(frames)
    assert (inputs["seconds_spent"] >= 0).all()

    [row] = duckdb.sql(
        f"""select count(*), count(distinct f.key), sum(f.length), count(distinct i.path)
        from '{folder}/frames.parquet' f join '{folder}/inputs.parquet' i on f.source = i.path"""
    ).fetchall()
    size = sum(len(picture) for picture, _, _ in samples.values())
    assert row == (len(frames), len(frames), size, (inputs["frames"] > 0).sum()), row


def check_foreign_shard(striate, folder, samples):
    """The program reads a shard that webdataset wrote, pictures without records."""
    folder.mkdir()
    with webdataset.TarWriter(str(folder / "foreign-000.tar")) as shard:
        for key, (picture, extension, _) in samples.items():
            shard.write({"__key__": f"a/{key}", extension: picture, "cls": 3})
    info = striate_json(striate, "frames", "info", folder)
    assert info["frames"] == len(samples), info


def main():
    striate, videos = sys.argv[1], sys.argv[2:]
    with tempfile.TemporaryDirectory() as temporary:
        temporary = pathlib.Path(temporary)
        cases = {
            "jpg": ["--per-video", "3", "--frames-per-shard", "20"],
            "png": ["--every", "1s", "--format", "png", "--fit", "letterbox", "--frames-per-shard", "1000"],
            "webp": ["--keyframes", "--format", "webp", "--grey", "--drop", "dark,uniform,duplicates"],
        }
        for name, flags in cases.items():
            folder = temporary / name
            result = striate_json(striate, "sample", *videos, "--out", folder, "--size", "%dx%d" % SIZE, *flags)
            samples = read_with_tarfile(folder)
            assert len(samples) == result["frames"] > 0
            check_webdataset(folder, samples)
            check_tables(folder, samples, result)
            print(f"{name}: {len(samples)} frames of {result['files']} inputs: all readers agree")
        check_foreign_shard(striate, temporary / "foreign", read_with_tarfile(temporary / "jpg"))
        print("a shard of webdataset: read")


if __name__ == "__main__":
    main()
