"""`cloud-inference engines`: graphs in a precision, and engines, made and kept."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud_inference.engines import build as building
from cloud_inference.engines import tensorrt
from cloud_inference.engines.build import MOST_LOST, Wish
from cloud_inference.engines.cache import EngineStore, Stored
from cloud_inference.engines.typed import Precision
from cloud_inference.errors import EngineFailed
from eyeline_models import catalogue

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="TensorRT engines: build, measure, keep for all nodes."
)

Model = Annotated[str, typer.Argument(help="Name of the model, or its folder.")]
Store = Annotated[
    str,
    typer.Option(
        help="s3://BUCKET/PREFIX (endpoint and keys from AWS_*), or a folder.", envvar="EYELINE_ENGINE_STORE"
    ),
]
Pictures = Annotated[
    list[Path] | None,
    typer.Option(help="Image, folder of images or video like your cameras'; repeat it for several."),
]
MostPictures = Annotated[
    int, typer.Option(min=2, max=10_000, help="Of these, half to calibrate, half held out.")
]
MostLost = Annotated[float, typer.Option("--max-loss", min=0, max=1, help="F1 that may be lost to float32.")]


@app.command("build")
def build_(
    model: Model,
    store: Store,
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.FP16,
    batch: Annotated[str, typer.Option(help="LEAST..MOST, or LEAST..BEST..MOST.")] = "1..32",
    pictures: Pictures = None,
    most_pictures: MostPictures = 64,
    most_lost: MostLost = MOST_LOST,
    compute_capability: Annotated[
        str | None, typer.Option(help="Of the GPU it is for, such as 8.9 [default: the one here].")
    ] = None,
    builder: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt-rtx [default: what is installed].")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the plan there too.")] = None,
) -> None:
    """Build the engine for one kind of GPU, unless the store has it."""
    if builder not in {None, "tensorrt", "tensorrt-rtx"}:
        raise EngineFailed(f"--builder {builder!r} must be tensorrt or tensorrt-rtx")
    runtime = tensorrt.find(builder)  # type: ignore[arg-type]  # looked at above
    wish = Wish(
        precision=precision,
        profile=building.profile_of(batch),
        capability=tensorrt.Capability.parse(compute_capability) if compute_capability else None,
        pictures=tuple(pictures or ()),
        most_pictures=most_pictures,
        most_lost=most_lost,
    )
    made = building.plan(catalogue.load(model), wish, EngineStore(store), runtime, _tell)
    _report(made)
    if out is not None:
        out.write_bytes(made.data)


@app.command()
def convert(
    model: Model,
    store: Store,
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.FP16,
    pictures: Pictures = None,
    most_pictures: MostPictures = 64,
    most_lost: MostLost = MOST_LOST,
) -> None:
    """Make and measure the graph alone, from which every node builds its own engine; no builder is needed."""
    wish = Wish(
        precision=precision,
        profile=tensorrt.Profile(),
        pictures=tuple(pictures or ()),
        most_pictures=most_pictures,
        most_lost=most_lost,
    )
    _report(building.graph(catalogue.load(model), wish, EngineStore(store), _tell))


@app.command("list")
def list_(store: Store) -> None:
    """What the store has."""
    for path, about in EngineStore(store).list().items():
        accuracy = about.get("accuracy")
        loss = f"loses {accuracy['loss']:.3f}" if accuracy else "float32"
        print(f"{about.get('model', '?'):<24} {about.get('bytes', 0):>12} bytes  {loss:<12} {path}")


@app.command()
def serve(
    store: Store,
    repository: Annotated[Path, typer.Option(help="Triton's model repository, with the ONNX form in it.")],
    model: Annotated[list[str], typer.Option(help="Model to make faster; repeat it for several.")],
    triton: Annotated[str, typer.Option(help="Triton's gRPC address.")] = "127.0.0.1:8001",
    runtime: Annotated[
        str, typer.Option(help="tensorrt: a plan for this node's GPU; onnxruntime: the published graph.")
    ] = "tensorrt",
    precision: Annotated[Precision, typer.Option(help="Of the network.")] = Precision.FP16,
    batch: Annotated[str, typer.Option(help="LEAST..MOST, or LEAST..BEST..MOST.")] = "1..32",
    device: Annotated[str, typer.Option(help="Of the ONNX form: cpu, gpu or auto.")] = "auto",
    max_queue_delay_us: Annotated[int, typer.Option(min=0, max=1_000_000)] = 500,
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads of one run of the ONNX form.")] = 1,
) -> None:
    """Beside a Triton in explicit control: go over to the plan as soon as there is one, then wait to be
    stopped.
    """
    if runtime not in {"tensorrt", "onnxruntime"}:
        raise EngineFailed(f"--runtime {runtime!r} must be tensorrt or onnxruntime")
    if device not in {"cpu", "gpu", "auto"}:
        raise EngineFailed(f"--device {device!r} must be cpu, gpu or auto")
    from cloud_inference.engines import manager
    from cloud_inference.running import run
    from cloud_inference.triton_repository import Serving
    from eyeline import log

    log.configure(level="info")
    profile = building.profile_of(batch)
    serving = Serving(profile.most, max_queue_delay_us, threads, device=device)  # type: ignore[arg-type]
    words = ("--store", store, "--precision", str(precision), "--batch", batch, "--builder", "tensorrt")
    make = (
        manager.plan_by(words) if runtime == "tensorrt" else manager.graph_from(EngineStore(store), precision)
    )
    cards = [catalogue.load(name) for name in model]
    run(
        manager.serve(
            cards,
            make,
            "plan" if runtime == "tensorrt" else "onnx",
            url=triton,
            root=repository,
            serving=serving,
        )
    )


def _tell(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def _report(made: Stored) -> None:
    accuracy = made.about.get("accuracy")
    if accuracy:
        print(
            f"accuracy: F1 {accuracy['f1']:.4f} ({accuracy['f1_low']:.4f} to {accuracy['f1_high']:.4f}) "
            "against "
            f"float32 on {accuracy['pictures']} held-out pictures with {accuracy['objects']} objects; "
            f"scores shift by {accuracy['score_shift']:+.4f}, boxes overlap {accuracy['box_iou']:.4f}"
        )
    print(f"sha256:   {made.about['sha256']}, {made.about['bytes']} bytes")
