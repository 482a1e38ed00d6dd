"""How test faces must be cut to be framed like the faces among the unlabelled pictures: `striate sample --part`.

Looks for the square of the test pictures whose mean, each picture's mean and contrast removed, is most like that of the faces to learn
from. No network and no other pictures take part. Needs numpy and Pillow.

    python3 scripts/framing.py ../shared/data
"""

import csv
import io
import pathlib
import sys
import tarfile

import numpy as np
from PIL import Image

SIDE = 32


def pictures(tar, wanted):
    with tarfile.open(tar) as members:
        for member in members:
            if member.name.endswith(".jpg") and wanted(member.name):
                yield Image.open(io.BytesIO(members.extractfile(member).read())).convert("L")


def standardised(values):
    values = np.asarray(values, np.float64) - np.mean(values)
    return values / (values.std() + 1e-6)


def main(data):
    with open(data / "unlabelled/origin.csv") as lines:
        faces = {row["key"] for row in csv.DictReader(lines) if row["content"] == "face"}
    shards = sorted((data / "unlabelled").glob("*.tar"))
    learned = [p for shard in shards for p in pictures(shard, lambda name: pathlib.Path(name).stem in faces)]
    target = standardised(np.mean([standardised(p) for p in learned], 0))
    for folder in ("lfw_gray", "film_colour"):
        whole = list(pictures(data / "images/faces.tar", lambda name: f"/{folder}/" in name))
        side = whole[0].width
        mean = Image.fromarray(np.mean([standardised(p) for p in whole], 0).astype(np.float32))
        best = (-1.0, None)
        for share in np.arange(0.5, 1.001, 0.02):
            places = range(int(side * (1 - share) + 1e-9) + 1)
            for left in places:
                for top in places:
                    box = (left, top, left + share * side, top + share * side)
                    cut = mean.resize((SIDE, SIDE), Image.LANCZOS, box=box)
                    likeness = float((standardised(cut) * target).mean())
                    best = max(best, (likeness, (left / side, top / side, share, share)))
        part = ",".join(f"{x:.3f}" for x in best[1])
        print(f"{folder}: {len(whole)} pictures, --part {part}, correlation {best[0]:.3f}; {len(learned)} faces to learn from")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
