"""The contender torchcodec: one frame per video, two worker processes, as people write it.

    python with_torchcodec.py JOBS OUT MODE

JOBS is a JSON list of {"path", "pts", "seconds"}; the pictures go to the folder OUT; MODE is `exact` or `approximate`,
torchcodec's ways to seek. Prints the seconds that the work took after the imports.
"""

import json
import multiprocessing
import sys
import time

from PIL import Image
from torchcodec.decoders import VideoDecoder


def save(job):
    """Stores the middle square of the frame as a JPEG picture of 200x200."""
    number, job, out, mode = job
    decoder = VideoDecoder(job["path"], seek_mode=mode, num_ffmpeg_threads=1, dimension_order="NHWC")
    # A little into the frame: times are rounded.
    picture = Image.fromarray(decoder.get_frame_played_at(job["seconds"] + 1e-4).data.numpy())
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.resize((200, 200), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    picture.save(f"{out}/{number:05}.jpg", quality=95)


def main():
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    start = time.perf_counter()
    with multiprocessing.Pool(2) as pool:
        pool.map(save, [(number, job, sys.argv[2], sys.argv[3]) for number, job in enumerate(jobs)], chunksize=1)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
