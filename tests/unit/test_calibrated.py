"""When a camera takes a sample, what is kept of it, and which rung its profile gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edge_agent.calibrated import Calibrated
from edge_agent.config import AgentSettings
from edge_agent.frontier import Home, Step
from eyeline import ladder
from eyeline.v1 import calibration_pb2, detection_pb2

EDGE = detection_pb2.ModelRef(name="small", version="1", sha256="aa")
SCENE = calibration_pb2.SceneFingerprint(signs=b"\x0f" * 8, sure=b"\xff" * 8)
OTHER = calibration_pb2.SceneFingerprint(signs=b"\xf0" * 8, sure=b"\xff" * 8)


class CameraPath:
    """A camera's path that notes what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.lent = 0.0
        self.home: Home | None = None
        self.steps: tuple[Step, ...] = ()
        self.scene: calibration_pb2.SceneFingerprint | None = None

    def ask_sample(self) -> None:
        self.asked += 1

    def settle(self, steps: tuple[Step, ...], home: Home | None) -> None:
        self.steps, self.home = steps, home

    def lend(self, bytes_s: float) -> None:
        self.lent = bytes_s

    def fingerprint(self) -> calibration_pb2.SceneFingerprint | None:
        return self.scene


class Rig:
    def __init__(self, folder: Path, **sections: Any) -> None:
        camera = {"name": "gate", "source": "pattern:64x48@10", "calibrate": "auto"}
        camera |= sections.pop("camera", {})
        self.settings = AgentSettings.model_validate(
            {"device": "box", "state_dir": str(folder), "cameras": [camera], **sections}
        )
        self.path = CameraPath()
        self.known = Calibrated(self.settings, self.settings.cameras[0], EDGE)
        self.known.pipeline, self.known.size = self.path, lambda: (640, 480)
        self.known.settle()

    def sample(self, sample_id: bytes = b"12345678") -> calibration_pb2.CalibrationSample:
        return calibration_pb2.CalibrationSample(sample_id=sample_id, fps=4)

    def profile(self, sample_id: bytes = b"12345678", **more: Any) -> calibration_pb2.Profile:
        rungs = sorted(self.known.ladder, key=lambda it: (it.width_px, it.max_fps, -it.crf))
        return calibration_pb2.Profile(
            schema_major=1,
            sample_id=sample_id,
            propagate="smooth",
            model=detection_pb2.ModelRef(name="large", version="3", sha256="cc"),
            edge_model=more.pop("edge_model", EDGE),
            scene=SCENE,
            source_width_px=640,
            source_height_px=480,
            made_ns=more.pop("made_ns", 1),
            frontier=[
                calibration_pb2.ProfilePoint(
                    rung=ladder.to_proto(rung),
                    bytes_per_s=100.0 * (n + 1),
                    f1_even=0.9 + 0.09 * n / len(rungs),
                )
                for n, rung in enumerate(rungs)
            ],
            **more,
        )


