"""``blu batch``: a large set of photos through a model, resumable, on this machine or on a Ray cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from blu_export.cli.common import command_app, progress, say, show_log
from blu_export.cli.options import (
    BatchOption,
    BitsOption,
    ConfigOption,
    DeviceOption,
    IgnoreLayersOption,
    JsonOption,
    MaxPixelsOption,
    ModelOption,
    OverlapOption,
    PrecisionOption,
    RuntimeOption,
    SettingsOption,
    ThreadsOption,
    TileOption,
    runner_options,
)
from blu_export.errors import EXIT_BAD_INPUT

if TYPE_CHECKING:
    from blu_export.batch.job import BatchJob, Report

app = command_app()


@app.command()
def batch(
    source: Annotated[
        str, typer.Argument(help="Folder, glob, list of names (.txt, one per line) or bucket (s3://…) of photos.")
    ],
    sink: Annotated[str, typer.Argument(help="Folder or bucket of the results.")],
    model: ModelOption = None,
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="parquet, or one of blu infer's: beside the Parquet files, _detections.coco.json, _detections.csv, or "
            "a folder like _overlay with a photo's own files.",
        ),
    ] = "parquet",
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes that each hold the model. Default: 1; on Ray 1 per machine.")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="Ray cluster: its address, auto, or local to start one here.")
    ] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Photos per file: what a crash costs, per worker.")] = 100,
    tile: TileOption = None,
    overlap: OverlapOption = 0.2,
    batch: BatchOption = 1,
    min_score: Annotated[
        float, typer.Option(min=0, max=1, help="Drop detections below this score; the model has a limit of its own.")
    ] = 0.0,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try photos that failed once more.")] = False,
    max_pixels: MaxPixelsOption = None,
    bits: BitsOption = None,
    as_json: JsonOption = False,
    config: ConfigOption = None,
    settings: SettingsOption = None,
    ignore_layers: IgnoreLayersOption = None,
    runtime: RuntimeOption = "auto",
    precision: PrecisionOption = "auto",
    device: DeviceOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Find objects on all photos of a folder or bucket, into Parquet files or a COCO file.

    After a stop or a crash the same command continues where it was: finished files are skipped. Photos that came
    meanwhile are added. A photo that cannot be read gets a row with the error; the exit code is then 3.

    \b
    blu batch photos/ found/
    blu batch s3://bucket/photos s3://bucket/found --ray auto
    blu batch photos.txt found/ --format coco --workers 4 --threads 1
    blu batch aerial/ found/ --tile 1024
    """
    from blu_export.extras import import_extra

    for package in ("pyarrow", "fsspec"):
        import_extra(package)
    from blu_export.batch.job import BatchJob, BatchSettings
    from blu_export.embedded import embedded

    show_log()
    job = BatchJob(
        BatchSettings(
            source=source,
            sink=sink,
            model=model or embedded(),
            format=file_format,
            workers=workers,
            ray=ray,
            shard_size=shard_size,
            batch=batch,
            min_score=min_score,
            tile=tile,
            overlap=overlap,
            retry_failed=retry_failed,
            options=runner_options(runtime, precision, device, threads, settings, config, ignore_layers),
            max_pixels=max_pixels,
            bits=bits,
        )
    )
    added = f", {job.new} of them new" if job.finished and job.new else ""
    say(f"{job.total} photos{added}; {job.finished} are finished, {job.total - job.finished} to do")
    for _ in progress(_run(job), job.total - job.finished):
        pass
    assert job.report is not None
    print(json.dumps(job.report.to_json()) if as_json else _text(job.report))
    if job.report.failed:
        say(f"{job.report.failed} failed: their rows say why; --retry-failed tries them again")
        raise typer.Exit(EXIT_BAD_INPUT)


def _run(job: BatchJob) -> Iterator[str]:
    try:
        yield from job.run()
    except KeyboardInterrupt:
        say("stopped; the same command continues from here")
        raise


def _text(report: Report) -> str:
    place = report.coco or report.files or report.sink
    lines = [
        f"{place}: {report.photos} photos, {report.detections} detections, {report.failed} failed",
    ]
    if report.ran:
        stages = "  ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in report.stage_seconds.items())
        lines += [
            f"this run: {report.ran} photos in {report.seconds:.1f} s, {report.rate:.2f}/s with {report.workers} "
            f"worker{'s' * (report.workers > 1)} ({report.model['runtime']} on {report.model['device']}, "
            f"{report.model['precision']})",
            f"ms per photo in a worker: {1000 * report.worker_seconds:.1f}; stages, which overlap: {stages}",
        ]
    return "\n".join(lines)
