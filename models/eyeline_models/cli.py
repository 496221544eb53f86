"""`cloud-inference models`: the catalogue, and bringing your own model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Annotated

import typer

from eyeline.errors import EyelineError
from eyeline_models import catalogue
from eyeline_models.errors import ModelError, UnknownModel
from eyeline_models.forms import Form
from eyeline_models.releases import RELEASES

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="The catalogue, and bringing your own model."
)

Into = Annotated[
    Path | None,
    typer.Option("--into", help="Folder of models [default: EYELINE_MODELS, or below the home folder]."),
]
Replace = Annotated[bool, typer.Option("--replace", help="Replace a model of that name.")]


@app.command("import")
def import_(
    file: Annotated[Path, typer.Argument(help="The ONNX file.")],
    name: Annotated[str, typer.Option(help="Its name in the catalogue and in Triton.")],
    into: Into = None,
    form: Annotated[Form | None, typer.Option(help="Form of its outputs [default: by their shapes].")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(help="Class names, one a line, '-' for one not served [default: COCO's 80]."),
    ] = None,
    threshold: Annotated[float, typer.Option(help="Scores below are no objects.")] = 0.4,
    size: Annotated[
        tuple[int, int] | None,
        typer.Option(help="WIDTH HEIGHT in pixels, where the export leaves them free."),
    ] = None,
    rgb: Annotated[
        bool | None, typer.Option("--rgb/--bgr", help="Order of channels [default: BGR for yolox, else RGB].")
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(help="Pixels times this go in [default: 1/255 for yolov8 and detr, else 1]."),
    ] = None,
    imagenet: Annotated[bool, typer.Option("--imagenet", help="Normalize by ImageNet's mean.")] = False,
    licence: Annotated[str, typer.Option(help="Its licence, for the card.")] = "unknown",
    replace: Replace = False,
) -> None:
    """Make a served model of an ONNX detector (forms: yolox, yolov8, detr, centernet)."""
    _need_onnx()
    from eyeline_models.importing import Wish, bring, read_classes

    wish = Wish(
        name=name,
        form=form,
        size=size,
        classes=read_classes(classes) if classes is not None else None,
        threshold=threshold,
        rgb=rgb,
        scale=scale,
        imagenet=imagenet,
        licence=licence,
    )
    _made(bring(file, wish, into or catalogue.home(), replace=replace))


@app.command("list")
def list_() -> None:
    """Every model of the catalogue, and where it is."""
    seen = set()
    for folder in catalogue.folders():
        try:
            card = catalogue.load(folder)
        except EyelineError as problem:
            print(f"{folder.name:<24} cannot be used: {problem}")
            continue
        if card.name not in seen:
            width, height = card.input_size
            what = f"{len(card.classes):>3} classes"
            print(f"{card.name:<24} {card.form:<10} {width}x{height:<6} {what}  {folder}")
        seen.add(card.name)
    for release in RELEASES.values():
        if release.name not in seen:
            width, height = release.input_size
            print(f"{release.name:<24} {release.form:<10} {width}x{height:<6} to be fetched: {release.url}")


@app.command()
def show(name: Annotated[str, typer.Argument(help="Name of the model, or its folder.")]) -> None:
    """One model: where it comes from, and how its answers are read."""
    release = RELEASES.get(name)
    try:
        card = catalogue.load(name)
    except UnknownModel:
        if release is None:
            raise
        print(f"name:     {release.name} (not on this machine yet)\nurl:      {release.url}")
        print(f"sha256:   {release.sha256 or 'not known for certain: fetch needs --accept-digest'}")
        print(f"licence:  {release.licence}\nnotes:    {release.notes}")
        return
    width, height = card.input_size
    print(f"name:     {card.name}, version {card.version}\nfile:     {card.path}\nsha256:   {card.sha256}")
    print(f"input:    {width}x{height}, {'centred' if card.centred else 'top left'}, around it {card.fill}")
    print(f"form:     {card.form}, at most {card.max_detections} objects\nsource:   {card.source}")
    print(f"licence:  {card.licence}\nnotes:    {card.notes}")
    pairs = zip(card.classes, card.thresholds.tolist(), strict=True)
    print("classes:  " + ", ".join(f"{label} {least:.2f}" for label, least in pairs))


@app.command()
def fetch(
    name: Annotated[str, typer.Argument(help="A model of the catalogue that is published elsewhere.")],
    into: Into = None,
    accept_digest: Annotated[
        str | None, typer.Option(help="The sha256 that you vouch for, where the catalogue knows none.")
    ] = None,
    replace: Replace = False,
) -> None:
    """Download a published model, verify its digest and make a served model of it."""
    _need_onnx()
    from eyeline_models.fetching import fetch as get

    release = RELEASES.get(name)
    if release is None:
        raise UnknownModel(f"no published model is named {name!r}; known: {', '.join(RELEASES)}")
    _made(get(release, into or catalogue.home(), accept_digest=accept_digest, replace=replace))


def _need_onnx() -> None:
    """An agent's install runs models; making one needs more."""
    if importlib.util.find_spec("onnx") is None:
        raise ModelError("making a model needs the package onnx: pip install onnx, or install eyeline[cloud]")


def _made(card: catalogue.ModelCard) -> None:
    width, height = card.input_size
    what = f"{card.form}, {width}x{height}, {len(card.classes)} classes"
    print(f"{card.name}: {what}, runs; in {card.path.parent}")
    base = card.path.parent.parent
    if base.resolve() not in {folder.parent.resolve() for folder in catalogue.folders()}:
        print(f"to use it by its name: export {catalogue.SEARCH_VARIABLE}={base}")


def main() -> None:
    """Entry point of `python -m eyeline_models`."""
    try:
        app()
    except EyelineError as problem:
        sys.stderr.write(f"{problem}\n")
        raise SystemExit(2) from None
