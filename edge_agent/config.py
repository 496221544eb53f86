"""The agent's configuration: what the YAML file, the environment and flags may say."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from edge_agent.launch_state import UpdateState
from eyeline import settings
from eyeline.ladder import CRFS
from eyeline.nats_server import StoreKey
from eyeline.settings import Settings
from eyeline.subjects import check_token

ENV_PREFIX = "EYELINE_EDGE__"

Name = Annotated[str, AfterValidator(check_token)]


class Transport(StrEnum):
    """How RTP travels from an RTSP camera."""

    TCP = "tcp"
    UDP = "udp"


Point = tuple[float, float]
Mask = Annotated[tuple[Point, ...], Field(min_length=3, max_length=1000)]


class RedactSettings(Settings):
    """What of a camera's pictures nobody may see. It is applied before the first encoder, and fails closed.

    masks: polygons that are burned in, each a list of points [x, y] from the top left: fractions of width and
    height, or pixels of a picture of `size_px`; one polygon may stand alone. blur: what models find and the
    agent makes unrecognisable: whole people, the upper part of people, or faces that are near.
    """

    masks: tuple[Mask, ...] = Field(default=(), max_length=100)
    # Width and height of the picture that the masks were drawn on; they follow when the camera changes it.
    size_px: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] | None = None
    blur: tuple[Literal["person", "head", "face"], ...] = ()
    style: Literal["blur", "solid"] = "blur"
    # Names in the catalogue, or paths of served ONNX files.
    person_model: str = "centernet-mobilenetv3"
    face_model: str = "blazeface-back"
    # Lower than for answers: somebody missed is worse than a bush blurred.
    person_threshold: float = Field(default=0.2, gt=0, lt=1)
    face_threshold: float = Field(default=0.35, gt=0, lt=1)
    # Boxes are blurred with a margin of this share of their size on every side.
    margin: float = Field(default=0.15, ge=0, le=2)
    # Blurred on for so long after the model loses sight.
    hold_s: float = Field(default=2.0, ge=0, le=60)
    # The models look at every n-th frame that leaves; in between the boxes move and grow.
    every: int = Field(default=1, ge=1, le=100)
    # A frame whose models take longer is dropped.
    timeout_s: float = Field(default=1.0, gt=0, le=60)

    @field_validator("masks", mode="before")
    @classmethod
    def _one_polygon(cls, value: Any) -> Any:
        points = isinstance(value, list | tuple) and all(
            isinstance(it, list | tuple) and it and all(isinstance(n, int | float) for n in it)
            for it in value
        )
        return (value,) if points and value else value

    @model_validator(mode="after")
    def _inside(self) -> RedactSettings:
        width, height = self.size_px or (1, 1)
        for number, mask in enumerate(self.masks, 1):
            for x, y in mask:
                if not (0 <= x <= width and 0 <= y <= height):
                    bounds = f"0 to {width} and 0 to {height}"
                    hint = (
                        "" if self.size_px else "; for pixels, say of what picture: size_px: [width, height]"
                    )
                    raise ValueError(f"mask {number}: point [{x:g}, {y:g}] lies outside {bounds}{hint}")
        if len(set(self.blur)) < len(self.blur):
            raise ValueError("blur names a kind twice")
        return self

    @property
    def active(self) -> bool:
        """Whether anything is hidden at all."""
        return bool(self.masks or self.blur)

    def polygons(self) -> tuple[tuple[Point, ...], ...]:
        """The masks, in fractions of width and height."""
        width, height = self.size_px or (1, 1)
        return tuple(tuple((x / width, y / height) for x, y in mask) for mask in self.masks)


class TargetSettings(Settings):
    """What a camera's pictures have to do, for choosing a rung of its calibrated ladder."""

    # Share of the cloud model's own accuracy (F1) on untouched pictures.
    accuracy: float = Field(default=0.95, gt=0, le=1)
    # In place of encode.budget_kbit_s.
    budget_kbit_s: float | None = Field(default=None, ge=4, le=1_000_000)
    # From capture to answer, transport and model apart; None for no bound.
    max_delay_s: float | None = Field(default=None, gt=0, le=60)


