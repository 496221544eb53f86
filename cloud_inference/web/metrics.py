"""What the web page's server counts."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge

VIEWERS: Final = Gauge("eyeline_cloud_web_viewers_count", "Browsers that look at the page now.")
DROPPED: Final = Counter(
    "eyeline_cloud_web_dropped_pictures", "Pictures that a browser was too slow for, and did not get."
)
