"""Pictures through the gate of a camera that hides nothing, for tests of what comes behind it."""

from __future__ import annotations

import av

from edge_agent.config import RedactSettings
from edge_agent.frame import Frame
from edge_agent.redact import RedactedPicture, Redactor


def as_it_is(picture: av.VideoFrame) -> RedactedPicture:
    """The picture, unchanged, as encoders take it."""
    return Redactor(RedactSettings()).apply(Frame(1, 0, 0, picture))
