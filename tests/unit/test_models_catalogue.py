"""The catalogue: what is there is found and verified; what is wrong is said in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml

from eyeline_models import catalogue
from eyeline_models.errors import BadModel, ModelError, UnknownModel
from eyeline_models.releases import RELEASES
from tests.support.cards import square_card

BUNDLED = "centernet-mobilenetv3"
FOR_DEVICES = "centernet-mobilenetv3-288"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of the user's, to be spoilt; nothing of this machine's own is known."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv(catalogue.SEARCH_VARIABLE, raising=False)
    made = tmp_path / "models" / "mine"
    shutil.copytree(catalogue.load(BUNDLED).path.parent, made)
    change(made, name="mine")
    return made


def change(folder: Path, **values: object) -> None:
    path = folder / catalogue.CARD
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **values}))


def refused(name: str | Path, kind: type[ModelError], *parts: str, search: tuple[Path, ...] = ()) -> None:
    with pytest.raises(kind) as caught:
        catalogue.load(name, search)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize("name", [BUNDLED, FOR_DEVICES])
def test_bundled_model(name: str) -> None:
    card = catalogue.load(name)
    assert card.path.is_file()
    assert card.path.stat().st_size < 4_500_000
    assert card.classes[0] == "person"
    assert card.thresholds.dtype == np.float32
    assert card.thresholds.shape == (len(card.classes),)
    assert card.licence == "MIT"
    assert catalogue.load(card.path).name == catalogue.load(card.path.parent).name == name


def test_a_users_model_by_search_variable_home_and_path(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert catalogue.load("mine", (folder.parent,)).path == folder / "model.onnx"
    monkeypatch.setenv(catalogue.SEARCH_VARIABLE, f"/nowhere:{folder.parent}")
    assert catalogue.load("mine").path == folder / "model.onnx"
    monkeypatch.delenv(catalogue.SEARCH_VARIABLE)
    refused("mine", UnknownModel)
    shutil.copytree(folder, catalogue.home() / "mine")
    assert catalogue.load("mine").path == catalogue.home() / "mine" / "model.onnx"


def test_of_two_with_one_name_the_first_place_counts(folder: Path) -> None:
    change(folder, name=BUNDLED, version="7")
    assert catalogue.load(BUNDLED, (folder.parent,)).version == "7"
    assert catalogue.load(BUNDLED).version == "2"


def test_a_broken_neighbour_hides_nothing(folder: Path) -> None:
    broken = folder.parent / "a-broken-one"
    broken.mkdir()
    (broken / catalogue.CARD).write_text("name: [")
    assert catalogue.load("mine", (folder.parent,)).name == "mine"


def test_unknown_names(folder: Path) -> None:
    refused("centernet-mobilnet", UnknownModel, "centernet-mobilnet", f"did you mean {BUNDLED!r}?")
    refused("qqq", UnknownModel, "known:", BUNDLED, "yolox-s")
    refused("yolox-m", UnknownModel, "yolox-m", "models fetch yolox-m")
    refused(folder.parent, UnknownModel, str(folder.parent), "card.yaml")


def test_damaged_models(folder: Path) -> None:
    path = folder / "model.onnx"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    refused(folder, BadModel, "model.onnx", "sha256", "changed")
    path.unlink()
    refused(folder, BadModel, "model.onnx", "missing")


@pytest.mark.parametrize(
    ("change_", "parts"),
    [
        ({"treshold": 0.5}, ("unknown key 'treshold'", "did you mean 'threshold'?")),
        ({"threshold": 1.5}, ("threshold", "less than 1")),
        ({"thresholds": {"unicorn": 0.5}}, ("thresholds", "unicorn")),
        ({"thresholds": {"person": 2.0}}, ("thresholds", "between 0 and 1")),
        ({"classes": []}, ("classes",)),
        ({"name": "no spaces please"}, ("name",)),
        ({"fill": 300}, ("fill", "255")),
    ],
)
def test_bad_cards(folder: Path, change_: dict[str, object], parts: tuple[str, ...]) -> None:
    change(folder, **change_)
    refused(folder, BadModel, "card.yaml", *parts)


def test_a_card_that_is_not_yaml(folder: Path) -> None:
    (folder / catalogue.CARD).write_text("name: [")
    refused(folder, BadModel, "card.yaml", "not YAML")


def test_answers_are_cut_at_their_thresholds_and_placed_in_the_picture() -> None:
    card = square_card()
    letterbox = card.letterbox(256, 128)
    boxes = np.zeros((4, 6), np.float32)
    boxes[0] = 10, 20, 30, 40, 0.9, 0
    boxes[1] = 10, 20, 30, 40, 0.4, 0
    boxes[2] = 10, 100, 30, 120, 0.9, 0  # wholly in the filled part
    boxes[3] = 10, 20, 30, 40, 0.9, 0  # behind the count
    found = catalogue.detections(card, boxes, 3, letterbox)
    assert found.boxes.tolist() == [[20, 40, 60, 80]]
    assert found.class_names == ("square",)
    assert len(catalogue.detections(card, boxes, 3, letterbox, thresholds=0.3)) == 2
    assert len(catalogue.detections(card, boxes, 0, letterbox)) == 0


def test_releases_name_their_official_files() -> None:
    assert list(RELEASES) == ["yolox-s", "yolox-m", "yolox-l", "yolox-x"]
    for release in RELEASES.values():
        assert release.url.startswith(
            "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0/"
        )
        assert release.licence == "Apache-2.0"
