"""Compares the conversion of the bundled model with the original, which TensorFlow.js runs, on real pictures.

    npm install --prefix tfjs @tensorflow/tfjs@4.22.0
    python models/check_centernet.py package/models/centernet.json --tfjs tfjs street.mp4 photo.jpg ...

The original's input is fixed, 512x512, so the network is converted at that size. Exits with 1 when scores
differ by more than 1e-5 or distances by more than 0.01 pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convert_centernet import network
from eyeline_models.letterbox import Letterbox

SIDE = 512
# Scores, and pixels.
WITHIN = {"heat": 1e-5, "distances": 1e-2}


def pictures(paths: list[Path]) -> NDArray[np.uint8]:
    """uint8 [N, 512, 512, 3] RGB: photographs, and of a video the frame in its middle."""
    found = []
    for path in paths:
        picture: Any = (
            cv2.imread(str(path)) if path.suffix.lower() in {".jpg", ".jpeg", ".png"} else _middle(path)
        )
        if picture is None:
            raise SystemExit(f"{path} is not a picture")
        letterbox = Letterbox.fit((picture.shape[1], picture.shape[0]), (SIDE, SIDE), centred=True, fill=0)
        found.append(letterbox.apply(picture)[:, :, ::-1])
    return np.stack(found)


def _middle(path: Path) -> NDArray[Any]:
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="bgr24") for frame in container.decode(video=0)]
    return frames[len(frames) // 2]


def original(model: Path, tfjs: Path, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], str]:
    """Heat map and distances float32 [N, C, h, w] as TensorFlow.js computes them, and which one did."""
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "pictures.raw"
        raw.write_bytes(images.tobytes())
        script = Path(__file__).with_suffix(".mjs").resolve()
        run = subprocess.run(
            ["node", script, model.resolve(), raw, str(len(images)), str(SIDE), temporary],
            cwd=tfjs,
            stdout=subprocess.PIPE,
            check=True,
        )
        told = json.loads(run.stdout.splitlines()[-1])
        found = {}
        for name, (_, *shape) in told["shapes"].items():
            values = np.fromfile(Path(temporary) / f"{name}.raw", np.float32).reshape(len(images), *shape)
            found[name] = values.transpose(0, 3, 1, 2) if shape[0] == shape[1] else values
    return found, f"TensorFlow.js {told['tfjs']}, {told['backend']} backend"


def main() -> None:
    """Compare, and print the largest differences."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n", 1)[0])
    parser.add_argument("model", type=Path, help="centernet.json of the unpacked package")
    parser.add_argument("pictures", type=Path, nargs="+", help="photographs and videos")
    parser.add_argument(
        "--tfjs", type=Path, required=True, help="folder whose node_modules holds @tensorflow/tfjs"
    )
    options = parser.parse_args()
    images = pictures(options.pictures)
    wanted, what = original(options.model, options.tfjs, images)
    made = network(options.model, (SIDE, SIDE)).SerializeToString()
    session = onnxruntime.InferenceSession(made, providers=["CPUExecutionProvider"])
    feed = np.ascontiguousarray(images.transpose(0, 3, 1, 2), np.float32)
    outputs = [
        session.run(["heat", "distances"], {"network_input": feed[i : i + 1]}) for i in range(len(feed))
    ]
    wrong = []
    sys.stdout.write(f"{len(images)} pictures, {what}\n")
    for place, name in enumerate(("heat", "distances")):
        got = np.concatenate([output[place] for output in outputs])
        difference = float(np.abs(got - wanted[name]).max())
        wrong += [name] if difference > WITHIN[name] else []
        low, high = float(wanted[name].min()), float(wanted[name].max())
        sys.stdout.write(f"{name}: largest difference {difference:.2e} (values {low:.3g} to {high:.4g})\n")
    if wrong:
        raise SystemExit(f"not the original: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
