"""One camera's sample and profile, in memory as on the disk: what holds, what is due, which rung it gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import structlog

from edge_agent import calibration_files as files
from edge_agent.config import AgentSettings, CameraSettings
from edge_agent.frame_metrics import CALIBRATION_BYTES
from edge_agent.frontier import Home, Step, Wish, choose, steps_of
from edge_agent.plan import rung_of
from edge_agent.scene import DRIFT, drift
from eyeline import ladder
from eyeline.overhead import MESSAGE_BYTES
from eyeline.v1 import calibration_pb2, detection_pb2

_log = structlog.get_logger()

# A sample without a profile after so long is sent again: the hub lost it, or nobody scores samples.
_PATIENCE_S: Final = 1800.0
# A view has to stay another one for so long.
_DRIFT_LASTS_S: Final = 60.0


class Pipeline(Protocol):
    """What calibration needs of a camera's path."""

    def ask_sample(self) -> None: ...

    def settle(self, steps: tuple[Step, ...], home: Home | None) -> None: ...

    def lend(self, bytes_s: float) -> None: ...

    def fingerprint(self) -> calibration_pb2.SceneFingerprint | None: ...


class Calibrated:
    """One camera's sample and profile, in memory as on the disk."""

    def __init__(
        self, settings: AgentSettings, camera: CameraSettings, edge_model: detection_pb2.ModelRef | None
    ) -> None:
        self.name, self._camera, self._edge_model = camera.name, camera, edge_model
        self._calibration = settings.calibration
        self._encode = settings.encode_of(camera.name)
        self.ladder = ladder.ladder(
            rung_of(self._encode),
            settings.calibration.crfs,
            fixed_effort=self._encode.effort if self._encode.effort != "auto" else None,
        )
        self.store = files.Store(settings.state_dir, camera.name)
        self._notes = self.store.notes()
        self.profile = _usable(self.store.profile())
        self.sample_id, self.sample = self.store.sample()
        if self.sample_id.hex() != self._notes.sample_id:
            self._notes = files.Notes(sampled_s=self._notes.sampled_s, sample_id=self.sample_id.hex())
        self.pipeline: Pipeline | None = None
        self.size: Callable[[], tuple[int, int]] = lambda: (0, 0)
        self.asked_hub_s = 0.0
        self.said = ""
        # On the wire, since start.
        self.sent_bytes = 0
        self._taking = False
        self._drifted_s: float | None = None
        self._problem = ""

    # The sample

    @property
    def sent(self) -> int:
        """Parts that the hub has."""
        return self._notes.sent

    @property
    def unsent(self) -> bool:
        """Whether parts of a sample are to be sent."""
        return bool(self.sample) and (not self._notes.parts or self._notes.sent < self._notes.parts)

    @property
    def waits_for_profile(self) -> bool:
        """Whether a sample is on its way."""
        return bool(self.sample)

    @property
    def pace_bytes_s(self) -> float:
        """How fast a sample is sent."""
        budget = self._encode.budget_kbit_s
        kbit_s = self._calibration.kbit_s
        return 125 * (min(kbit_s, self._calibration.budget_share * budget) if budget is not None else kbit_s)

    def lend(self, bytes_s: float) -> None:
        """Take so much from the live pictures' budget."""
        if self.pipeline is not None:
            self.pipeline.lend(bytes_s)

    def keep(self, sample: calibration_pb2.CalibrationSample, now_s: float) -> None:
        """A new sample, to be sent."""
        self.sample_id, self.sample = sample.sample_id, sample.SerializeToString()
        self._taking, self._problem = False, ""
        self._notes = files.Notes(sampled_s=now_s, sample_id=sample.sample_id.hex())
        self.store.keep_sample(self.sample)
        self.store.keep_notes(self._notes)
        self.store.clear_wish()

    def start_sending(self, size: int, parts: int) -> None:
        """Parts of this size; a sample begun with another one is begun anew."""
        if self._notes.part_bytes != size:
            self._notes = self._notes.but(part_bytes=size, parts=parts, sent=0)

    def part_sent(self, now_s: float) -> None:
        """The hub has one part more."""
        size = (
            len(self.sample[self.sent * self._notes.part_bytes :][: self._notes.part_bytes]) + MESSAGE_BYTES
        )
        self.sent_bytes += size
        CALIBRATION_BYTES.labels(self.name).inc(size)
        self._notes = self._notes.but(sent=self._notes.sent + 1, sent_s=now_s)
        self.store.keep_notes(self._notes)

    def forget_sample(self, problem: str = "") -> None:
        """The sample has done its work, or can do none."""
        self.sample_id, self.sample, self._problem = b"", b"", problem
        self.store.forget_sample()

    # The profile

    def take(self, profile: calibration_pb2.Profile) -> bool:
        """Take over what the cloud found; whether it is news."""
        answers = bool(self.sample) and profile.sample_id == self.sample_id
        if answers:
            self.forget_sample(profile.problem)
        if profile.problem or (self.profile is not None and profile == self.profile):
            return answers
        if self.profile is not None and profile.made_ns < self.profile.made_ns:
            return answers
        try:
            steps_of(profile)
        except ValueError as problem:
            _log.warning("profile_unusable", camera=self.name, reason=str(problem))
            return answers
        self.profile = profile
        self.store.keep_profile(profile)
        self._drifted_s = None
        _log.info(
            "profile",
            camera=self.name,
            model=f"{profile.model.name} {profile.model.version}",
            frontier=len(profile.frontier),
            stale=profile.stale,
        )
        self.settle()
        return True

    def settle(self) -> None:
        """Put the camera's path onto the rung that the profile and the target say."""
        if self.pipeline is None:
            return
        steps, home = self.steps_and_home()
        self.pipeline.settle(steps, home)
        if home is not None:
            _log.info("rung_chosen", camera=self.name, rung=steps[home.index].rung.name, reason=home.reason)

    def steps_and_home(self) -> tuple[tuple[Step, ...], Home | None]:
        """The frontier, and the place on it that meets the target; none without a profile of this ladder."""
        profile = self.profile
        if profile is None or not profile.frontier or self._foreign(profile):
            return (), None
        budget, target = self._encode.budget_kbit_s, self._camera.target
        wish = Wish(
            target.accuracy,
            budget * 125 if budget is not None else None,
            target.max_delay_s,
            self._encode.batch_ms / 1e3,
        )
        steps = steps_of(profile)
        return steps, choose(steps, wish, profile.propagate)

    def _foreign(self, profile: calibration_pb2.Profile) -> bool:
        """Whether the settings no longer allow what it was made of."""
        return not {it.rung for it in steps_of(profile)} <= set(self.ladder)

    def tend(self, now_s: float) -> None:
        """Ask for a sample when one is due, and send one again that led to nothing."""
        if self.sample:
            if not self.unsent and now_s - self._notes.sent_s > _PATIENCE_S:
                _log.warning(
                    "sample_unanswered", camera=self.name, waited_s=round(now_s - self._notes.sent_s)
                )
                self._notes = files.Notes(sampled_s=self._notes.sampled_s, sample_id=self._notes.sample_id)
            return
        if self._taking or self.pipeline is None:
            return
        wished = self.store.wished()
        if wished or (self._camera.calibrate == "auto" and self.why(now_s) and not self._too_soon(now_s)):
            self._taking = True
            _log.info("sample_due", camera=self.name, reason="asked for" if wished else self.why(now_s))
            self.pipeline.ask_sample()

    def _too_soon(self, now_s: float) -> float:
        """Seconds that the next sample has to wait; 0 when it may be taken."""
        since_s = abs(now_s - self._notes.sampled_s)
        return max(0.0, self._calibration.least_interval_s - since_s) if self._notes.sampled_s else 0.0

    def why(self, now_s: float) -> str:
        """Why no profile holds, in a few words; empty when one does."""
        profile, size = self.profile, self.size()
        if profile is None or not profile.frontier:
            return self._problem or "no profile yet"
        if profile.stale:
            return profile.stale
        if self._foreign(profile):
            return "the settings have changed"
        if self._edge_model is not None and profile.edge_model.sha256 != self._edge_model.sha256:
            return "the device's model has changed"
        if size not in {(0, 0), (profile.source_width_px, profile.source_height_px)}:
            return f"the camera's pictures are {size[0]}x{size[1]} px now"
        return "the scene has changed" if self._drifts(profile, now_s) else ""

    def _drifts(self, profile: calibration_pb2.Profile, now_s: float) -> bool:
        scene = self.pipeline.fingerprint() if self.pipeline is not None else None
        if scene is None or not profile.scene.signs or drift(profile.scene, scene) <= DRIFT:
            self._drifted_s = None
            return False
        if self._drifted_s is None:
            self._drifted_s = now_s
        return now_s - self._drifted_s >= _DRIFT_LASTS_S

    def line(self, now_s: float) -> str:
        """What happens, in one line."""
        if self._taking:
            return "a sample is being taken, while something moves and the device keeps up"
        if self.unsent:
            done = f", {self._notes.sent} of {self._notes.parts} parts" if self._notes.parts else ""
            return f"the sample is being sent{done}"
        if self.sample:
            return "the cloud scores the sample"
        problem = f"the last sample could not be scored: {self._problem}" if self._problem else ""
        if self.profile is None:
            if self._camera.calibrate == "off":
                return problem
            return problem or "no profile yet"
        model = self.profile.model
        held = f"profile by {model.name} {model.version}"
        reason = self.why(now_s)
        if not reason:
            return held
        wait_s = self._too_soon(now_s)
        soon = (
            "" if self._camera.calibrate == "off" else f", a new one in {wait_s / 60:.0f} min at the earliest"
        )
        return f"{held} no longer holds: {reason}{soon if wait_s else ''}"


def _usable(profile: calibration_pb2.Profile | None) -> calibration_pb2.Profile | None:
    """What was on the disk, unless no encoder could be set to it."""
    try:
        return profile if profile is not None and steps_of(profile) else None
    except ValueError:
        return None
