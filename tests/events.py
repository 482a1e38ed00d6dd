"""Reads the event files of a training run with TensorBoard's own reader.

    python tests/events.py RUN_FOLDER

prints the tags in RUN_FOLDER/events and fails if they say something else than log.jsonl and validation.jsonl there, or if pictures or
the histogram of staleness are missing. A run that was interrupted and continued must read like any other. The packages
are those of readers.txt.
"""

import io
import json
import math
import pathlib
import re
import sys

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import (
    COMPRESSED_HISTOGRAMS,
    HISTOGRAMS,
    IMAGES,
    SCALARS,
    TENSORS,
    EventAccumulator,
)


def read_log(path):
    """The losses of a log: by step, a dictionary from stage to loss."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {line["step"]: {stage["stage"]: stage["loss"] for stage in line["stages"]} for line in lines}


ON_VALIDATION = ("validation", "dead", "saturated")


def check_scalars(events, log, validations):
    """Each curve has a point for each line of its file, or for those with its stage; losses are those of the file. Of norms
    a line of few steps may have none.
    """
    tags = events.Tags()["scalars"]
    if not any(tag.startswith("loss/") for tag in tags):
        sys.exit(f"no scalar begins with loss/: {tags}")
    for tag in tags:
        points = events.Scalars(tag)
        steps = [point.step for point in points]
        if any(later <= earlier for earlier, later in zip(steps, steps[1:])):
            sys.exit(f"{tag}: steps are not increasing: {steps}")
        of_stage = re.search(r"stage (\d+)$", tag)
        stage = int(of_stage[1]) if of_stage else None
        lines = validations if tag.startswith(ON_VALIDATION) else log
        wanted = [step for step, losses in lines.items() if stage is None or stage in losses]
        if steps != wanted and not (tag.startswith("norm/") and set(steps) < set(wanted)):
            sys.exit(f"{tag}: steps are {steps}, those of the log are {wanted}")
        if tag in (f"loss/stage {stage}", f"validation loss/stage {stage}"):
            for point in points:
                loss = lines[point.step][stage]
                if not math.isclose(point.value, loss, rel_tol=1e-5):
                    sys.exit(f"{tag} at step {point.step} is {point.value}, in its file {loss}")


def check_images(events):
    """There are pictures, of the size stated."""
    tags = events.Tags()["images"]
    if not tags:
        sys.exit("no images")
    for tag in tags:
        for image in events.Images(tag):
            picture = Image.open(io.BytesIO(image.encoded_image_string))
            picture.load()
            stated = (image.width, image.height)
            if (picture.format, picture.size) != ("PNG", stated):
                sys.exit(f"{tag} at step {image.step}: {picture.format} of size {picture.size}, stated is {stated}")


def main():
    run = pathlib.Path(sys.argv[1])
    kinds = [COMPRESSED_HISTOGRAMS, HISTOGRAMS, IMAGES, SCALARS, TENSORS]
    events = EventAccumulator(str(run / "events"), size_guidance=dict.fromkeys(kinds, 0))
    events.Reload()
    for kind, tags in events.Tags().items():
        if tags:
            print(f"{kind}: {tags}")
    log = read_log(run / "log.jsonl")
    check_scalars(events, log, read_log(run / "validation.jsonl"))
    check_images(events)
    if "staleness" not in events.Tags()["histograms"]:
        sys.exit("no histogram `staleness`")
    print(f"{len(log)} lines of the log: TensorBoard's reader agrees")


if __name__ == "__main__":
    main()
