"""Masks that the cloud wants: they add to the device's own, hold after a restart, and fail closed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edge_agent.config import RedactSettings
from edge_agent.desired import Desired
from edge_agent.durable import write_durable
from edge_agent.errors import RedactFailed
from edge_agent.frame import Frame
from edge_agent.redact import Redactor, pixels_of
from edge_agent.redact_mask import HIDDEN_LUMA, planes_of
from eyeline.v1 import device_pb2
from tests.unit.test_redact import noise

LEFT = ((0.0, 0.0), (0.4, 0.0), (0.4, 1.0), (0.0, 1.0))
RIGHT = ((0.6, 0.0), (1.0, 0.0), (1.0, 1.0), (0.6, 1.0))


def luma(gate: Redactor) -> Any:
    return planes_of(pixels_of(gate.apply(Frame(1, 0, 0, noise((64, 32))))))[0]


def test_they_add_to_the_device_s_own_and_only_add() -> None:
    gate = Redactor(RedactSettings(masks=(LEFT,)))
    gate.hide_also([RIGHT])
    hidden = luma(gate) == HIDDEN_LUMA
    assert hidden[:, :25].all()
    assert hidden[:, 39:].all()
    assert not hidden[:, 30:34].any()
    gate.hide_also([])
    hidden = luma(gate) == HIDDEN_LUMA
    assert hidden[:, :25].all()
    assert not hidden[:, 39:].any()


def test_the_first_mask_of_all_may_come_from_the_cloud() -> None:
    gate = Redactor(RedactSettings())
    assert not (luma(gate) == HIDDEN_LUMA).any()
    gate.hide_also([RIGHT])
    assert (luma(gate)[:, 39:] == HIDDEN_LUMA).all()
    assert gate.active


def test_what_is_no_polygon_or_not_known_lets_nothing_out() -> None:
    gate = Redactor(RedactSettings())
    gate.hide_also([((0.0, 0.0), (1.0, float("nan")), (1.0, 1.0))])
    with pytest.raises(RedactFailed, match="no polygon"):
        luma(gate)
    with pytest.raises(RedactFailed):
        gate.pass_coded(b"coded")
    gate.withhold("not known")
    with pytest.raises(RedactFailed, match="not known"):
        luma(gate)
    gate.hide_also([])
    assert np.asarray(luma(gate)).shape == (32, 64)


class Follower:
    """`Desired` without a hub, and what it told."""

    def __init__(self, folder: Path) -> None:
        self.told: list[Any] = []
        hub: Any = None
        self.desired = Desired(
            hub,
            site="yard",
            device="box1",
            state_dir=folder,
            apply=self.told.append,
            unknown=lambda: self.told.append("unknown"),
        )


class Answer:
    """A hub's answer."""

    def __init__(self, data: bytes = b"", **headers: str) -> None:
        self.data = data
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    async def request(self, *_: Any, **__: Any) -> Answer:
        return self


async def test_they_are_remembered_and_a_damaged_memory_withholds_until_the_hub_answers(
    tmp_path: Path,
) -> None:
    wanted = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="gate")])
    wanted.cameras[0].masks.add().points.extend(device_pb2.MaskPoint(x=x, y=y) for x, y in LEFT)
    first = Follower(tmp_path)
    first.desired.recall()
    assert first.told == []
    answer: Any = Answer(wanted.SerializeToString(), Nats_Sequence="7")
    await first.desired._ask(answer)
    again = Follower(tmp_path)
    again.desired.recall()
    assert [list(config.cameras) for config in again.told] == [list(wanted.cameras)]
    assert again.desired.revision == 7
    (tmp_path / "desired.bin").write_bytes(b"\xff\xff")
    damaged = Follower(tmp_path)
    damaged.desired.recall()
    assert damaged.told == ["unknown"]
    nothing: Any = Answer(Status="404")
    await damaged.desired._ask(nothing)
    assert damaged.told == ["unknown", None]
    await damaged.desired._ask(nothing)
    assert len(damaged.told) == 2
    assert not (tmp_path / "desired.bin").exists()


async def test_a_hub_that_lost_them_does_not_uncover_anything(tmp_path: Path) -> None:
    wanted = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="gate")])
    told = Follower(tmp_path)
    answer: Any = Answer(wanted.SerializeToString(), Nats_Sequence="7")
    await told.desired._ask(answer)
    nothing: Any = Answer(Status="404")
    await told.desired._ask(nothing)
    assert (len(told.told), told.desired.revision) == (1, 7)
    # A hub made anew counts from one, and what it says then holds.
    other: Any = Answer(device_pb2.DesiredConfig().SerializeToString(), Nats_Sequence="1")
    await told.desired._ask(other)
    assert [len(config.cameras) for config in told.told] == [1, 0]
    await told.desired._ask(answer)
    # Taken away by somebody who meant it.
    taken: Any = Answer(Nats_Sequence="8", KV_Operation="DEL")
    await told.desired._ask(taken)
    assert told.told[-1] is None
    assert not (tmp_path / "desired.bin").exists()


async def test_what_a_hub_made_anew_says_holds_though_it_counts_as_the_former_one_did(tmp_path: Path) -> None:
    told = Follower(tmp_path)
    bare: Any = Answer(device_pb2.DesiredConfig().SerializeToString(), Nats_Sequence="1")
    await told.desired._ask(bare)
    await told.desired._ask(bare)
    assert len(told.told) == 1
    nothing: Any = Answer(Status="404")
    await told.desired._ask(nothing)
    wanted = device_pb2.DesiredConfig(cameras=[device_pb2.DesiredCamera(camera="gate")])
    masked: Any = Answer(wanted.SerializeToString(), Nats_Sequence="1")
    await told.desired._ask(masked)
    assert [len(config.cameras) for config in told.told] == [0, 1]
    again = Follower(tmp_path)
    again.desired.recall()
    await again.desired._ask(masked)
    assert [len(config.cameras) for config in again.told] == [1]


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_durable(path, b"one")
    write_durable(path, b"two")
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(OSError):
        write_durable(tmp_path / "nowhere" / "state", b"three")
