"""Compares the conversion of the bundled face model with the original, which TensorFlow.js runs, on pictures.

    npm install --prefix tfjs @tensorflow/tfjs@4.22.0
    python models/check_blazeface.py package/models/blazeface.json --tfjs tfjs photo.jpg ...

Exits with 1 when scores differ by more than 1e-5 or boxes by more than 0.01 pixels.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from convert_blazeface import OUTPUTS, SIZE, network
from eyeline_models.letterbox import Letterbox

# Scores, and pixels; by columns of the output.
WITHIN = {1: 1e-5, 16: 1e-2}


def pictures(paths: list[Path]) -> NDArray[np.uint8]:
    """uint8 [N, 256, 256, 3] RGB."""
    found = []
    for path in paths:
        picture: Any = cv2.imread(str(path))
        if picture is None:
            raise SystemExit(f"{path} is not a picture")
        letterbox = Letterbox.fit((picture.shape[1], picture.shape[0]), SIZE, centred=True, fill=0)
        found.append(letterbox.apply(picture)[:, :, ::-1])
    return np.stack(found)


def original(model: Path, tfjs: Path, images: NDArray[np.uint8]) -> tuple[dict[str, NDArray[Any]], str]:
    """The outputs, float32 [N, rows, columns], as TensorFlow.js computes them, and which one did."""
    with tempfile.TemporaryDirectory() as temporary:
        raw = Path(temporary) / "pictures.raw"
        raw.write_bytes(images.tobytes())
        script = Path(__file__).with_suffix(".mjs").resolve()
        run = subprocess.run(
            ["node", script, model.resolve(), raw, str(len(images)), str(SIZE[0]), temporary],
            cwd=tfjs,
            stdout=subprocess.PIPE,
            check=True,
        )
        told = json.loads(run.stdout.splitlines()[-1])
        found = {
            name: np.fromfile(Path(temporary) / f"{name}.raw", np.float32).reshape(len(images), *shape)
            for name, shape in OUTPUTS.items()
        }
    return found, f"TensorFlow.js {told['tfjs']}, {told['backend']} backend"


def _score(logits: NDArray[Any]) -> NDArray[Any]:
    return 1 / (1 + np.exp(-np.clip(logits, -80, 80)))


def main() -> None:
    """Compare, and print the largest differences."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("model", type=Path, help="blazeface.json of the unpacked package")
    parser.add_argument("pictures", type=Path, nargs="+", help="photographs")
    parser.add_argument(
        "--tfjs", type=Path, required=True, help="folder whose node_modules holds @tensorflow/tfjs"
    )
    options = parser.parse_args()
    images = pictures(options.pictures)
    wanted, what = original(options.model, options.tfjs, images)
    session: Any = onnxruntime.InferenceSession(
        network(options.model).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    feed = images.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(127.5) - np.float32(1)
    got = dict(zip(OUTPUTS, session.run(list(OUTPUTS), {"network_input": feed}), strict=True))
    wrong = []
    sys.stdout.write(f"{len(images)} pictures, {what}\n")
    for name, (_, columns) in OUTPUTS.items():
        one, two = (_score(it[name]) if columns == 1 else it[name] for it in (got, wanted))
        difference = float(np.abs(one - two).max())
        wrong += [name] if difference > WITHIN[columns] else []
        low, high = float(two.min()), float(two.max())
        sys.stdout.write(f"{name}: largest difference {difference:.2e} (values {low:.3g} to {high:.4g})\n")
    if wrong:
        raise SystemExit(f"not the original: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
