"""Makes `street.mp4`, the clip of the demo and the tests, from OpenCV's sample `vtest.avi`.

    python benchmarks/clips/make_street.py vtest.avi      # a copy that is here already
    python benchmarks/clips/make_street.py                # from Debian's package, needs apt-get and dpkg-deb

The quantiser is searched for the best quality below the size limit; the result is reproducible for one
version of the encoder. `PROVENANCE.md` says where the picture comes from.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import av

MEMBER = "./usr/share/doc/opencv-doc/examples/data/vtest.avi"
SOURCE_SHA256 = "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"
FPS = 10
FRAMES = 300
KEYFRAME_EVERY = 40
MAX_BYTES = 1_000_000


def main() -> int:
    """Write the clip; 0 when it was written."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", nargs="?", type=Path, help="vtest.avi (left out: from Debian's opencv-doc)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("street.mp4"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source: Path = arguments.source or from_debian(Path(folder))
        found = hashlib.sha256(source.read_bytes()).hexdigest()
        if found != SOURCE_SHA256:
            print(f"{source} is not the expected vtest.avi: sha256 is {found}, not {SOURCE_SHA256}")
            return 1
        crf = best_crf(source, Path(folder) / "trial.mp4")
        transcode(source, arguments.output, crf)
    print(f"{arguments.output}: {FRAMES} frames, CRF {crf:g}, {arguments.output.stat().st_size} bytes")
    return 0


def from_debian(folder: Path) -> Path:
    """Take vtest.avi out of Debian's opencv-doc package."""
    subprocess.run(["apt-get", "download", "opencv-doc"], cwd=folder, check=True)
    package = next(folder.glob("opencv-doc_*.deb"))
    archive = subprocess.run(["dpkg-deb", "--fsys-tarfile", package], check=True, stdout=subprocess.PIPE)
    subprocess.run(["tar", "-x", "-C", folder, MEMBER], input=archive.stdout, check=True)
    return folder / MEMBER


def best_crf(source: Path, trial: Path) -> float:
    """The lowest constant rate factor (in steps of a quarter) whose file is not over `MAX_BYTES`."""
    low, high = 4 * 18, 4 * 40
    while low < high:
        middle = (low + high) // 2
        transcode(source, trial, middle / 4)
        if trial.stat().st_size <= MAX_BYTES:
            high = middle
        else:
            low = middle + 1
    return low / 4


def transcode(source: Path, target: Path, crf: float) -> None:
    """Write the first `FRAMES` frames as H.264 with a keyframe every `KEYFRAME_EVERY` frames."""
    options = {
        "crf": f"{crf:g}",
        "preset": "veryslow",
        "x264-params": f"keyint={KEYFRAME_EVERY}:min-keyint={KEYFRAME_EVERY}:scenecut=0:threads=1",
    }
    with (
        av.open(str(source)) as incoming,
        av.open(str(target), "w", options={"movflags": "+faststart", "fflags": "+bitexact"}) as outgoing,
    ):
        picture = incoming.streams.video[0]
        video = outgoing.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = picture.width, picture.height, "yuv420p"
        for index, frame in zip(range(FRAMES), incoming.decode(video=0), strict=False):
            converted = frame.reformat(format="yuv420p")
            converted.pts, converted.time_base = index, Fraction(1, FPS)
            converted.pict_type = av.video.frame.PictureType.NONE
            outgoing.mux(video.encode(converted))
        outgoing.mux(video.encode())


if __name__ == "__main__":
    sys.exit(main())
