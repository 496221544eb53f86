"""The errors of the cloud side, beside those of the contract.

EyelineError
├── TritonUnavailable   the inference server is away, starting or overloaded (retryable)
│   └── TritonTooSlow   it has not answered in time; it was told that nobody waits any more
├── ModelMissing        it is up and does not serve the model
├── ModelMismatch       it serves a model of that name with other inputs or outputs
├── InferenceFailed     it ran and refused this very request
├── BadSample           a calibration sample that no rung can be scored on; says why
└── EngineFailed        no builder, or one that refuses; or a plan that loses too much
    └── StoreFailed     the storage of plans is away or refuses (retryable)
"""

from __future__ import annotations

from eyeline.errors import EyelineError


class TritonUnavailable(EyelineError):
    """The inference server is away, starting or overloaded."""

    retryable = True


class TritonTooSlow(TritonUnavailable):
    """The inference server has not answered in time."""


class ModelMissing(EyelineError):
    """The inference server is up and does not serve the model."""


class ModelMismatch(EyelineError):
    """The inference server serves a model of that name with other inputs or outputs."""


class InferenceFailed(EyelineError):
    """The inference server ran and refused this very request."""


class BadSample(EyelineError):
    """A calibration sample that no rung can be scored on."""


class EngineFailed(EyelineError):
    """An engine cannot be built, or must not be used."""


class StoreFailed(EngineFailed):
    """The storage of plans is away, or refuses."""

    retryable = True
