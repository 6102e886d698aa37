"""``blu export triton``: a model repository that the Triton server loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from blu_export.cli.common import command_app, say, wrote

app = command_app()


@app.command()
def export_triton(
    model: Annotated[
        Path | None, typer.Argument(help="Model file (.onnx, .engine). Default: the embedded model.")
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The repository; models that it holds already stay.")
    ] = Path("repository"),
    name: Annotated[str | None, typer.Option(help="Name of the model there. Default: that of the file.")] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Photos per call of the network. Default: 8, or what the engine takes.")
    ] = None,
    batch_delay_ms: Annotated[float, typer.Option(min=0, help="How long a first photo waits for others.")] = 0.0,
    instances: Annotated[int, typer.Option(min=1, help="Copies of the network, per GPU.")] = 1,
    frontends: Annotated[
        int | None, typer.Option(min=1, help="Processes that decode photos. Default: as many as a batch has photos.")
    ] = None,
    kind: Annotated[str, typer.Option(help="cpu, gpu, or auto: GPUs where there are any.")] = "auto",
) -> None:
    """Write a model repository for the Triton server.

    NAME takes encoded photos and gives what blu serve gives; NAME_network is the network behind it.
    Nothing is overwritten.

    \b
    blu export triton
    blu export triton coco.onnx -o repository/ --max-batch 16 --batch-delay-ms 2
    blu export triton coco.fp16.sm75.engine -o repository/ --name coco
    """
    from blu_export.embedded import embedded
    from blu_export.export.triton import TritonSettings
    from blu_export.export.triton import export_triton as export

    settings = TritonSettings(name, max_batch, batch_delay_ms / 1000, instances, frontends, kind)
    for folder in export(model or embedded(), output, settings):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.parent.name != "blu_export":
                wrote(path)
        print(folder)
    say(f"next: tritonserver --model-repository {output.resolve()}")