class CameraSettings(Settings):
    """One camera.

    source: `rtsp://…`, a V4L2 device (`/dev/video0`), a video file, a folder of images, or
    `pattern:WIDTHxHEIGHT@FPS`. Credentials in an RTSP address may be left out and given as `user` and
    `password` (or `password_file`).
    """

    name: Name
    source: str
    # A low-resolution stream of the same camera for the gate; `source` then serves pixels.
    substream: str | None = None
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    transport: Transport = Transport.TCP
    # Files: play at the speed they were recorded, and start again at the end.
    realtime: bool = True
    loop: bool = False
    # Of an image folder; files and cameras have their own.
    fps: float = Field(default=5.0, gt=0, le=240)
    # "auto" tries the device's hardware decoders.
    hardware_decode: Literal["auto", "off"] = "auto"
    # A stream that brings nothing for so long is reopened.
    stall_timeout_s: float = Field(default=5.0, ge=1, le=300)
    redact: RedactSettings = RedactSettings()
    # Counted from capture: a live frame that is not answered by then is given up, and answered DEGRADED with
    # the reason `deadline`. Without one, answers are worth waiting for.
    deadline_s: float | None = Field(default=None, gt=0, le=3600)
    # "auto" sends the cloud a sample when no profile holds; with "off", `edge-agent calibrate` alone does.
    calibrate: Literal["off", "auto"] = "off"
    target: TargetSettings = TargetSettings()

    @field_validator("source", "substream")
    @classmethod
    def _not_empty(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must name a camera, a file, a folder or a pattern")
        return value

    @property
    def is_live(self) -> bool:
        """Whether frames are lost when nobody takes them."""
        return urlsplit(self.source).scheme in {"rtsp", "rtsps"} or self.source.startswith("/dev/")

    def secret_password(self) -> str | None:
        """The password, wherever it comes from; raises `ConfigError`."""
        return settings.secret(self.password, self.password_file, f"camera {self.name}")


class GateSettings(Settings):
    """When a frame is worth looking at."""

    enabled: bool = True
    # Share of the picture that must differ from the background, in per cent.
    min_area_percent: float = Field(default=0.05, gt=0, le=100)
    # Kept open after the last motion.
    hold_s: float = Field(default=1.0, ge=0, le=60)
    # An idle scene is sent once in a while all the same.
    refresh_s: float = Field(default=60.0, ge=1, le=3600)


class DetectSettings(Settings):
    """The model on the device."""

    enabled: bool = True
    # A name in the catalogue, or the path of a served ONNX file.
    model: str = "centernet-mobilenetv3-288"
    # Looks a second, at most.
    max_fps: float = Field(default=5.0, gt=0, le=60)
    # "auto": where the model has proved to agree with the cloud's on this camera, its answer stands and no
    # pixels are sent.
    answers: Literal["off", "auto"] = "auto"
    # Mean F1 of its answers against the cloud's that is proof enough.
    agreement: float = Field(default=0.95, ge=0.5, lt=1)
    # Share of the frames it is sure of whose pixels are sent all the same, to see whether that still holds.
    audit: float = Field(default=0.05, ge=0.01, le=1)
    # The cloud being away for so long, the model answers for it on this device, at most so often a second.
    outage_after_s: float = Field(default=3.0, ge=0.5, le=3600)
    outage_fps: float = Field(default=1.0, gt=0, le=60)
    threads: int = Field(default=1, ge=1, le=64)
    # "auto" takes the best execution provider that the installed ONNX Runtime has.
    provider: str = "auto"


class EncodeSettings(Settings):
    """What the pixels look like that leave the device."""

    # "passthrough" sends the camera's own packets wherever they can be passed on, and H.264 elsewhere.
    codec: Literal["h264", "hevc", "jpeg", "webp", "passthrough"] = "h264"
    # Longer side of the coded picture; never larger than the source.
    width_px: int = Field(default=416, ge=64, le=4096)
    crf: int = Field(default=30, ge=0, le=51)
    # Of inter-coded video: "high" needs a fifth fewer bytes at the same quantiser, for six times the CPU;
    # "auto" affords it where few frames are sent.
    effort: Literal["auto", "low", "high"] = "auto"
    # Of stills.
    quality: int = Field(default=80, ge=1, le=100)
    # At most so many frames with pixels a second; the rest is filled in by the tracker.
    max_fps: float = Field(default=2.5, gt=0, le=240)
    # The same while the camera itself pans or is carried: too much is new in each frame to be filled in.
    moving_fps: float = Field(default=10.0, gt=0, le=240)
    # What a camera may send in any ten seconds, in kilobits a second; frames are thinned out and then coded
    # more coarsely to stay inside. Without one, the rung stands.
    budget_kbit_s: float | None = Field(default=None, ge=4, le=1_000_000)
    max_chain_frames: int = Field(default=300, ge=1, le=300)
    max_chain_s: float = Field(default=600.0, gt=0, le=600)
    # Frames wait at most so long to share one message, which alone costs as much as five of them; 0 sends
    # each at once. A camera's first frame never waits.
    batch_ms: float = Field(default=1000.0, ge=0, le=60_000)


class CalibrationSettings(Settings):
    """The samples that calibration takes: a stretch of pictures at high quality while something moves."""

    seconds: float = Field(default=25.0, ge=5, le=120)
    # Of pictures as wide as the camera's own rung; a sample of wider ones is coded more coarsely.
    crf: int = Field(default=22, ge=10, le=40)
    # Quantisers of the ladder; each costs the cloud about as much as looking at the sample once.
    crfs: tuple[Annotated[int, Field(ge=1, le=51)], ...] = Field(default=CRFS, min_length=1, max_length=10)
    # How fast a sample is sent: with a byte budget so large a share of it, else so many kilobits a second.
    budget_share: float = Field(default=0.25, gt=0, le=0.9)
    kbit_s: float = Field(default=200.0, ge=4, le=1_000_000)
    # Samples that nobody asked for are so far apart at least.
    least_interval_s: float = Field(default=3600.0, ge=1)


class HubSettings(Settings):
    """Where the answers are made."""

    url: str | tuple[str, ...] = "nats://127.0.0.1:4222"
    user: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    # What `cloud-inference enroll` made for this device; instead of user and password.
    creds_file: Path | None = None
    # Talk TLS and trust this authority; one inside the credentials file serves as well.
    ca_file: Path | None = None

    @model_validator(mode="after")
    def _one_login(self) -> HubSettings:
        if self.creds_file is not None and (self.user, self.password, self.password_file) != (None,) * 3:
            raise ValueError("takes creds_file, or user and password, not both")
        return self

    def secret_password(self) -> str | None:
        """The password, wherever it comes from; raises `ConfigError`."""
        return settings.secret(self.password, self.password_file, "hub")


class Fsync(StrEnum):
    """When the spool's writes reach the disk."""

    ALWAYS = "always"
    SECOND = "1s"
    RELAXED = "2m"


class SpoolSettings(Settings):
    """What is kept on the device until the hub has it."""

    # Of the device's own broker, on loopback, where local consumers listen; 0 takes a free one while the
    # agent runs, which `edge-agent watch` finds.
    port: int = Field(default=0, ge=0, le=65535)
    storage: Literal["file", "memory"] = "file"
    max_bytes: int = Field(default=1 << 30, ge=1 << 20)
    max_age_s: float = Field(default=7 * 86_400.0, ge=1)
    fsync: Fsync = Fsync.SECOND
    # After an outage: the live picture first, the backlog first, or the live picture only.
    order: Literal["live-first", "backlog-first", "live-only"] = "live-first"
    # A secret by which the files are encrypted; any text. For a change, the one until now goes to `_before`.
    key: SecretStr | None = None
    key_file: Path | None = None
    key_file_before: Path | None = None
    # A message that waited longer than this in the spool is late: it goes into the backlog lane.
    late_after_s: float = Field(default=2.0, gt=0, le=3600)

    def store_key(self) -> StoreKey | None:
        """The key of the files, None to leave them plain; raises `ConfigError`."""
        key = settings.secret(self.key, self.key_file, "spool")
        before = settings.secret(None, self.key_file_before, "spool")
        return StoreKey(key, before) if key else None


class HttpSettings(Settings):
    """`/healthz`, `/readyz` and `/metrics`."""

    host: str = "127.0.0.1"
    # 0 takes a free port, which the log tells.
    port: int = Field(default=9600, ge=0, le=65535)


class UpdateSettings(Settings):
    """What the operator releases for this device: configuration, model, the agent itself."""

    enabled: bool = True
    # The operator's public key; None takes the one in `hub.creds_file`. Without any, nothing is taken.
    key: str | None = None
    # What is new must be well within this time, or what was there before comes back...
    confirm_s: float = Field(default=120.0, ge=1, le=3600)
    # ... and for so long.
    settle_s: float = Field(default=10.0, ge=0, le=600)


class AgentSettings(Settings):
    """The whole file."""

    tenant: Name = "default"
    site: Name = "default"
    device: Name
    state_dir: Path = Path("/var/lib/eyeline")
    hub: HubSettings = HubSettings()
    spool: SpoolSettings = SpoolSettings()
    http: HttpSettings = HttpSettings()
    cameras: tuple[CameraSettings, ...] = Field(min_length=1)
    gate: GateSettings = GateSettings()
    detect: DetectSettings = DetectSettings()
    encode: EncodeSettings = EncodeSettings()
    calibration: CalibrationSettings = CalibrationSettings()
    updates: UpdateSettings = UpdateSettings()
    # A heartbeat answers idle and skipped frames at least this often.
    heartbeat_s: float = Field(default=5.0, ge=0.1, le=60)
    # Of the messages, so many (0 to 1) begin a trace, which the cloud exports (`traces.endpoint`): 57 bytes.
    trace_share: float = Field(default=0.0, ge=0, le=1)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def encode_of(self, camera: str) -> EncodeSettings:
        """What holds for one camera: its target's budget goes before that of all."""
        for one in self.cameras:
            if one.name == camera and one.target.budget_kbit_s is not None:
                return self.encode.model_copy(update={"budget_kbit_s": one.target.budget_kbit_s})
        return self.encode

    @model_validator(mode="after")
    def _unique_cameras(self) -> AgentSettings:
        names = [camera.name for camera in self.cameras]
        doubled = {name for name in names if names.count(name) > 1}
        if doubled:
            raise ValueError(f"camera names must differ: {', '.join(sorted(doubled))} stands twice")
        return self


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings came from. file: the device's own; reload: the settings as they would be with other
    released values, raises `ConfigError`.
    """

    file: Path | None
    reload: Callable[[Mapping[str, Any]], AgentSettings]


def load(
    path: Path | None, overrides: dict[str, Any] | None = None, over: Mapping[str, Any] | None = None
) -> AgentSettings:
    """Read the agent's settings; over: values over the file's. Raises `ConfigError` with one line."""
    return settings.load(AgentSettings, path, env_prefix=ENV_PREFIX, overrides=overrides, over=over)


def load_in_force(
    path: Path | None, overrides: dict[str, Any] | None = None, released: Mapping[str, Any] | None = None
) -> AgentSettings:
    """The settings with what was released for this device over its own file; raises `ConfigError`.

    released: instead of the released configuration that is in force.
    """
    own = load(path, overrides)
    state = UpdateState.load(own.state_dir)
    file, model = state.path("config"), state.path("model")
    if released is None:
        released = settings.read_yaml(file) if file is not None else {}
    if model is not None:
        released = settings.merged({"detect": {"model": f"{model}/"}}, released)
    return load(path, overrides, released) if released else own