def test_a_camera_without_a_profile_takes_one_sample(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    assert rig.known.line(0) == "no profile yet"
    for second in range(5):
        rig.known.tend(second)
    assert rig.path.asked == 1
    assert "a sample is being taken" in rig.known.line(5)
    rig.known.keep(rig.sample(), 10)
    assert rig.known.unsent
    assert rig.known.line(11) == "the sample is being sent"
    rig.known.start_sending(10, 2)
    rig.known.part_sent(12)
    assert rig.known.line(12) == "the sample is being sent, 1 of 2 parts"
    rig.known.part_sent(13)
    assert rig.known.line(13) == "the cloud scores the sample"
    assert rig.known.take(rig.profile())
    assert rig.known.line(14) == "profile by large 3"
    assert rig.path.home is not None
    assert rig.path.steps[rig.path.home.index].f1 >= 0.95
    rig.known.tend(15)
    assert rig.path.asked == 1


def test_nothing_is_taken_unless_it_may(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera={"calibrate": "off"})
    rig.known.tend(0)
    assert rig.path.asked == 0
    assert not rig.known.line(0)
    rig.known.store.wish()
    rig.known.tend(1)
    assert rig.path.asked == 1
    rig.known.keep(rig.sample(), 2)
    assert not rig.known.store.wished()


def test_a_restart_goes_on_where_it_was(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 10)
    rig.known.start_sending(10, 3)
    rig.known.part_sent(11)
    again = Rig(tmp_path)
    assert again.known.unsent
    again.known.start_sending(10, 3)
    assert again.known.sent == 1
    again.known.start_sending(20, 2)
    assert again.known.sent == 0, "parts of another size begin anew"
    again.known.take(again.profile())
    third = Rig(tmp_path)
    assert not third.known.sample
    assert third.path.home is not None, "without a hub, it sits where it sat"


def test_a_sample_that_leads_to_nothing_is_sent_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 10)
    rig.known.start_sending(100, 1)
    rig.known.part_sent(11)
    rig.known.tend(1000)
    assert not rig.known.unsent
    rig.known.tend(2000)
    assert rig.known.unsent


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"stale": "the cloud's model is now large 4"}, "the cloud's model is now large 4"),
        ({"edge_model": detection_pb2.ModelRef(sha256="bb")}, "the device's model has changed"),
    ],
)
def test_a_profile_holds_for_its_models(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 1000)
    rig.known.take(rig.profile(**change))
    assert rig.known.why(2000) == why
    rig.known.tend(2000)
    assert rig.path.asked == 0, "at most once an hour"
    assert (
        rig.known.line(2800)
        == f"profile by large 3 no longer holds: {why}, a new one in 30 min at the earliest"
    )
    assert rig.path.home is not None, "until there is a new one, the old one is the best there is"
    rig.known.tend(1000 + 3600)
    assert rig.path.asked == 1


def test_a_profile_holds_for_its_picture_and_scene(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 0)
    rig.known.take(rig.profile())
    rig.known.size = lambda: (0, 0)
    assert not rig.known.why(1), "no picture yet"
    rig.known.size = lambda: (1280, 720)
    assert rig.known.why(1) == "the camera's pictures are 1280x720 px now"
    rig.known.size = lambda: (640, 480)
    rig.path.scene = SCENE
    assert not rig.known.why(2)
    rig.path.scene = OTHER
    assert not rig.known.why(3)
    assert not rig.known.why(60)
    assert rig.known.why(64) == "the scene has changed"
    rig.path.scene = SCENE
    assert not rig.known.why(65)


def test_other_settings_need_another_profile(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 0)
    rig.known.take(rig.profile())
    again = Rig(tmp_path, encode={"width_px": 640})
    assert again.path.home is None
    assert again.known.why(1) == "the settings have changed"


def test_a_sample_that_cannot_be_scored_leaves_the_old_profile(tmp_path: Path) -> None:
    rig = Rig(tmp_path)
    rig.known.keep(rig.sample(), 0)
    rig.known.take(rig.profile())
    home = rig.path.home
    rig.known.keep(rig.sample(b"abcdefgh"), 10)
    failed = calibration_pb2.Profile(sample_id=b"abcdefgh", problem="the model sees 3 objects")
    assert rig.known.take(failed)
    assert not rig.known.sample
    assert rig.path.home == home
    assert rig.known.profile == rig.profile()


def test_target_and_budget_decide_where_it_sits(tmp_path: Path) -> None:
    rig = Rig(tmp_path, camera={"target": {"accuracy": 0.99, "budget_kbit_s": 8}})
    rig.known.take(rig.profile())
    assert rig.path.home is not None
    assert rig.path.steps[rig.path.home.index].bytes_per_s <= 1000
    assert rig.path.home.reason.startswith("no rung reaches F1 0.99 within 8 kbit/s; the best")
    assert rig.known.pace_bytes_s == 250


@pytest.mark.parametrize("data", [b"", b"\xff\xff\xff", b"{}", b'{"sent": "x"}', b"[1]"])
def test_damaged_files_start_over(tmp_path: Path, data: bytes) -> None:
    folder = tmp_path / "calibration"
    folder.mkdir()
    for kind in ("json", "profile", "sample"):
        (folder / f"gate.{kind}").write_bytes(data)
    rig = Rig(tmp_path)
    rig.known.tend(0)
    assert rig.path.home is None
    assert rig.path.asked == 1
