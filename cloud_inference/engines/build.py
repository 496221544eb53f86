"""From a model of the catalogue to a plan: precision, accuracy, engine, store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import onnx

from cloud_inference.engines import accuracy, tensorrt
from cloud_inference.engines.cache import EngineStore, PlanKey, Stored, graph_path
from cloud_inference.engines.tensorrt import Capability, Profile, Runtime
from cloud_inference.engines.typed import Precision, convert
from cloud_inference.errors import EngineFailed
from eyeline_models.catalogue import ModelCard

# F1 that a plan may lose against float32.
MOST_LOST: Final = 0.01

Tell = Callable[[str], None]


def _silent(_: str) -> None:
    """Says nothing."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What to build. pictures: images, folders and videos to calibrate and to measure with."""

    precision: Precision
    profile: Profile
    capability: Capability | None = None
    pictures: tuple[Path, ...] = ()
    most_pictures: int = 64
    most_lost: float = MOST_LOST


def key_of(card: ModelCard, wish: Wish, runtime: Runtime) -> PlanKey:
    """The plan's key; raises `EngineFailed` when nobody says for which GPU."""
    capability = wish.capability or tensorrt.capability_here()
    if capability is None:
        raise EngineFailed("no GPU is here: say for which one, such as --compute-capability 8.9")
    return PlanKey(
        digest=card.sha256,
        kind=runtime.kind,
        version=runtime.version,
        capability=capability,
        precision=wish.precision,
        profile=wish.profile,
        size=card.input_size,
    )


def graph(card: ModelCard, wish: Wish, store: EngineStore, tell: Tell = _silent) -> Stored:
    """The model's graph in the wished precision: from the store, or made, measured on held-out pictures and
    stored.

    Raises `EngineFailed` when it loses more than may be, or when there are no pictures to tell, and
    `BadModel`.
    """
    path = graph_path(card.sha256, wish.precision)
    known = store.get(path)
    if known is not None:
        loss = float((known.about.get("accuracy") or {}).get("loss", 0.0))
        if loss > wish.most_lost:
            raise EngineFailed(
                f"{card.name} in {wish.precision} is in the store, and {loss:.3f} of F1 is lost with it; at "
                "most "
                f"{wish.most_lost:g} may be (--max-loss)"
            )
        return known
    about: dict[str, Any] = {"model": card.name, "model_version": str(card.version), "accuracy": None}
    model = onnx.load(card.path)
    if wish.precision is Precision.FP32:
        return store.put(path, convert(model, wish.precision).SerializeToString(), about)
    if not wish.pictures:
        raise EngineFailed(
            f"{card.name} in {wish.precision} is not in the store, and making it needs pictures like those "
            "of your cameras, to measure what it loses: `cloud-inference engines convert "
            f"{card.name} --precision {wish.precision} --pictures FOLDER or VIDEO`"
        )
    calibrate, held_out = accuracy.split(accuracy.pictures(wish.pictures, wish.most_pictures))
    made = convert(model, wish.precision, accuracy.prepared(card, calibrate)).SerializeToString()
    report = accuracy.measure(card, card.path.read_bytes(), made, str(wish.precision), held_out)
    what = f"{report.pictures} held-out pictures with {report.objects} objects"
    if report.objects == 0:
        raise EngineFailed(f"{card.name} finds nothing on {what}: they cannot show what is lost")
    if report.loss > wish.most_lost:
        raise EngineFailed(
            f"{card.name} in {wish.precision} is not published: F1 {report.f1:.3f} against float32 on "
            f"{what}, so "
            f"{report.loss:.3f} is lost and at most {wish.most_lost:g} may be (--max-loss)"
        )
    tell(f"{wish.precision}: F1 {report.f1:.3f} against float32 on {what}")
    return store.put(path, made, about | {"accuracy": report.to_json()})


def plan(card: ModelCard, wish: Wish, store: EngineStore, runtime: Runtime, tell: Tell = _silent) -> Stored:
    """The plan from the store, or built from the graph and stored. Raises as `graph`, and `StoreFailed`."""
    key = key_of(card, wish, runtime)
    known = store.get(key.path)
    if known is not None:
        tell(f"in the store already: {key.path}")
        return known
    source = graph(card, wish, store, tell)
    began = time.monotonic()
    built = runtime.build(
        source.data, wish.profile, capability=wish.capability, timing_cache=store.timings(key), tell=tell
    )
    took_s = round(time.monotonic() - began, 1)
    made = store.put(key.path, built.plan, source.about | {"builder": str(runtime), "built_in_s": took_s})
    if built.timing_cache is not None:
        store.put_timings(key, built.timing_cache)
    tell(f"built by {runtime} in {took_s} s, {len(built.plan)} bytes: {key.path}")
    return made


def profile_of(text: str) -> Profile:
    """Of "1..32" or "1..8..32"; raises `EngineFailed`."""
    parts: Sequence[str] = text.split("..")
    if len(parts) not in {2, 3} or not all(part.isdigit() for part in parts):
        raise EngineFailed(f"--batch {text!r} must be LEAST..MOST or LEAST..BEST..MOST, such as 1..32")
    numbers = [int(part) for part in parts]
    if len(numbers) == 2:
        least, most = numbers
        numbers = [least, min(max(least, 8), most), most]
    return Profile(*numbers)
