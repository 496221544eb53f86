"""A report as one HTML page: nothing is loaded from elsewhere, and it follows light and dark."""

from __future__ import annotations

from collections import Counter
from html import escape

from eyeline._status import one_line
from eyeline.moments import format_duration, format_moment
from eyeline.release import version
from eyeline.reports import svg
from eyeline.reports.data import BINS, PERCENTILES, Cost, Report, percentile

_STYLE = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1c2733;--dim:#5b6b7a;--line:#dde3e9;--card:#f6f8fa;
--c0:#2563c9;--c1:#d9822b;--c2:#2e8b57;--c3:#8e4ec6;--c4:#c2334d;--c5:#5f7a8a}
@media(prefers-color-scheme:dark){:root{--bg:#11161c;--fg:#e3e9ef;--dim:#93a3b2;--line:#2a343f;--card:#19212a;
--c0:#6ea2ff;--c1:#f0a860;--c2:#62c48d;--c3:#c39bf0;--c4:#f27a8e;--c5:#9db4c2}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:980px;padding:24px 16px 64px;background:var(--bg);color:var(--fg);
font:15px/1.5 system-ui,sans-serif}
h1{font-size:1.6rem;margin:0}h2{font-size:1.2rem;margin:2.2em 0 .4em}h3{font-size:1rem;margin:1.4em 0 .3em}
p{margin:.4em 0}.dim,figcaption,small{color:var(--dim)}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(170px,1fr));gap:10px;margin:1em 0}
.cards div{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.cards b{display:block;font-size:1.5rem;line-height:1.2}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums}
th,td{text-align:right;padding:4px 8px;border-bottom:1px solid var(--line);white-space:nowrap}
th:first-child,td:first-child{text-align:left}td.w{white-space:normal;text-align:left}
svg{width:100%;height:auto;display:block}figure{margin:1em 0}
.t{fill:var(--dim);font-size:11px}.g{stroke:var(--line)}path{fill:none;stroke-width:1.8}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:.85rem}.legend i{display:inline-block;width:10px;
height:10px;border-radius:2px;margin-right:5px}
.tag{border:1px solid var(--line);border-radius:4px;padding:0 5px;font-size:.8rem;color:var(--dim)}
"""
_COLOURS = "".join(
    f".s{i}{{stroke:var(--c{i})}}.f{i}{{fill:var(--c{i})}}.b{i}{{background:var(--c{i})}}" for i in range(6)
)


def page(report: Report) -> str:
    """The whole page."""
    period = f"{format_moment(report.begin_ns)[:19]}Z to {format_moment(report.end_ns)[:19]}Z"
    body = [
        "<header><h1>Eyeline report</h1>",
        f'<p class="dim">{period} ({_span(report)}), {_cameras(report)} of {_text(report.server)}</p>',
        "</header>",
        _cards(report),
        _traffic(report),
        _accuracy(report),
        _delay(report),
        _outages(report),
        _counts(report),
        _notes(report),
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Eyeline report, {period}</title><style>{_STYLE}{_COLOURS}</style></head>"
        f"<body>{''.join(body)}</body></html>\n"
    )


def _cards(report: Report) -> str:
    frames, lost = report.total("frames"), sum(sum(c.reasons.values()) for c in report.cameras)
    delays = [delay for camera in report.cameras for delay in camera.delays_ms]
    sent = sum(camera.wire_bytes for camera in report.cameras)
    jpeg = _sum([camera.jpeg for camera in report.cameras])
    video = _sum([camera.video for camera in report.cameras])
    items = [
        (f"{frames:,.0f}", "frames captured and answered"),
        (f"{100 * (1 - lost / frames):.2f} %" if frames else "-", "of them with an answer"),
        (_bytes(sent), "sent, pictures and envelopes"),
        (_times(jpeg, sent), f"as much would a JPEG of each frame take{_mark(jpeg)}"),
        (_times(video, sent), f"as much would the video of each frame take{_mark(video)}"),
        (_ms(percentile(delays, 50)), "median delay, capture to answer"),
    ]
    cells = "".join(f"<div><b>{escape(value)}</b>{escape(what)}</div>" for value, what in items)
    return f'<section class="cards">{cells}</section>'


def _traffic(report: Report) -> str:
    rows, figures = [], []
    for camera in report.cameras:
        sent = camera.wire_bytes
        rows.append(
            [
                _text(camera.name),
                f"{camera.frames:,}",
                f"{camera.sent:,}",
                _bytes(sent),
                _per_frame(sent, camera.frames),
                _cost(camera.jpeg, sent),
                _cost(camera.video, sent),
                _text(camera.rung) or "-",
            ]
        )
    figures.append(
        _figure(
            svg.stacks(
                [(camera.name, _per_second(report, camera.series_bytes)) for camera in report.cameras],
                _ticks(report),
                "bytes a second",
                "Bytes of pictures a second, by camera",
            ),
            "Coded pictures as they were captured, bytes a second.",
        )
    )
    sent = sum(camera.wire_bytes for camera in report.cameras)
    compared = [
        ("Eyeline", sent, _bytes(sent)),
        *(
            (name, cost.bytes, f"{_bytes(cost.bytes)}, {'measured' if cost.measured else 'estimated'}")
            for name, cost in (
                ("video of all frames", _sum([camera.video for camera in report.cameras])),
                ("JPEG of all frames", _sum([camera.jpeg for camera in report.cameras])),
            )
            if cost is not None
        ),
    ]
    figures.insert(0, _figure(svg.bars(compared, "Bytes sent, against video and JPEG"), ""))
    head = ["camera", "frames", "with pixels", "sent", "bytes a frame", "JPEG", "video", "rung now"]
    how = {
        f"{_text(c.name)}: {_text(cost.how)}" for c in report.cameras for cost in (c.jpeg, c.video) if cost
    }
    told = "".join(f"<li>{line}</li>" for line in sorted(how))
    return (
        "<section><h2>Traffic</h2>"
        f"{''.join(figures)}{_table(head, rows)}"
        "<p><small><b>Measured:</b> frames, frames with pixels and bytes of coded pictures, from every"
        " stored result of the period. <b>Scaled:</b> envelopes, heartbeats and idle ranges, by what the"
        " device published since it started for each byte of pictures. Transport (TCP, TLS, NATS) is not in"
        " any of the figures."
        f" <b>The other ways:</b></small></p><ul><small>{told}</small></ul></section>"
    )


def _accuracy(report: Report) -> str:
    audited = [(camera.name, *camera.audits) for camera in report.cameras if camera.audits is not None]
    rows = [[_text(name), f"{count:,}", "-" if f1 is None else f"{f1:.3f}"] for name, count, f1 in audited]
    if rows:
        told = (
            "<p>Answers of the edge model that would have stood, and whose pixels went to the cloud all the"
            " same, to check: how their objects agree with the cloud model's (F1), since the agents"
            f" started.</p>{_table(['camera', 'audits', 'F1'], rows)}"
        )
    else:
        told = "<p>No audits: no device has had an answer of its edge model checked by the cloud model.</p>"
    return (
        f"<section><h2>Accuracy against audits</h2>{told}<p>Where answers come from:</p>"
        f"{_sources(report)}</section>"
    )


def _sources(report: Report) -> str:
    names = ["CLOUD", "EDGE", "PROPAGATED", "DEGRADED"]
    rows = [
        [
            _text(camera.name),
            *(
                f"{100 * camera.by_source[name] / camera.frames:.1f} %" if camera.frames else "-"
                for name in names
            ),
        ]
        for camera in report.cameras
    ]
    return _table(["camera", *(name.lower() for name in names)], rows)


def _delay(report: Report) -> str:
    rows = [
        [
            _text(camera.name),
            f"{len(camera.delays_ms):,}",
            *(_ms(camera.percentile(q)) for q in PERCENTILES),
            _ms(max(camera.delays_ms, default=None)),
        ]
        for camera in report.cameras
    ]
    series = [(camera.name, [_median(values) for values in camera.series_delay]) for camera in report.cameras]
    plot = svg.lines(series, _ticks(report), "ms", "Median delay over time, by camera")
    head = ["camera", "frames", *(f"p{q}" for q in PERCENTILES), "longest"]
    return (
        f"<section><h2>Delay</h2>{_figure(plot, 'Median from capture to answer, ms.')}{_table(head, rows)}"
        "<p><small>Measured, from capture (by the hub's clock) until the answer was stored, of live frames"
        " whose pixels the cloud saw; frames kept during an outage are below.</small></p></section>"
    )


def _outages(report: Report) -> str:
    rows = [
        [
            _text(camera.name),
            format_moment(outage.begin_ns)[:19] + "Z",
            format_duration(max(0, outage.end_ns - outage.begin_ns)),
            f"{outage.late_frames:,}",
            f"{outage.lost_frames:,}",
            _text(", ".join(f"{n} {reason}" for reason, n in outage.reasons.most_common(4))),
        ]
        for camera in report.cameras
        for outage in camera.outages
    ]
    if not rows:
        none = "None: no frame came late, and every frame has an answer."
        return f"<section><h2>Outages</h2><p>{none}</p></section>"
    series = [(camera.name, camera.series_lost) for camera in report.cameras]
    plot = svg.stacks(series, _ticks(report), "frames", "Frames without answer over time, by camera")
    shown, more = rows[:50], len(rows) - 50
    head = ["camera", "from", "for", "answered later", "without answer", "reasons"]
    return (
        "<section><h2>Outages</h2><p>Frames that were kept and delivered afterwards, and frames that say that"
        f" they have no answer.</p>{_figure(plot, 'Frames without answer.')}{_table(head, shown)}"
        f"{f'<p>and {more} more</p>' if more > 0 else ''}</section>"
    )


def _counts(report: Report) -> str:
    parts = ["<section><h2>Objects</h2>"]
    totals: Counter[str] = Counter()
    rows = []
    for camera in report.cameras:
        for name, frames in camera.present.most_common():
            tracks = len(camera.objects.get(name, ()))
            totals[name] += tracks
            mean = frames / camera.frames if camera.frames else 0
            most = max(camera.series_objects[name])
            rows.append([_text(camera.name), _text(name), f"{tracks:,}", f"{mean:.2f}", f"{most:.0f}"])
    if not rows:
        parts.append("<p>Nothing was seen.</p>")
    else:
        top = [name for name, _ in totals.most_common(6)]
        series = [(name, _most_of(report, name)) for name in top]
        plot = svg.lines(series, _ticks(report), "objects", "Most objects at a time, by class")
        parts.append(_figure(plot, "Most objects at a time, all cameras, by class."))
        parts.append(_table(["camera", "class", "tracks", "in view (mean)", "most at a time"], rows))
    zones = [
        [_text(camera.name), _text(name), kind, f"{zone.forward:,}", f"{zone.backward:,}", most]
        for camera in report.cameras
        for kind, found in (("zone", camera.zones), ("line", camera.lines))
        for name, zone in sorted(found.items())
        for most in [f"{zone.most:,}" if kind == "zone" else "-"]
    ]
    parts.append("<h3>Zones and lines</h3>")
    if zones:
        head = ["camera", "name", "kind", "in / forward", "out / backward", "most inside"]
        parts.append(_table(head, zones))
    else:
        parts.append("<p>No zone or line is drawn on these cameras.</p>")
    parts.append(
        "<p><small>A track is an object for as long as it was followed: one that leaves and comes back counts"
        " twice.</small></p></section>"
    )
    return "".join(parts)


def _notes(report: Report) -> str:
    notes = "".join(f"<li>{_text(note)}</li>" for note in report.notes)
    return (
        f'<footer><ul class="dim">{notes}</ul><p class="dim">Written by eyeline {_text(version())};'
        " this file loads nothing from elsewhere.</p></footer>"
    )


def _most_of(report: Report, name: str) -> list[float | None]:
    return [
        sum(camera.series_objects[name][i] for camera in report.cameras if name in camera.series_objects)
        for i in range(BINS)
    ]


def _per_second(report: Report, values: list[float]) -> list[float]:
    seconds = max((report.end_ns - report.begin_ns) / 1e9 / BINS, 1e-9)
    return [value / seconds for value in values]


def _ticks(report: Report) -> list[str]:
    span = report.end_ns - report.begin_ns
    long = span > 86_400 * 10**9
    moments = [format_moment(report.begin_ns + span * step // 4) for step in range(5)]
    return [moment[5:16].replace("T", " ") if long else moment[11:19] for moment in moments]


def _cameras(report: Report) -> str:
    return "1 camera" if len(report.cameras) == 1 else f"{len(report.cameras)} cameras"


def _span(report: Report) -> str:
    return format_duration(report.end_ns - report.begin_ns)


def _sum(costs: list[Cost | None]) -> Cost | None:
    known = [cost for cost in costs if cost is not None]
    if not known:
        return None
    return Cost(sum(c.bytes for c in known), "", measured=all(c.measured for c in known))


def _per_frame(sent: float, frames: int) -> str:
    if not frames:
        return "-"
    return f"{sent / frames:,.0f}" if sent >= 10 * frames else f"{sent / frames:.1f}"


def _cost(cost: Cost | None, sent: float) -> str:
    if cost is None:
        return "-"
    return f"{_times(cost, sent)} <span class=tag>{'measured' if cost.measured else 'estimated'}</span>"


def _times(cost: Cost | None, sent: float) -> str:
    if cost is None or sent <= 0:
        return "-"
    times = cost.bytes / sent
    return f"{times:,.0f} times" if times >= 10 else f"{times:.1f} times"


def _mark(cost: Cost | None) -> str:
    return "" if cost is None else " (measured)" if cost.measured else " (estimated)"


def _bytes(count: float) -> str:
    for limit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "KB")):
        if count >= limit:
            return f"{count / limit:,.1f} {name}"
    return f"{count:,.0f} B"


def _ms(value: float | None) -> str:
    return "-" if value is None else format_duration(int(value * 1e6))


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _text(text: str) -> str:
    return escape(one_line(text))


def _figure(plot: str, caption: str) -> str:
    told = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{plot}{told}</figure>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    heads = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>'
