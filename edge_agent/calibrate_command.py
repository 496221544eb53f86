"""`edge-agent calibrate`: asks the running agent for a sample, and shows what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from rich.table import Table

from edge_agent.calibrated import Calibrated
from edge_agent.calibration_files import Store
from edge_agent.config import AgentSettings
from eyeline import lock
from eyeline.errors import ConfigError

_POLL_S: Final = 0.5


def chosen(settings: AgentSettings, camera: str | None) -> list[str]:
    """The cameras meant; raises `ConfigError` for one that there is not."""
    names = [it.name for it in settings.cameras]
    if camera is not None and camera not in names:
        raise ConfigError(f"no camera is named {camera!r}; the configuration has: {', '.join(names)}")
    return names if camera is None else [camera]


def ask(settings: AgentSettings, cameras: Sequence[str]) -> dict[str, bytes]:
    """Ask for samples; ids of the profiles there are. Raises `ConfigError` when no agent would hear it."""
    if not lock.is_held(settings.state_dir / "lock"):
        raise ConfigError(
            f"no agent runs with state_dir {settings.state_dir}: start it, it takes the sample; or set the "
            "camera's `calibrate: auto`"
        )
    before = {}
    for name in cameras:
        store = Store(settings.state_dir, name)
        profile = store.profile()
        before[name] = profile.sample_id if profile is not None else b""
        try:
            store.wish()
        except OSError as problem:
            raise ConfigError(
                f"{settings.state_dir} cannot be written ({problem.strerror}): run this as the agent's user"
            ) from None
    return before


def follow(
    settings: AgentSettings, before: dict[str, bytes], say: Callable[[str], None], timeout_s: float
) -> list[str]:
    """Tell what happens until each camera has a new profile, or a problem; those that have none in time."""
    waiting, said = dict(before), dict.fromkeys(before, "")
    end = time.monotonic() + timeout_s
    while waiting and time.monotonic() < end:
        for name in list(waiting):
            store = Store(settings.state_dir, name)
            profile, line = store.profile(), store.said()
            if profile is not None and profile.sample_id != waiting[name]:
                del waiting[name]
                continue
            if line and line != said[name]:
                said[name] = line
                say(f"{name}: {line}")
        time.sleep(_POLL_S)
    return list(waiting)


def profile_of(settings: AgentSettings, camera: str) -> dict[str, Any] | None:
    """A camera's profile and the rung it gives, as plain values; None without one."""
    (one,) = (it for it in settings.cameras if it.name == camera)
    known = Calibrated(settings, one, None)
    steps, home = known.steps_and_home()
    if known.profile is None:
        return None
    profile = known.profile
    return {
        "camera": camera,
        "model": f"{profile.model.name} {profile.model.version}",
        "made": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(profile.made_ns / 1e9)),
        "sample": {"pictures": profile.pictures, "bytes": profile.sample_bytes},
        "scored": profile.scored,
        "stale": profile.stale,
        "rung": steps[home.index].rung.name if home is not None else None,
        "why": home.reason if home is not None else "the settings have changed since",
        "frontier": [
            {
                "rung": it.rung.name,
                "bytes_per_s": round(it.bytes_per_s, 1),
                "f1": round(it.f1, 4),
                "f1_low": round(it.f1_low, 4) if it.f1_low is not None else None,
            }
            for it in steps
        ],
    }


def table(found: dict[str, Any]) -> Table:
    """The same for a person."""
    shown = Table(
        "rung",
        "KB/s",
        "F1",
        "at least",
        title=f"{found['camera']}: {found['model']}, {found['made']}",
        caption=found["stale"] or found["why"],
    )
    for point in found["frontier"]:
        mark = "[bold]" if point["rung"] == found["rung"] else ""
        low = f"{point['f1_low']:.3f}" if point["f1_low"] is not None else ""
        cells = (point["rung"], f"{point['bytes_per_s'] / 1000:.2f}", f"{point['f1']:.3f}", low)
        shown.add_row(*(f"{mark}{it}" for it in cells))
    return shown
