"""What can be wrong with a model.

EyelineError
└── ModelError           a model that cannot be used; says which file and what to do
    ├── UnknownModel     no such name in the catalogue
    ├── BadModel         not an ONNX file, damaged, or of another form than we know
    └── FetchFailed      a release that could not be fetched or was not what it should be (`retryable`)
"""

from __future__ import annotations

from eyeline.errors import EyelineError


class ModelError(EyelineError):
    """A model that cannot be used."""


class UnknownModel(ModelError):
    """No such name in the catalogue."""


class BadModel(ModelError):
    """Not an ONNX file, damaged, or of another form than we know."""


class FetchFailed(ModelError):
    """A release that could not be fetched, or was not what it should be."""

    retryable = True
