"""The forms of detectors that we know."""

from __future__ import annotations

from enum import StrEnum


class Form(StrEnum):
    """How a detector states its answers."""

    # [B, N, 5 + C]: box relative to its cell, objectness and class scores after the sigmoid.
    YOLOX = "yolox"
    # [B, 4 + C, N]: box centre and size in pixels, class scores.
    YOLOV8 = "yolov8"
    # logits [B, N, C], or [B, N, C + 1] whose last is "nothing"; boxes [B, N, 4], centre and size in 0 to 1.
    DETR = "detr"
    # heat map [B, C, H/4, W/4]; distances to left, top, right and bottom in pixels [B, 4, H/4, W/4].
    CENTERNET = "centernet"
    # Anchors of two grids: logits [B, 512, 1] and boxes [B, 512, 16] of 16x16 cells, then [B, 384, ...] of
    # 8x8; box centre relative to its cell's, and size, in pixels, and six points that nobody needs here.
    BLAZEFACE = "blazeface"
