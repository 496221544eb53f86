"""The hub's streams and buckets of one tenant."""

from __future__ import annotations

from nats.js import JetStreamContext
from nats.js.api import (
    DiscardPolicy,
    KeyValueConfig,
    ObjectStoreConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
)
from nats.js.errors import ServiceUnavailableError

from cloud_inference import audit
from cloud_inference.config import StreamSettings
from eyeline import bus, subjects
from eyeline.errors import BusError

_DUPLICATE_WINDOW_S = 120.0
_DEAD_MAX_BYTES = 64 << 20
_DEAD_MAX_AGE_S = 7 * 86_400.0
_STATUS_MAX_AGE_S = 30 * 86_400.0
# Of calibration samples: pixels that nobody needs once they are scored, which purges them.
_SAMPLES_MAX_BYTES = 256 << 20
_SAMPLES_MAX_AGE_S = 3600.0
_SAMPLES_MAX_PARTS = 1024
_AUDIT_MAX_BYTES = 1 << 30


BUCKETS = (
    subjects.LEASES,
    subjects.WORKERS,
    subjects.CLAIMS,
    subjects.DESIRED,
    subjects.PROFILES,
    subjects.MODELS,
    subjects.RELEASES,
)


async def ensure(js: JetStreamContext, settings: StreamSettings, *, change: bool = True) -> None:
    """Create what is missing and bring the rest to these settings; raises `BusError`.

    change: with False, what there is stays as it is.
    """
    for config in configs(settings):
        await bus.ensure_stream(js, config, change=change)
    # Never changed: whoever may change its limits can empty it.
    try:
        await bus.ensure_stream(audit.context(js), audit_config(settings), change=False)
    except BusError as problem:
        if not isinstance(problem.__cause__, ServiceUnavailableError):
            raise
        raise BusError(
            f"stream {subjects.AUDIT}: its account does not answer; unless the hub is just starting, "
            "`cloud-inference tell` makes the hub know it"
        ) from None
    for bucket in BUCKETS:
        await bus.ensure_bucket(
            js,
            KeyValueConfig(
                bucket=bucket, replicas=settings.replicas, storage=_storage(settings), direct=True
            ),
        )
    await bus.ensure_objects(
        js,
        ObjectStoreConfig(bucket=subjects.ARTEFACTS, replicas=settings.replicas, storage=_storage(settings)),
    )


def configs(settings: StreamSettings) -> list[StreamConfig]:
    """The streams.

    A full FRAMES refuses new messages, so that agents keep them in their spools; discarding old ones would
    delete keyframes and leave what depends on them. Workers purge FRAMES as soon as no open chain needs it.
    """
    limits, storage = RetentionPolicy.LIMITS, _storage(settings)
    frames = StreamConfig(
        name=subjects.FRAMES,
        subjects=[subjects.frame_subject("*", "*", "*")],
        retention=limits,
        storage=storage,
        discard=DiscardPolicy.NEW,
        max_bytes=settings.frames_max_bytes,
        max_age=max(settings.frames_max_age_s, settings.pixels_keep_s),
        duplicate_window=_DUPLICATE_WINDOW_S,
        num_replicas=settings.replicas,
    )
    results = StreamConfig(
        name=subjects.RESULTS,
        subjects=[subjects.result_subject("*", "*")],
        retention=limits,
        storage=storage,
        discard=DiscardPolicy.OLD,
        max_bytes=settings.results_max_bytes,
        max_age=settings.results_max_age_s,
        allow_direct=True,
        num_replicas=settings.replicas,
    )
    dead = StreamConfig(
        name=subjects.DEAD,
        subjects=[subjects.dead_subject("*", "*", "*")],
        retention=limits,
        storage=storage,
        discard=DiscardPolicy.OLD,
        max_bytes=_DEAD_MAX_BYTES,
        max_age=_DEAD_MAX_AGE_S,
        num_replicas=settings.replicas,
    )
    status = StreamConfig(
        name=subjects.STATUS,
        subjects=[subjects.status_subject("*", "*")],
        retention=limits,
        storage=storage,
        discard=DiscardPolicy.OLD,
        max_msgs_per_subject=1,
        max_age=_STATUS_MAX_AGE_S,
        allow_direct=True,
        num_replicas=settings.replicas,
    )
    samples = StreamConfig(
        name=subjects.SAMPLES,
        subjects=[subjects.sample_subject("*", "*", "*")],
        retention=limits,
        storage=storage,
        discard=DiscardPolicy.OLD,
        max_bytes=_SAMPLES_MAX_BYTES,
        max_msgs_per_subject=_SAMPLES_MAX_PARTS,
        max_age=_SAMPLES_MAX_AGE_S,
        duplicate_window=_DUPLICATE_WINDOW_S,
        num_replicas=settings.replicas,
    )
    return [frames, results, dead, status, samples]


def audit_config(settings: StreamSettings) -> StreamConfig:
    """The audit log, in an account of its own; the server itself refuses to delete or purge what is in it."""
    return StreamConfig(
        name=subjects.AUDIT,
        subjects=[subjects.AUDIT_SUBJECT],
        retention=RetentionPolicy.LIMITS,
        storage=_storage(settings),
        discard=DiscardPolicy.OLD,
        max_bytes=_AUDIT_MAX_BYTES,
        max_age=settings.audit_max_age_s,
        deny_delete=True,
        deny_purge=True,
        allow_direct=True,
        num_replicas=settings.replicas,
    )


def _storage(settings: StreamSettings) -> StorageType:
    return StorageType(settings.storage)
