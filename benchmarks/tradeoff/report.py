"""tradeoff.json, the table and the plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.table import Table

from benchmarks.tradeoff.curve import Curve, bd_rate, bytes_at, envelope
from benchmarks.tradeoff.points import Point

mpl.use("Agg")
from matplotlib import pyplot as plt  # the backend is chosen before

TARGET_F1 = 0.95
_STYLE = {
    "jpeg": ("#888888", "s", "JPEG, every frame"),
    "passthrough": ("#b07a00", "D", "camera's own packets"),
    "x264": ("#c0392b", "o", "x264 sweep"),
    "edge": ("#555555", "^", "edge model alone"),
    "eyeline-pixels": ("#1f6fb4", "o", "Eyeline, pixels only"),
    "eyeline": ("#2e8b57", "o", "Eyeline"),
}


def curve_of(found: Sequence[Point], kind: str) -> Curve:
    """Envelope of the points of one kind."""
    return envelope((point.bytes_per_frame, point.f1) for point in found if point.kind == kind)


def summary(found: Sequence[Point]) -> dict[str, float | None]:
    """Bytes at F1 0.95 and what Eyeline's are over them; None where a curve does not get there."""
    x264_curve = curve_of(found, "x264")
    jpeg = next((point.bytes_per_frame for point in found if point.kind == "jpeg"), None)
    x264 = bytes_at(x264_curve, TARGET_F1)
    edge = [point.f1 for point in found if point.kind == "edge"]
    out: dict[str, float | None] = {"jpeg_bytes_at_f1_95": jpeg, "x264_bytes_at_f1_95": x264}
    for kind, suffix in (("eyeline", ""), ("eyeline-pixels", "_pixels")):
        curve = curve_of(found, kind)
        ours = bytes_at(curve, TARGET_F1)
        out[f"eyeline_bytes_at_f1_95{suffix}"] = ours
        out[f"ratio_vs_jpeg{suffix}"] = ours / jpeg if ours is not None and jpeg else None
        out[f"ratio_vs_x264{suffix}"] = ours / x264 if ours is not None and x264 else None
        out[f"bd_rate_vs_x264{suffix}"] = bd_rate(curve, x264_curve)
    return out | {"edge_only_f1": max(edge) if edge else None}


def write(path: Path, head: dict[str, Any], found: Sequence[Point]) -> dict[str, float | None]:
    """tradeoff.json; returns its summary."""
    figures = summary(found)
    rows = [dataclasses.asdict(point) for point in found]
    path.write_text(json.dumps({**head, "points": rows, "summary": figures}, indent=1) + "\n", "utf-8")
    return figures


def table(found: Sequence[Point]) -> Table:
    """Every point, a row each, in order of kind and bytes."""
    shown = Table("point", "kind", *_COLUMNS, title=None, pad_edge=False)
    for column in shown.columns[2:]:
        column.justify = "right"
    order = list(_STYLE)
    for point in sorted(found, key=lambda it: (order.index(it.kind), -it.bytes_per_frame)):
        cpu = point.edge_cpu_ms
        stages = sum(cpu.get(stage, 0) for stage in ("gate", "plan", "encode"))
        cloud = "" if point.f1_cloud_frames is None else f"{point.f1_cloud_frames:.3f}"
        delay = f"{point.delay_ms['p95'] / 1e3:.1f}" if point.delay_ms else ""
        shown.add_row(
            point.name,
            point.kind,
            f"{point.bytes_per_frame:,.1f}",
            f"{point.f1:.4f}",
            f"{point.f1_low:.3f} to {point.f1_high:.3f}",
            f"{point.f1_frame_mean:.3f}",
            cloud,
            f"{point.inferences_per_frame:.3f}",
            f"{stages:.2f}",
            f"{cpu.get('detect', 0):.2f}",
            delay,
        )
    return shown


_COLUMNS = (
    "bytes/frame",
    "F1",
    "95 %",
    "frame mean",
    "F1 cloud",
    "inferences",
    "gate+plan+encode ms",
    "detect ms",
    "delay p95 s",
)


def plot(path: Path, title: str, found: Sequence[Point], figures: dict[str, float | None]) -> None:
    """F1 over bytes per frame (log), with envelopes and what is bought at F1 0.95."""
    figure, axes = plt.subplots(figsize=(9, 5.4), dpi=130)
    lowest = 0.8
    for kind, (colour, marker, label) in _STYLE.items():
        ours = [point for point in found if point.kind == kind and point.bytes_per_frame > 0]
        if not ours:
            continue
        xs, ys = [p.bytes_per_frame for p in ours], [p.f1 for p in ours]
        errors = [[max(0.0, p.f1 - p.f1_low) for p in ours], [max(0.0, p.f1_high - p.f1) for p in ours]]
        axes.errorbar(xs, ys, errors, fmt="none", ecolor=colour, elinewidth=0.6, alpha=0.25)
        axes.scatter(xs, ys, s=16, color=colour, marker=marker, alpha=0.45, linewidths=0)
        line = curve_of(found, kind)
        axes.plot(*zip(*line, strict=True), color=colour, marker=marker, ms=4, lw=1.6, label=label)
    for point in found:
        if point.kind == "edge":
            colour, _, label = _STYLE["edge"]
            axes.axhline(
                point.f1, color=colour, ls=":", lw=1.2, label=f"{label} (F1 {point.f1:.2f}, 0 bytes)"
            )
            lowest = min(lowest, point.f1 - 0.02)
    axes.axhline(TARGET_F1, color="black", lw=0.8, ls="--")
    _arrow(axes, figures)
    axes.set_xscale("log")
    axes.set_ylim(max(0.0, min(lowest, 0.85)), 1.003)
    axes.set_xlabel("bytes on the wire per captured frame (log)")
    axes.set_ylabel("F1 against the model on untouched frames")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.15)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def _arrow(axes: Any, figures: dict[str, float | None]) -> None:
    ours, theirs = figures["eyeline_bytes_at_f1_95_pixels"], figures["x264_bytes_at_f1_95"]
    if ours is None or theirs is None:
        return
    axes.annotate(
        "", xy=(ours, TARGET_F1), xytext=(theirs, TARGET_F1), arrowprops={"arrowstyle": "->", "lw": 1.4}
    )
    axes.annotate(
        f"{ours / theirs:.2f}x",
        xy=((ours * theirs) ** 0.5, TARGET_F1),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        fontsize=9,
        weight="bold",
    )
