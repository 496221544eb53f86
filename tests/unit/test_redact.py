"""The egress gate: what is hidden leaves no trace, and nothing leaves when it cannot be hidden."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import edge_agent
from edge_agent.check import check_redaction
from edge_agent.config import AgentSettings, DetectSettings, RedactSettings
from edge_agent.encode import fits, open_encoder
from edge_agent.errors import DetectFailed, RedactFailed
from edge_agent.frame import Frame
from edge_agent.redact import RedactedPicture, Redactor, pixels_of
from edge_agent.redact_mask import HIDDEN_CHROMA, HIDDEN_LUMA, SUBSAMPLING, planes_of, rasterise
from edge_agent.redact_models import Models, redactor
from edge_agent.redact_tracks import Tracks
from eyeline.errors import ConfigError, EyelineError
from eyeline.ladder import Rung
from eyeline.settings import load
from eyeline.values import Detections, FloatArray
from eyeline_models import catalogue
from tests.support.redacted import as_it_is
from tests.support.scenes import as_luma, background, picture
from tests.unit.test_pipeline import MOVING, STILL, Rig, words

SQUARE = [[0.25, 0.25], [0.75, 0.25], [0.75, 0.75], [0.25, 0.75]]
CODECS = ("h264", "hevc", "jpeg", "webp")

sizes = st.tuples(st.integers(16, 97), st.integers(16, 97))
fractions = st.floats(0, 1).map(lambda value: round(value, 4)) | st.sampled_from([0.0, 0.5, 1.0])
polygons = st.lists(st.tuples(fractions, fractions), min_size=3, max_size=7)
formats = st.sampled_from(sorted(SUBSAMPLING))


def noise(size: tuple[int, int], pixels: str = "yuv420p", seed: int = 0) -> av.VideoFrame:
    made = av.VideoFrame(*size, pixels)
    random = np.random.default_rng(seed)
    for plane in planes_of(made):
        plane[...] = random.integers(30, 226, plane.shape, np.uint8)
    return made


def copies(shown: Any) -> list[NDArray[Any]]:
    return [plane.copy() for plane in planes_of(shown)]


def redact(shown: Any, **hide: Any) -> Any:
    return pixels_of(Redactor(RedactSettings(**hide)).apply(Frame(1, 0, 0, shown)))


def inside(polygon: list[tuple[float, float]], size: tuple[int, int], seed: int) -> NDArray[np.int64]:
    """Pixels that certainly hold a point of the polygon: of its edges, and of its inside (even-odd)."""
    random = np.random.default_rng(seed)
    corners = np.array(polygon)
    steps = np.linspace(0, 1, 200)[:, None, None]
    points = (corners * (1 - steps) + np.roll(corners, -1, 0) * steps).reshape(-1, 2)
    tried = random.uniform(corners.min(0), corners.max(0), (2000, 2))
    x, y = tried[:, :1], tried[:, 1:]
    (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, 0).T
    crosses = (y1 <= y) != (y2 <= y)
    at = x1 + (y - y1) * (x2 - x1) / np.where(y2 == y1, 1, y2 - y1)
    points = np.concatenate([points, tried[(crosses & (at > x)).sum(1) % 2 == 1]]) * np.array(size)
    return np.clip(np.floor(points), 0, np.array(size) - 1).astype(np.int64)


@given(size=sizes, polygon=polygons, pixels=formats, seed=st.integers(0, 1000))
@settings(deadline=None, max_examples=150)
def test_every_sample_a_mask_touches_is_gone(
    size: tuple[int, int], polygon: list[tuple[float, float]], pixels: str, seed: int
) -> None:
    shown = noise(size, pixels, seed)
    before = copies(shown)
    made = redact(shown, masks=(polygon,))
    assert made.format.name == pixels
    luma, *chroma = planes_of(made)
    across, down = SUBSAMPLING[pixels]
    for x, y in inside(polygon, size, seed):
        assert luma[y, x] == HIDDEN_LUMA
        for plane in chroma:
            assert (plane[y // down, x // across] == HIDDEN_CHROMA).all()
    # A pixel is hidden because the mask is near, and any other is as it was, as is the camera's own picture.
    hidden = rasterise(polygon, size)
    assert (luma[~hidden] == before[0][~hidden]).all()
    assert all((one == two).all() for one, two in zip(copies(shown), before, strict=True))
    near = np.zeros(size[::-1], np.uint8)
    for x, y in inside(polygon, size, seed):
        near[y, x] = 1
    far: Any = cv2.dilate(near, np.ones((9, 9), np.uint8)) == 0
    assert not (hidden & far).sum() > 0.02 * hidden.size


@given(
    size=sizes,
    polygon=polygons,
    pixels=formats,
    codec=st.sampled_from(CODECS),
    width=st.sampled_from([64, 78, 96]),
)
@settings(deadline=None, max_examples=80)
def test_what_lies_behind_a_mask_changes_no_bit_of_what_leaves(
    size: tuple[int, int], polygon: list[tuple[float, float]], pixels: str, codec: Any, width: int
) -> None:
    """Not of the coded picture, scaled or not: two scenes that differ behind the mask only are one."""
    one, two = noise(size, pixels, 1), noise(size, pixels, 1)
    behind = np.zeros(size[::-1], bool)
    for x, y in inside(polygon, size, 1):
        behind[y, x] = True
    across, down = SUBSAMPLING[pixels]
    for index, plane in enumerate(planes_of(two)):
        rows, columns = np.nonzero(behind)
        plane[(rows // down, columns // across) if index else (rows, columns)] ^= 255
    coded = []
    for shown in (one, two):
        redactor_ = Redactor(RedactSettings(masks=(polygon,)))
        encoder = open_encoder(Rung(codec, width, 20, 90, 5.0), shown)
        coded.append(encoder.encode(redactor_.apply(Frame(1, 0, 0, shown)), keyframe=True))
        encoder.close()
    assert coded[0] == coded[1]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (33, 17), (640, 480)])
@pytest.mark.parametrize("pixels", sorted(SUBSAMPLING))
def test_a_mask_over_everything(size: tuple[int, int], pixels: str) -> None:
    made = redact(noise(size, pixels), masks=[[[0, 0], [1, 0], [1, 1], [0, 1]]])
    luma, *chroma = planes_of(made)
    assert (luma == HIDDEN_LUMA).all()
    assert all((plane == HIDDEN_CHROMA).all() for plane in chroma)


@pytest.mark.parametrize("pixels", ["rgb24", "bgr24", "yuyv422", "yuv420p10le", "nv21"])
def test_other_formats_are_redacted_too(pixels: str) -> None:
    shown = noise((64, 48)).reformat(format=pixels)
    made = redact(shown, masks=[SQUARE])
    assert made.format.name == "yuv420p"
    assert (planes_of(made)[0][13:35, 17:47] == HIDDEN_LUMA).all()
    # Encoders take the picture for what the camera's own was.
    assert fits(open_encoder(Rung("h264", 64, 20, 90, 5.0), shown), made)


def test_masks_in_pixels_follow_the_size_of_the_picture() -> None:
    hide: dict[str, Any] = {
        "masks": [[[320, 240], [640, 240], [640, 480], [320, 480]]],
        "size_px": (640, 480),
    }
    for size in ((640, 480), (320, 240), (1280, 960)):
        luma = planes_of(redact(noise(size), **hide))[0]
        width, height = size
        assert (luma[height // 2 :, width // 2 :] == HIDDEN_LUMA).all()
        assert (luma[: height // 2 - 4] != HIDDEN_LUMA).all()


def test_without_anything_to_hide_the_picture_is_the_cameras_own() -> None:
    shown = noise((64, 48))
    assert pixels_of(Redactor(RedactSettings()).apply(Frame(1, 0, 0, shown))) is shown
    assert Redactor(RedactSettings()).pass_coded(b"packet") == b"packet"


# No way around the gate


def test_only_the_gate_makes_what_encoders_take() -> None:
    shown = noise((64, 48))
    with pytest.raises(TypeError, match=r"only Redactor\.apply"):
        RedactedPicture(object(), shown)
    for codec in CODECS:
        encoder = open_encoder(Rung(codec, 64, 20, 90, 5.0), shown)  # type: ignore[arg-type]
        for raw in (shown, Frame(1, 0, 0, shown), None):
            with pytest.raises(TypeError, match="did not pass the redaction gate"):
                encoder.encode(raw, keyframe=True)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        type("Forged", (RedactedPicture,), {})(object(), shown)


def test_the_cameras_own_packets_do_not_pass_a_gate_that_hides() -> None:
    with pytest.raises(RedactFailed, match="cannot be passed on"):
        Redactor(RedactSettings(masks=[SQUARE])).pass_coded(b"packet")  # type: ignore[arg-type]


# Calls that turn pixels into bytes, or into a file. Whoever adds one elsewhere adds a way around the gate.
EMITTERS = re.compile(
    r"VideoCodecContext|CodecContext\.create\([^)]*\"w\"|imencode|imwrite|to_image|\.mux\(|add_stream"
    r"|av\.open\([^)]*\"w\"|\.tofile\(|np\.save|\.tobytes\(|Image\.fromarray"
    r"|open_coder|import coding|eyeline\.coding"
)


def test_the_agent_has_one_module_that_makes_bytes_of_pixels() -> None:
    folder = Path(edge_agent.__file__).parent
    emitters = {path.name for path in folder.glob("**/*.py") if EMITTERS.search(path.read_text())}
    # Of the scene, signs of a grid of 16 by 12 cells: what is masked is masked there too.
    assert emitters == {"encode.py", "scene.py"}
    makers = {path.name for path in folder.glob("**/*.py") if re.search(r"\b_KEY\b", path.read_text())}
    assert makers == {"redact.py"}


# Models


class Boxes:
    """A finder that does as it is told."""

    def __init__(self, *boxes: tuple[float, float, float, float]) -> None:
        self.boxes = list(boxes)
        self.act: Callable[[], object] = lambda: None
        self.looks = 0

    def find(self, frame: Frame) -> FloatArray:  # noqa: ARG002
        self.looks += 1
        self.act()
        return np.array(self.boxes, np.float32).reshape(-1, 4)


def blurring(finder: Boxes, **more: Any) -> Redactor:
    return Redactor(RedactSettings(blur=("person",), margin=0.0, **more), [finder])


def frame(number: int, shown: Any, *, opened: bool = False, step_s: float = 0.2) -> Frame:
    return Frame(number, int(number * step_s * 1e9), 0, shown, opened)


@pytest.mark.parametrize("style", ["blur", "solid"])
@pytest.mark.parametrize("pixels", sorted(SUBSAMPLING))
def test_blurred_boxes_keep_no_detail(style: Any, pixels: str) -> None:
    shown = noise((161, 121), pixels)
    before = copies(shown)
    finder = Boxes((20.5, 10.2, 60.7, 90.9), (140, 100, 400, 300), (-50, -50, 5, 5), (70, 70, 70, 70))
    made = pixels_of(blurring(finder, style=style).apply(frame(1, shown)))
    across, down = SUBSAMPLING[pixels]
    for index, (plane, old) in enumerate(zip(planes_of(made), before, strict=True)):
        a, d = (across, down) if index else (1, 1)
        part = plane[10 // d : -(-91 // d), 20 // a : -(-61 // a)]
        # A value every 11 pixels, and smooth in between.
        steps, noisy = (np.abs(np.diff(it.astype(int), axis=0)).mean() for it in (part, old))
        assert steps < noisy / 5
        assert part.std() < old.std() / 3
        assert (plane[100 // d :, 140 // a :].std(axis=(0, 1)) < 25).all()
        assert (plane[95 // d : 99 // d] == old[95 // d : 99 // d]).all()
    assert all((one == two).all() for one, two in zip(copies(shown), before, strict=True))


def test_the_lost_stay_blurred_for_a_while() -> None:
    shown, finder = noise((200, 100)), Boxes((20, 20, 60, 80))
    gate = blurring(finder, hold_s=1.0)

    def hidden(number: int) -> bool:
        made = planes_of(pixels_of(gate.apply(frame(number, shown))))[0]
        return bool(made[25:75, 25:55].std() < planes_of(shown)[0].std() / 3)

    assert hidden(1)
    finder.boxes = []
    assert [hidden(number) for number in range(2, 9)] == [True] * 5 + [False] * 2


def test_slow_cameras_hold_for_three_looks() -> None:
    tracks = Tracks(margin=0, hold_s=1.0)
    tracks.look(np.array([[0, 0, 10, 10]], np.float32), 0)
    covered = []
    for second in range(10, 50, 10):
        tracks.look(np.zeros((0, 4), np.float32), second * 10**9)
        covered.append(len(tracks.cover(second * 10**9)))
    assert covered == [1, 1, 0, 0]


def test_the_lost_are_followed_where_they_were_going() -> None:
    tracks = Tracks(margin=0.1, hold_s=2.0)
    for step in range(5):
        tracks.look(np.array([[step * 10, 0, step * 10 + 40, 80]], np.float32), step * 200_000_000)
    tracks.look(np.zeros((0, 4), np.float32), 10**9)
    (box,) = tracks.cover(1_200_000_000)
    # Last seen from 40 to 80, at 50 px a second; by now from 60 to 100.
    assert box[0] <= 40 - 4
    assert box[2] >= 96
    tracks.clear()
    assert not len(tracks.cover(10**9))


def test_looks_may_be_rarer_than_frames() -> None:
    shown, finder = noise((100, 100)), Boxes((10, 10, 40, 40))
    gate = blurring(finder, every=3)
    for number in range(1, 8):
        gate.apply(frame(number, shown, step_s=0.1))
    assert finder.looks == 3
    # Never blind for longer than half a second, and never after the camera came back or changed.
    gate.apply(Frame(8, 20 * 10**9, 0, shown))
    gate.apply(Frame(9, 20 * 10**9 + 1, 0, shown, opened=True))
    gate.apply(Frame(10, 20 * 10**9 + 2, 0, noise((80, 80))))
    assert finder.looks == 6


def test_a_reopened_camera_forgets_whom_it_saw() -> None:
    shown, finder = noise((100, 100)), Boxes((10, 10, 40, 40))
    gate = blurring(finder)
    gate.apply(frame(1, shown))
    finder.boxes = []
    made = pixels_of(gate.apply(frame(2, shown, opened=True)))
    assert (planes_of(made)[0] == planes_of(shown)[0]).all()


def test_masks_lie_over_blur() -> None:
    finder = Boxes((0, 0, 64, 48))
    gate = Redactor(RedactSettings(blur=("person",), masks=(tuple(map(tuple, SQUARE)),)), [finder])  # type: ignore[arg-type]
    luma = planes_of(pixels_of(gate.apply(frame(1, noise((64, 48))))))[0]
    assert (luma[13:35, 17:47] == HIDDEN_LUMA).all()


# Failing closed


def test_a_model_that_breaks_lets_nothing_out() -> None:
    shown, finder = noise((64, 48)), Boxes()
    gate = blurring(finder)

    def broken() -> None:
        raise RuntimeError("CUDA failure 2\nat line 5")

    finder.act = broken
    for number in range(1, 4):
        with pytest.raises(RedactFailed, match=r"^redaction failed: CUDA failure 2$"):
            gate.apply(frame(number, shown))
    finder.act = lambda: None
    assert gate.apply(frame(4, shown)).size == (64, 48)


def test_a_failed_look_is_made_up_for_at_once() -> None:
    """With rare looks, frames in between must not go out on what an older look saw."""
    shown, finder = noise((64, 48)), Boxes()
    gate = blurring(finder, every=3)
    gate.apply(frame(1, shown, step_s=0.1))

    def broken() -> None:
        raise RuntimeError("no")

    finder.act = broken
    gate.apply(frame(2, shown, step_s=0.1))
    gate.apply(frame(3, shown, step_s=0.1))
    for number in (4, 5, 6):
        with pytest.raises(RedactFailed):
            gate.apply(frame(number, shown, step_s=0.1))


def test_a_late_model_lets_nothing_out_and_blocks_nobody() -> None:
    shown, finder, go_on = noise((64, 48)), Boxes((0, 0, 64, 48)), threading.Event()
    gate = blurring(finder, timeout_s=0.05)
    finder.act = lambda: go_on.wait(30)
    with pytest.raises(RedactFailed, match=r"did not answer within 0\.05 s"):
        gate.apply(frame(1, shown))
    with pytest.raises(RedactFailed, match="still works on an earlier frame"):
        gate.apply(frame(2, shown))
    finder.act = lambda: None
    go_on.set()
    for number in range(3, 3000):
        try:
            made = pixels_of(gate.apply(frame(number, shown)))
        except RedactFailed:
            threading.Event().wait(0.001)
            continue
        assert planes_of(made)[0].std() < 25
        return
    raise AssertionError("the gate did not recover")


def test_a_gate_with_too_few_finders_is_not_made() -> None:
    with pytest.raises(ValueError, match="1 kinds are to be blurred, 0 finders given"):
        Redactor(RedactSettings(blur=("person",)))


def agent_settings(**hide: Any) -> AgentSettings:
    camera = {"name": "door", "source": "pattern:64x48@5", "redact": hide}
    return AgentSettings.model_validate({"device": "box1", "cameras": [camera]})


def test_an_absent_model_lets_nothing_out_until_it_comes() -> None:
    attempts: list[str] = []
    clock = [0.0]

    def absent(wanted: DetectSettings) -> Any:
        attempts.append(wanted.model)
        raise DetectFailed("edge model: no model is named 'gone'")

    configured = agent_settings(blur=["person"], person_model="gone")
    models = Models(configured.detect, load=absent, now_s=lambda: clock[0])
    gate = redactor(configured, "door", models)
    for number in range(1, 4):
        with pytest.raises(RedactFailed, match=r"^model: no model is named 'gone'$"):
            gate.apply(frame(number, noise((64, 48))))
    assert attempts == ["gone"]
    clock[0] = 6.0
    with pytest.raises(RedactFailed):
        gate.apply(frame(4, noise((64, 48))))
    assert attempts == ["gone"] * 2


def test_a_model_that_knows_no_people_lets_nothing_out() -> None:
    gate = redactor(agent_settings(blur=["person"], person_model="blazeface-back"), "door")
    with pytest.raises(RedactFailed, match="blazeface-back knows no person"):
        gate.apply(Frame(1, 0, 0, noise((64, 48))))


def test_a_camera_that_is_not_configured_has_no_gate() -> None:
    with pytest.raises(ValueError, match="no camera attic in the settings"):
        redactor(agent_settings(), "attic")


def test_heads_are_the_upper_part_of_people() -> None:
    people = Detections.build([[10, 20, 30, 120], [0, 0, 50, 50]], [0.3, 0.9], [0, 1], ["person", "dog"])

    class Model:
        card = catalogue.load("centernet-mobilenetv3")

        def detect(self, frame: Frame, *, threshold: float | None = None) -> Detections:  # noqa: ARG002
            assert threshold == 0.2
            return people

    models = Models(DetectSettings(), {"centernet-mobilenetv3": Model()})  # type: ignore[dict-item]
    shown = noise((64, 128))
    made = pixels_of(redactor(agent_settings(blur=["head"], margin=0), "door", models).apply(frame(1, shown)))
    changed = planes_of(made)[0] != planes_of(shown)[0]
    assert changed[10:53, 10:30].mean() > 0.9
    changed[10:53, 10:30] = False
    assert not changed.any()
    assert people.boxes[0].tolist() == [10, 20, 30, 120]


def test_bundled_models_find_whom_they_should() -> None:
    street = Path(__file__).parents[2] / "benchmarks" / "clips" / "street.mp4"
    with av.open(str(street)) as container:
        shown = next(iter(container.decode(video=0)))
    settings_ = agent_settings(blur=["person", "face"], timeout_s=60)
    made = pixels_of(redactor(settings_, "door").apply(Frame(1, 0, 0, shown)))
    changed = planes_of(made)[0] != planes_of(shown)[0]
    assert 0.01 < changed.mean() < 0.5


def test_check_says_what_redaction_takes_or_lacks() -> None:
    (good,) = check_redaction(agent_settings(blur=["face"], masks=[SQUARE]))
    assert good.ok
    assert re.fullmatch(r"1 masks?, face: \d+ ms a picture", good.found)
    (bad,) = check_redaction(agent_settings(blur=["person"], person_model="gone"))
    assert not bad.ok
    assert bad.found.startswith("no pixels would leave: model: no model is named 'gone'")
    assert not list(check_redaction(agent_settings()))


# In the frame path


def test_what_cannot_be_redacted_is_answered_and_ends_the_chain() -> None:
    rig, finder = Rig(gate={"enabled": False}), Boxes()
    rig.pipeline._redactor = blurring(finder)
    rig.show(STILL, STILL)

    def broken() -> None:
        raise RuntimeError("no memory")

    finder.act = broken
    rig.show(STILL)
    assert rig.pipeline.redaction_problem == "redaction failed: no memory"
    finder.act = lambda: None
    # Tried again after 0.2 s, which is two frames.
    rig.show(STILL, STILL, STILL)
    assert words(rig.finish()) == "K P redaction_failed2 K P"
    assert not rig.pipeline.redaction_problem
    assert dict(rig.pipeline.counts().dropped) == {"redaction_failed": 2}


def test_edge_answers_have_nobody_behind_masks() -> None:
    hide = {"masks": [[[0, 0], [0.2, 0], [0.2, 0.2], [0, 0.2]]]}
    answers = []
    for redact_ in (hide, {}):
        camera = {"name": "gate", "source": "x", "redact": redact_}
        rig = Rig(cameras=[camera], gate={"enabled": False})
        rig.show(STILL)
        answers.append([len(it.access_unit.edge.detections) for it in rig.finish()])
    assert answers == [[0], [1]]


def test_motion_behind_a_mask_opens_no_gate() -> None:
    words_ = []
    for redact_ in ({"masks": [[[0, 0], [1, 0], [1, 1], [0, 1]]]}, {}):
        rig = Rig(cameras=[{"name": "gate", "source": "x", "redact": redact_}])
        rig.show(STILL, STILL, *MOVING, *MOVING)
        words_.append(words(rig.finish()))
    assert words_ == ["K i5", "K i1 P P P P"]


# Detections and motion behind masks


def test_masked_areas_yield_no_detections() -> None:
    found = Detections.build(
        [[30, 20, 34, 28], [0, 0, 10, 10], [20, 0, 44, 20], [60, 40, 90, 90]],
        [0.9, 0.8, 0.7, 0.6],
        [0, 0, 0, 0],
        ["person"] * 4,
    )
    gate = Redactor(RedactSettings(masks=(tuple(map(tuple, SQUARE)),)))  # type: ignore[arg-type]
    assert gate.visible(found, (64, 48)).scores.tolist() == pytest.approx([0.8, 0.7, 0.6])
    assert Redactor(RedactSettings()).visible(found, (64, 48)) is found


def test_nothing_moves_behind_a_mask() -> None:
    gate = Redactor(RedactSettings(masks=(tuple(map(tuple, SQUARE)),)))  # type: ignore[arg-type]
    still = picture(as_luma(background(64, 48)))
    moved = as_luma(background(64, 48))
    moved[14:34, 18:46] = 255
    one, two = (gate.gate_luma(Frame(1, 0, 0, it)) for it in (still, picture(moved)))
    assert (one == two).all()
    # A substream is masked in its own size.
    small = gate.gate_luma(Frame(1, 0, 0, still, gate_picture=noise((32, 24))))
    assert (small[7:17, 9:23] == HIDDEN_LUMA).all()


# Settings


@pytest.mark.parametrize(
    ("hide", "words"),
    [
        ({"masks": [[[0, 0], [200, 0], [200, 100]]]}, "for pixels, say of what picture: size_px"),
        (
            {"masks": [[[0, 0], [641, 0], [2, 2]]], "size_px": [640, 480]},
            "lies outside 0 to 640 and 0 to 480",
        ),
        ({"masks": [[[0, 0], [1, 1]]]}, "masks"),
        ({"blur": ["person", "person"]}, "blur names a kind twice"),
        ({"blur": ["dog"]}, "blur"),
        ({"mask": []}, "masks"),
    ],
)
def test_settings_that_would_hide_nothing_are_refused(
    tmp_path: Path, hide: dict[str, Any], words: str
) -> None:
    cameras = [{"name": "door", "source": "x", "redact": hide}]
    with pytest.raises(ConfigError, match=re.escape(words)) as caught:
        load(
            AgentSettings,
            None,
            env_prefix="EYELINE_EDGE__",
            environ={},
            overrides={"device": "box1", "cameras": cameras},
        )
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, EyelineError)


def test_one_polygon_may_stand_alone() -> None:
    assert RedactSettings.model_validate({"masks": SQUARE}) == RedactSettings.model_validate(
        {"masks": [SQUARE]}
    )


def test_helper_hides_nothing() -> None:
    shown = noise((32, 32))
    assert pixels_of(as_it_is(shown)) is shown
