"""``blu serve``: a model over HTTP, and over gRPC where asked."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated

import typer

from blu_export.cli.common import command_app, say
from blu_export.cli.options import (
    ConfigOption,
    DeviceOption,
    IgnoreLayersOption,
    PrecisionOption,
    RuntimeOption,
    SettingsOption,
    ThreadsOption,
    runner_options,
)
from blu_export.errors import ModelFileError, UsageError
from blu_export.runtime.options import WEIGHT_SUFFIXES

app = command_app()

SUFFIXES = (".onnx", ".engine", *WEIGHT_SUFFIXES)


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Argument(help="Model file (.onnx, .engine, .h5, .keras). Default: the embedded model.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0: any free one.")] = 8000,
    grpc_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve the Open Inference Protocol over gRPC too.")
    ] = None,
    max_batch: Annotated[
        int,
        typer.Option(
            min=1, max=1024, help="Photos in the network at a time, at most: a batch on a GPU; one a core elsewhere."
        ),
    ] = 4,
    batch_delay_ms: Annotated[float, typer.Option(min=0, help="How long a first photo waits for others.")] = 0.0,
    queue: Annotated[
        int, typer.Option(min=1, max=2**16, help="Photos in the server at once; beyond it clients get 429.")
    ] = 64,
    max_wait: Annotated[
        float, typer.Option(help="Seconds of work that a new photo may find ahead of it; beyond it clients get 429.")
    ] = 5.0,
    timeout: Annotated[float, typer.Option(help="Seconds from request to result, the queue included.")] = 30.0,
    max_upload: Annotated[float, typer.Option(min=0.001, help="Megabytes of a request.")] = 20.0,
    max_pixels: Annotated[float, typer.Option(min=0.01, help="Megapixels of a photo.")] = 50.0,
    max_json: Annotated[
        float, typer.Option(min=0.001, help="Megabytes of JSON in a request; larger tensors go beside it.")
    ] = 1.0,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one per line; clients must then send one of them.")
    ] = None,
    cors: Annotated[
        list[str] | None,
        typer.Option(metavar="ORIGIN", help="Let pages of this site use the server (https://example.org); repeatable."),
    ] = None,
    notice: Annotated[
        float, typer.Option(min=0, help="Seconds from SIGTERM until new photos are refused; not ready from the start.")
    ] = 3.0,
    reload: Annotated[
        bool, typer.Option("--reload", help="Take over a new model file as soon as it is there.")
    ] = False,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Serve on a Ray cluster: its address, auto, or local.")
    ] = None,
    replicas: Annotated[str, typer.Option(help="Copies on the cluster: a number, or a range like 1-4.")] = "1",
    config: ConfigOption = None,
    spec_settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "file",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Serve a model: a page for people, an API for programs.

    The page is at /, the API's description at /docs, metrics at /metrics. Programs that speak the Open
    Inference Protocol (KServe v2; Triton's clients) find it at /v2. SIGTERM finishes what is inside;
    SIGHUP loads the model file again.

    \b
    blu serve
    blu serve model.onnx --port 9000 --reload
    blu serve --host 0.0.0.0 --api-key-file keys.txt
    """
    from blu_export.embedded import embedded
    from blu_export.extras import import_extra
    from blu_export.serve.hangups import Hangups

    hangups = Hangups()
    packages = ["fastapi", "uvicorn", "prometheus_client", "python_multipart"]
    for package in packages + (["grpc", "tritonclient"] if grpc_port is not None else []):
        import_extra(package)
    from blu_export.serve.logs import set_up
    from blu_export.serve.server import run
    from blu_export.serve.settings import MEGABYTE, ServeSettings, read_api_keys

    path = model or embedded()
    if path.suffix.lower() not in SUFFIXES:
        raise ModelFileError(
            f"blu serve runs {', '.join(SUFFIXES)} files, not {path}.", "Name a file of one of these kinds."
        )
    settings = ServeSettings(
        model=path,
        host=host,
        port=port,
        grpc_port=grpc_port,
        options=runner_options(runtime, precision, device, threads, spec_settings, config, ignore_layers),
        max_batch=max_batch,
        batch_delay=batch_delay_ms / 1000,
        queue=queue,
        max_wait=max_wait,
        timeout=timeout,
        notice=notice,
        max_upload=_whole("--max-upload", max_upload, MEGABYTE),
        max_pixels=_whole("--max-pixels", max_pixels, 10**6),
        max_json=_whole("--max-json", max_json, MEGABYTE),
        api_keys=() if api_key_file is None else read_api_keys(api_key_file),
        cors=tuple(cors or ()),
        reload=reload,
    )
    set_up()
    if not settings.api_keys and not _is_loopback(host):
        say(f"warning: anyone who reaches {host} can use this server; --api-key-file sets keys.")
    if ray is not None:
        import_extra("ray.serve")
        from blu_export.serve import ray_app

        ray_app.run(settings, ray_app.RaySettings(ray, *ray_app.parse_replicas(replicas)))
        return
    run(settings, hangups)


def _is_loopback(host: str) -> bool:
    from ipaddress import ip_address

    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _whole(option: str, number: float, unit: int) -> int:
    """So many units as a whole number; raises UsageError for inf and nan."""
    if not isfinite(number):
        raise UsageError(f"{option} must be a number, not {number}.")
    return round(number * unit)
