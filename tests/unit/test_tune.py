"""Which setting wins, and what is written down."""

from __future__ import annotations

from pathlib import Path

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cloud_inference import triton_repository, tune
from cloud_inference.triton_repository import Serving
from cloud_inference.tune import Measured, Tried
from tests.support.models import tiny_model


def tried(per_s: float | None, **serving: int) -> Tried:
    best = None if per_s is None else Measured(4, 1, per_s, 10.0, 20.0, 2.0)
    return Tried(Serving(**serving), best, ())  # type: ignore[arg-type]


def test_every_setting_is_tried_the_cheap_ones_first() -> None:
    found = list(tune.settings(Serving(max_batch=8), [1, 2], [0, 500]))
    assert [(it.instances, it.max_queue_delay_us, it.preferred_batch) for it in found] == [
        (1, 0, ()),
        (1, 500, ()),
        (1, 500, (8,)),
        (2, 0, ()),
        (2, 500, ()),
        (2, 500, (8,)),
    ]


def test_the_fastest_wins_unless_a_cheaper_one_is_as_good() -> None:
    cheap, second, dear, none = (
        tried(99.0),
        tried(80.0, max_queue_delay_us=0),
        tried(100.0, instances=2),
        tried(None, instances=4),
    )
    assert tune.ranked([cheap, second, dear, none]) == [cheap, dear, second, none]
    better = tried(120.0, instances=2)
    assert tune.ranked([cheap, second, better, none])[0] == better


def test_the_configuration_has_the_table_above_it(tmp_path: Path) -> None:
    served = triton_repository.inspect("tiny", tiny_model(tmp_path / "graph.onnx"))
    best = tried(120.0, instances=2, max_batch=8)
    text = tune.written(served, [best, tried(None)], 50.0)
    assert text.startswith("# Measured for p95 <= 50 ms, best first:\n# instances")
    assert "no load keeps to the bound" in text
    config = text_format.Parse(text, model_config_pb2.ModelConfig())
    assert (config.max_batch_size, config.instance_group[0].count) == (8, 2)
