"""Exports, read back by the tools that they are for."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import motmetrics
import numpy as np
import pandas
import pytest
import supervision
from grpc import StatusCode
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eyeline import Client
from eyeline.exports import coco, files, mot
from eyeline.v1 import detection_pb2, result_pb2
from eyeline.values import Detections, Result
from tests.support.eyeline_command import run_eyeline
from tests.support.fake_api import START_NS, Fault, made_result, running_fake_api

SIZE = (640, 480)


def walk(frame: int, track: int) -> tuple[float, float, float, float]:
    left = 10.0 + 40 * track + 3 * frame
    return left, 50.0 + 20 * track, left + 30, 130.0 + 20 * track


def detection(frame: int, track: int, name: str = "person", class_id: int = 0) -> detection_pb2.Detection:
    x1, y1, x2, y2 = walk(frame, track)
    return detection_pb2.Detection(
        class_id=class_id,
        class_name=name,
        score=0.9 - 0.01 * track,
        track_id=track,
        box=detection_pb2.Box(x1_px=x1, y1_px=y1, x2_px=x2, y2_px=y2),
    )


def results() -> list[result_pb2.Result]:
    """Ten frames with two people and a car, one that nobody could answer, and four in which nothing moves."""
    made = []
    size = {"source_width_px": SIZE[0], "source_height_px": SIZE[1]}
    for frame in range(1, 11):
        one = made_result(frame, **size)
        del one.detections[:]
        one.detections.extend([detection(frame, 1), detection(frame, 2), detection(frame, 3, "car", 2)])
        made.append(one)
    lost = made_result(11, provenance=result_pb2.PROVENANCE_DEGRADED, reason="chain_gap", **size)
    still = made_result(12, last_sequence=15, provenance=result_pb2.PROVENANCE_PROPAGATED, **size)
    del lost.detections[:], still.detections[:]
    still.detections.append(detection(10, 1))
    return [*made, lost, still]


@pytest.fixture
def found() -> list[Result]:
    return [Result.from_proto(one) for one in results()]


def test_pycocotools_reads_coco(found: list[Result], tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    told = coco.write(path, reversed(found))
    assert told == {"images": 11, "annotations": 31, "frames_without_answer": 1}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(path))
        assert [it["name"] for it in truth.loadCats(truth.getCatIds())] == ["person", "car"]
        assert {(it["width"], it["height"]) for it in truth.loadImgs(truth.getImgIds())} == {SIZE}
        image = truth.getImgIds()[3]
        (car,) = truth.loadAnns(truth.getAnnIds(image, catIds=[3]))
        x1, y1, x2, y2 = walk(4, 3)
        assert car["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
        keep = ("image_id", "category_id", "bbox", "score")
        answers = truth.loadRes([{key: it[key] for key in keep} for it in truth.dataset["annotations"]])
        judge = COCOeval(truth, answers, "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    assert judge.stats[0] == pytest.approx(1.0)


def test_motmetrics_reads_mot(found: list[Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # motmetrics 1.4 is older than numpy 2.
    monkeypatch.setattr(np, "asfarray", np.asarray, raising=False)
    told = mot.write(tmp_path / "gate.txt", found, frozenset({"person"}))
    assert told == {"lines": 24, "frames": 15, "frames_without_answer": 1}
    read = motmetrics.io.loadtxt(str(tmp_path / "gate.txt"), fmt="mot16")
    assert sorted(set(read.index.get_level_values("FrameId"))) == [*range(1, 11), *range(12, 16)]
    x1, y1, x2, y2 = walk(4, 2)
    row = read.loc[(4, 2)]
    # The reader counts pixels from 0 again.
    assert [row.X, row.Y, row.Width, row.Height] == pytest.approx([x1, y1, x2 - x1, y2 - y1])
    compared = motmetrics.utils.compare_to_groundtruth(read, read, "iou", distth=0.5)
    score = motmetrics.metrics.create().compute(compared, metrics=["mota", "idf1", "num_switches"])
    assert score.iloc[0].tolist() == [1.0, 1.0, 0]
    assert "seqLength=15\nimWidth=640\nimHeight=480" in (tmp_path / "gate.ini").read_text()


def test_mot_goes_on_after_a_restart_of_the_agent(found: list[Result]) -> None:
    again = []
    for one in results()[:2]:
        one.key.epoch.counter += 1
        one.key.epoch.random_id = b"\x02" * 8
        one.times.captured_ns += 10**12
        again.append(Result.from_proto(one))
    lines, frames, _ = mot.lines([*again, *found])
    assert frames == 17
    late = [line.split(",")[:2] for line in lines if int(line.split(",")[0]) > 15]
    assert late == [["16", "4"], ["16", "5"], ["16", "6"], ["17", "4"], ["17", "5"], ["17", "6"]]


async def test_the_command_writes_parquet_that_pandas_reads(tmp_path: Path) -> None:
    async with running_fake_api(page=7) as api:
        api.store(*results())
        path = tmp_path / "results.parquet"
        done = await run_eyeline("export", "parquet", "--out", str(path), "--json", server=api.address)
        assert (done.status, done.err) == (0, "")
        assert json.loads(done.out) == {"out": str(path), "results": 12, "rows": 32}
        table = pandas.read_parquet(path)
        assert len(table) == 32
        by_class = table.groupby("class", observed=True).size().to_dict()
        assert by_class == {"person": 21, "car": 10}
        lost = table[table["provenance"] == "DEGRADED"].iloc[0]
        assert lost["reason"] == "chain_gap"
        assert pandas.isna(lost["object"])
        first = table.iloc[0]
        assert first["captured"] == pandas.Timestamp(START_NS + 10**9, tz="UTC")
        assert first[["x1_px", "y1_px", "x2_px", "y2_px"]].tolist() == pytest.approx(walk(1, 1))
        assert table["frames"].max() == 4


@pytest.mark.parametrize("name", ["coco", "mot", "jsonl"])
async def test_the_command_writes_the_other_formats(name: str, tmp_path: Path) -> None:
    async with running_fake_api() as api:
        api.store(*results(), *(made_result(i, "door") for i in range(1, 4)))
        out = tmp_path / "out"
        done = await run_eyeline("export", name, "--out", str(out), server=api.address)
        assert done.status == 0, done.err
        assert "15 results" in done.out
        if name == "mot":
            assert sorted(it.name for it in out.iterdir()) == [
                "yard-door.ini", "yard-door.txt", "yard-gate.ini", "yard-gate.txt",
            ]  # fmt: skip
        elif name == "jsonl":
            sequences = [json.loads(line)["sequence"] for line in out.read_text().splitlines()]
            assert sequences == [1, 2, 3, *range(1, 13)]
        else:
            assert json.loads(out.read_text())["info"]["frames_without_answer"] == 1
        one = await run_eyeline("export", name, "yard/door", "--out", str(out), "--json", server=api.address)
        assert json.loads(one.out)["results"] == 3


async def test_what_cannot_be_exported_is_one_line(tmp_path: Path) -> None:
    async with running_fake_api() as api:
        nothing = await run_eyeline("export", "coco", "--out", str(tmp_path / "x"), server=api.address)
        assert (nothing.status, nothing.err) == (1, "no results yet\n")
        api.store(*results())
        done = await run_eyeline("export", "coco", "--out", str(tmp_path / "no" / "x"), server=api.address)
        assert done.status == 2
        assert done.err.startswith(f"eyeline: {tmp_path}/no/x cannot be written: No such file")
        done = await run_eyeline("export", "excel", server=api.address)
        assert done.status == 2
        none = await run_eyeline(
            "export",
            "parquet",
            "--to",
            "2001-01-01T00:00:00Z",
            "--out",
            str(tmp_path / "y"),
            server=api.address,
        )
        assert none.status == 1


@pytest.mark.parametrize("name", ["coco", "mot", "parquet", "jsonl"])
async def test_an_export_without_results_leaves_the_one_before(name: str, tmp_path: Path) -> None:
    """Nothing is found: what stood at that path still stands there, and nothing else does."""
    path = tmp_path / "kept"
    path.write_text("an earlier export")
    async with running_fake_api() as api:
        done = await run_eyeline("export", name, "yard/none", "--out", str(path), server=api.address)
        assert (done.status, done.err) == (1, "no results in that time\n")
        api.fail("ListResults", Fault(StatusCode.INTERNAL, "because"))
        done = await run_eyeline("export", name, "yard/none", "--out", str(path), server=api.address)
        assert done.status == 4
    assert [it.name for it in tmp_path.iterdir()] == ["kept"]
    assert path.read_text() == "an earlier export"


def test_supervision_takes_the_arrays(found: list[Result]) -> None:
    detections = found[2].detections
    taken = detections.to_supervision()
    assert isinstance(taken, supervision.Detections)
    assert taken.tracker_id.tolist() == [1, 2, 3]
    assert taken.data["class_name"].tolist() == ["person", "person", "car"]
    assert taken[taken.confidence > 0.875].class_id.tolist() == [0, 0]
    shown = supervision.BoxAnnotator().annotate(np.zeros((480, 640, 3), np.uint8), taken)
    assert shown.any()
    nothing = Detections.empty().to_supervision()
    assert len(nothing) == 0


async def test_a_stream_of_results_can_be_written_by_programs(tmp_path: Path) -> None:
    async with running_fake_api() as api, Client(api.address) as client:
        api.store(*results())
        told = await files.write("jsonl", tmp_path / "x.jsonl", client.history("yard", "gate"))
        assert told == {"results": 12}


def missing(name: str) -> Any:
    raise ImportError(name)


def test_a_missing_library_is_one_line(found: list[Result], monkeypatch: pytest.MonkeyPatch) -> None:
    from eyeline import optional  # noqa: PLC0415
    from eyeline.errors import ConfigError  # noqa: PLC0415

    monkeypatch.setattr(optional, "import_module", missing)
    with pytest.raises(ConfigError, match=r"this needs supervision: pip install 'eyeline\[supervision\]'"):
        found[0].detections.to_supervision()
