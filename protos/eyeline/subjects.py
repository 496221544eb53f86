"""Names on the bus: subjects, streams and buckets.

Every tenant has a NATS account of its own, so the tenant is not part of a subject.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from eyeline.errors import InvalidName

FRAMES: Final = "FRAMES"
RESULTS: Final = "RESULTS"
DEAD: Final = "DEAD"
STATUS: Final = "STATUS"
# Calibration samples.
SAMPLES: Final = "SAMPLES"
# Who saw, took, changed or erased what; nothing is ever taken out of it.
AUDIT: Final = "AUDIT"
AUDIT_SUBJECT: Final = "eyeline.v1.audit"
# It is in an account of its own, whose JetStream is asked here instead of `$JS.API`.
AUDIT_API: Final = "eyeline.v1.audit-api"
# On the device.
SPOOL: Final = "SPOOL"
# Key-value buckets of the hub.
LEASES: Final = "LEASES"
WORKERS: Final = "WORKERS"
CLAIMS: Final = "CLAIMS"
DESIRED: Final = "DESIRED"
RELEASES: Final = "RELEASES"
# Object store of the hub.
ARTEFACTS: Final = "ARTEFACTS"
# The stream that devices may ask about, for the hub's time and whether the cloud has made its streams: it
# is made last, and what is told of another one would name whatever sites, devices and cameras there are.
ASKED: Final = f"OBJ_{ARTEFACTS}"
PROFILES: Final = "PROFILES"
# Rollouts of models, and drift.
MODELS: Final = "MODELS"

HUB_DOMAIN: Final = "hub"
EDGE_DOMAIN: Final = "edge"

_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")


def check_token(name: str, what: str = "name") -> str:
    """Return `name` if it can stand in a subject; raises `InvalidName`."""
    if not _TOKEN.fullmatch(name):
        raise InvalidName(f"{what} {name[:80]!r} must be 1 to 64 letters, digits, '_' or '-'")
    return name


def check_pattern(pattern: str) -> tuple[str, str]:
    """Site and camera of `SITE/CAMERA`, of which either may be '*'; raises `InvalidName`."""
    site, slash, camera = pattern.partition("/")
    if not slash:
        raise InvalidName(f"cameras {pattern[:80]!r} must be SITE/CAMERA; either may be '*'")
    for part, what in ((site, "site"), (camera, "camera")):
        if part != "*":
            check_token(part, what)
    return site, camera


def frame_subject(site: str, device: str, camera: str) -> str:
    """Subject of a camera's envelopes; each part may be '*'."""
    return f"eyeline.v1.frame.{site}.{device}.{camera}"


def result_subject(site: str, camera: str) -> str:
    """Subject of a camera's result batches; each part may be '*'."""
    return f"eyeline.v1.result.{site}.{camera}"


def dead_subject(site: str, device: str, camera: str) -> str:
    """Subject of messages set aside because they cannot be used."""
    return f"eyeline.v1.dead.{site}.{device}.{camera}"


def sample_subject(site: str, device: str, camera: str) -> str:
    """Subject of the parts of a camera's calibration samples; each part may be '*'."""
    return f"eyeline.v1.sample.{site}.{device}.{camera}"


def status_subject(site: str, device: str) -> str:
    """Subject of a device's status; the stream keeps the newest one."""
    return f"eyeline.v1.status.{site}.{device}"


def control_subject(site: str, device: str) -> str:
    """Subject of a worker's requests to a device; plain NATS, nothing is kept."""
    return f"eyeline.v1.control.{site}.{device}"


def device_inbox(site: str, device: str) -> str:
    """Inbox prefix of a device, private to it; the dot keeps site `a_b`, device `c` apart from `a`, `b_c`."""
    return f"_INBOX_{site}.{device}"


def erased_subject(site: str, camera: str) -> str:
    """Tells whoever holds something of a camera in memory to forget it; plain NATS, nothing is kept."""
    return f"eyeline.v1.erased.{site}.{camera}"


def spool_subject(camera: str) -> str:
    """Subject of a camera's envelopes inside the device's own spool."""
    return f"spool.frame.{camera}"


def desired_key(site: str, device: str) -> str:
    """Key of a device's desired configuration."""
    return f"{site}.{device}"


def profile_key(site: str, device: str, camera: str) -> str:
    """Key of a camera's profile, as its device has it."""
    return f"{site}.{device}.{camera}"


def camera_key(site: str, camera: str) -> str:
    """Key of a camera in the lease and claim buckets."""
    return f"{site}.{camera}"


class FrameAddress(NamedTuple):
    """The parts of a frame subject."""

    site: str
    device: str
    camera: str


def parse_frame_subject(subject: str) -> FrameAddress:
    """Take a frame, sample or dead-letter subject apart; raises `InvalidName`."""
    parts = subject.split(".")
    if len(parts) != 6 or parts[:2] != ["eyeline", "v1"] or parts[2] not in {"frame", "sample", "dead"}:
        raise InvalidName(f"{subject[:200]!r} is not a frame subject")
    return FrameAddress(*(check_token(part) for part in parts[3:]))
