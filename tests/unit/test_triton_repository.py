"""The generated model repository, read back with Triton's own schema."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from cloud_inference import triton_repository
from cloud_inference.errors import ModelMismatch
from cloud_inference.triton_repository import Serving
from tests.support.models import tiny_model


def test_the_repository_is_what_triton_expects(tmp_path: Path) -> None:
    served = triton_repository.inspect("tiny", tiny_model(tmp_path / "graph.onnx"))
    assert (served.input_size, served.rows) == ((48, 32), 4)
    root = tmp_path / "models"
    triton_repository.write(root, [served], Serving(max_batch=4, max_queue_delay_us=7, threads=3))
    triton_repository.write(root, [served], Serving(max_batch=8, max_queue_delay_us=7, threads=3))
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())
    assert files == ["tiny/1/model.onnx", "tiny/1/model.py", "tiny/config.pbtxt"]

    config = text_format.Parse((root / "tiny/config.pbtxt").read_text(), model_config_pb2.ModelConfig())
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "python", 8)
    assert config.dynamic_batching.max_queue_delay_microseconds == 7
    # Below a preferred size every batch would wait the whole delay out.
    assert not config.dynamic_batching.preferred_batch_size
    assert not config.response_cache.enable
    assert [(group.kind, group.count) for group in config.instance_group] == [(2, 1)]
    assert config.parameters["intra_op_threads"].string_value == "3"
    images = config.input[0]
    assert (images.name, images.data_type, list(images.dims)) == ("images", 2, [32, 48, 3])
    boxes, count = config.output
    assert (boxes.name, boxes.data_type, list(boxes.dims)) == ("boxes", 11, [4, 6])
    assert (count.name, count.data_type, list(count.dims)) == ("count", 8, [1])
    assert count.HasField("reshape")
    assert list(count.reshape.shape) == []


@pytest.mark.parametrize("tensor", ["images", "boxes", "count"])
def test_a_graph_with_another_signature_is_refused(tensor: str, tmp_path: Path) -> None:
    path = tiny_model(tmp_path / "graph.onnx")
    model = onnx.load(path)
    for value in (*model.graph.input, *model.graph.output):
        if value.name == tensor:
            value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    onnx.save(model, path)
    with pytest.raises(ModelMismatch, match="is not a served graph"):
        triton_repository.inspect("tiny", path)


def test_a_full_batch_fits_the_shared_memory(tmp_path: Path) -> None:
    served = triton_repository.inspect("tiny", tiny_model(tmp_path / "graph.onnx", height=416, width=416))
    assert triton_repository.shared_memory_bytes([served], Serving(max_batch=16)) > 16 * 416 * 416 * 3


def test_what_was_tuned_and_where_it_runs_is_in_the_configuration(tmp_path: Path) -> None:
    served = triton_repository.inspect("tiny", tiny_model(tmp_path / "graph.onnx"))

    def parsed(serving: Serving, form: triton_repository.Form = "onnx") -> model_config_pb2.ModelConfig:
        text = triton_repository.config_pbtxt(served, serving, form)
        return text_format.Parse(text, model_config_pb2.ModelConfig())

    tuned = Serving(
        max_batch=16,
        preferred_batch=(8, 16),
        device="auto",
        instances=2,
        max_queue=64,
        queue_timeout_us=250_000,
    )
    config = parsed(tuned)
    assert list(config.dynamic_batching.preferred_batch_size) == [8, 16]
    policy = config.dynamic_batching.default_queue_policy
    assert (policy.max_queue_size, policy.default_timeout_microseconds) == (64, 250_000)
    assert policy.allow_timeout_override
    group = config.instance_group[0]
    assert (group.KIND_AUTO, group.count) == (group.kind, 2)
    assert sorted(it.batch_size for it in config.model_warmup) == [1, 16]
    assert config.version_policy.latest.num_versions == 1
    plan = parsed(tuned, "plan")
    assert (plan.platform, plan.backend) == ("tensorrt_plan", "")
    assert plan.instance_group[0].kind == plan.instance_group[0].KIND_GPU
    # The same tensors: a model goes over from one to the other while it is served.
    assert (plan.input, plan.output) == (config.input, config.output)
    assert not parsed(Serving(warm_up=False)).model_warmup
