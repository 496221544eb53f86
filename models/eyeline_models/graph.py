"""Writing ONNX graphs node by node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import ArrayLike, DTypeLike
from onnx import TensorProto, helper, numpy_helper

OPSET: Final = 17
# Readable by the ONNX Runtimes and TensorRTs of the last years.
IR_VERSION: Final = 9
_TYPES: Final[dict[Any, int]] = {
    np.float32: TensorProto.FLOAT,
    np.int64: TensorProto.INT64,
    np.int32: TensorProto.INT32,
}


class Graph:
    """Collects nodes; every method returns the name of what it makes."""

    def __init__(self, opset: int = OPSET) -> None:
        self.opset = opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._count = 0

    def name(self, hint: str) -> str:
        """A name that is not taken."""
        self._count += 1
        return f"eyeline/{hint}_{self._count}"

    def constant(self, value: ArrayLike, dtype: DTypeLike) -> str:
        """A tensor that is part of the graph."""
        name = self.name("const")
        self.initializers.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def floats(self, value: ArrayLike) -> str:
        """A float32 constant."""
        return self.constant(value, np.float32)

    def ints(self, value: ArrayLike) -> str:
        """An int64 constant."""
        return self.constant(value, np.int64)

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """A node with one output."""
        return self.ops(kind, *inputs, outputs=[output or self.name(kind)], **attributes)[0]

    def ops(self, kind: str, *inputs: str, outputs: Sequence[str], **attributes: Any) -> list[str]:
        """A node with several outputs."""
        self.nodes.append(helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes))
        return list(outputs)

    def reduce(self, kind: str, value: str, axes: Sequence[int], *, keepdims: int) -> str:
        """ReduceMax or ReduceMean, whose axes became an input with opset 18."""
        if self.opset < 18:
            return self.op(kind, value, axes=list(axes), keepdims=keepdims)
        return self.op(kind, value, self.ints(axes), keepdims=keepdims)

    def cast(self, value: str, dtype: type) -> str:
        """To float32, int64 or int32."""
        return self.op("Cast", value, to=_TYPES[dtype])

    def columns(self, value: str, count: int) -> list[str]:
        """The last axis of 3-D `value` as `count` tensors whose last axis is 1."""
        names = [self.name("column") for _ in range(count)]
        return self.ops("Split", value, self.ints([1] * count), outputs=names, axis=2)
