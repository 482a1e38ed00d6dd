"""The contender PyAV: one frame per video, two worker processes, as people write it.

    python with_pyav.py JOBS OUT

JOBS is a JSON list of {"path", "pts", "seconds"}; the pictures go to the folder OUT. Prints the seconds that the work took
after the imports.
"""

import json
import multiprocessing
import sys
import time

import av
from PIL import Image


def frame_at(path, pts):
    """The first frame whose pts is at least `pts`."""
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.thread_count = 1
        container.seek(pts, stream=stream)
        for frame in container.decode(stream):
            if frame.pts >= pts:
                return frame
    raise ValueError(f"{path}: no frame at {pts}")


def save(job):
    """Stores the middle square of the frame as a JPEG picture of 200x200."""
    number, job, out = job
    picture = frame_at(job["path"], job["pts"]).to_image()
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.resize((200, 200), Image.Resampling.BICUBIC, box=(left, top, left + side, top + side))
    picture.save(f"{out}/{number:05}.jpg", quality=95)


def main():
    with open(sys.argv[1]) as file:
        jobs = json.load(file)
    start = time.perf_counter()
    with multiprocessing.Pool(2) as pool:
        pool.map(save, [(number, job, sys.argv[2]) for number, job in enumerate(jobs)], chunksize=1)
    print(time.perf_counter() - start)


if __name__ == "__main__":
    main()
