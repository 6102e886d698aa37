"""The same application on a Ray cluster: Ray Serve gives it replicas, autoscaling and one address.

Every replica is a whole Service with a worker process of its own and the limits of ``blu serve``: a photo that finds
its replica busy gets 429. ``/metrics`` shows the counters of all replicas, told apart by the label ``replica``.
"""

from __future__ import annotations

import logging
import queue
import signal
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from blu_export.cluster import Share, config_in, connect, model_files, model_folder, share_for
from blu_export.errors import BluError, UsageError
from blu_export.extras import import_extra
from blu_export.serve.app import create_app
from blu_export.serve.logs import set_up
from blu_export.serve.service import Service
from blu_export.serve.settings import ServeSettings

log = logging.getLogger(__name__)

APP = "blu"
"""Name of the application, as ``serve status`` shows it."""
DEPLOYMENT = "replica"
SPARE_REQUESTS = 32
"""Requests that a replica takes beyond its queue, so that it is itself who refuses them, and health always answers."""
SCRAPE_TIMEOUT = 5.0
"""Seconds that the counters of all replicas may take; a scrape of Prometheus gives up after 10."""
START_ATTEMPTS = 3
"""Replicas that may fail to start, one after another, before the command gives up. Ray's own rule is three for each
that was asked for, although a model that one cannot load none can."""
POLL = 1.0
"""Seconds between two looks at replicas that come up; Ray's own ``serve.run`` looks as often."""


@dataclass(frozen=True)
class RaySettings:
    """How an application lies on a cluster."""

    address: str
    """Of the cluster; ``auto`` the one of this machine, ``local`` a new one here."""
    least: int = 1
    """Replicas that are always there."""
    most: int = 1
    """Replicas under load."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise UsageError(f"{self.least} to {self.most} replicas is not a range.", "Write for example 1-4.")


def parse_replicas(text: str) -> tuple[int, int]:
    """``2`` or ``1-4``: fewest and most replicas."""
    least, dash, most = text.partition("-")
    if not (least.isdecimal() and (most.isdecimal() or not dash)):
        raise UsageError(f"'{text}' is not a number of replicas.", "Write a number, or a range: 1-4.")
    return int(least), int(most or least)


class Replica:
    """One copy of the application, in an actor of its own.

    Args:
        settings: as of ``blu serve``.
        model: a list of one reference, to the contents of the model's files by name. In a list Ray leaves it one.
    """

    def __init__(self, settings: ServeSettings, model: list[Any]) -> None:
        self._settings, self._model = settings, model
        self._service: Service | None = None
        self._kept: tempfile.TemporaryDirectory[str] | None = None

    async def start(self) -> None:
        """Load the model, which is copied to this machine."""
        contents = await self._model[0]
        with model_folder(contents) as folder:  # the service keeps copies of its own, but not of the settings file
            settings = replace(self._settings, model=folder / self._settings.model.name)
            if (config := settings.options.config) is not None:
                self._kept = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
                for name in (name for name in contents if name.endswith((".py", ".toml"))):
                    Path(self._kept.name, name).write_bytes(contents[name])
                config = config_in(Path(self._kept.name), config)
                settings = replace(settings, options=replace(settings.options, config=config))
            service = Service(settings)
            await service.start()
        self._service = service

    @property
    def service(self) -> Service:
        """The running service."""
        assert self._service is not None, "the replica was not started"
        return self._service

    def build_app(self) -> Any:
        """The ASGI application; its metrics are those of all replicas."""
        return create_app(self.service, all_metrics)

    def check_health(self) -> None:
        """Ray calls it now and then, and replaces a replica for which it raises."""
        if self._service is not None and not self._service.alive:
            raise RuntimeError("the batcher has failed")

    async def own_metrics(self) -> tuple[str, bytes]:
        """The id of the replica, and its counters."""
        context = import_extra("ray.serve").get_replica_context()
        return str(context.replica_id.unique_id), self.service.metrics.text()

    async def close(self) -> None:
        """Stop the worker."""
        if self._service is not None:
            await self._service.close()
        if self._kept is not None:
            self._kept.cleanup()


async def all_metrics() -> bytes:
    """Counters of all replicas."""
    serve = import_extra("ray.serve")
    handle = serve.get_deployment_handle(DEPLOYMENT, APP)
    return merge_metrics(await handle.broadcast("own_metrics").results_async(timeout_s=SCRAPE_TIMEOUT))


def merge_metrics(parts: Iterable[tuple[str, bytes]]) -> bytes:
    """Counters of several servers as one text, with the label ``replica``."""
    families: dict[str, Metric] = {}
    for replica, text in parts:
        for family in text_string_to_metric_families(text.decode()):
            whole = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            for sample in family.samples:
                whole.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)

    class All:
        def collect(self) -> Iterable[Metric]:
            return families.values()

    merged: bytes = generate_latest(All())
    return merged


def run(settings: ServeSettings, ray_settings: RaySettings) -> None:
    """Deploy, wait for SIGTERM or SIGINT, then let the replicas finish and remove the application.

    Raises:
        BluError: there is no such cluster, no room on it, Ray Serve listens elsewhere, or the model cannot be loaded.
        KeyboardInterrupt: it was SIGINT.
    """
    if settings.grpc_port is not None or settings.reload:
        raise UsageError(
            "--grpc-port and --reload do not work on Ray.", "Start the command again to serve a new model file."
        )
    ray = connect(ray_settings.address)
    options = settings.options
    share = share_for(ray_settings.address, settings.model, options.device, ray_settings.least, options.threads)
    stopped: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stopped.put(number))
    model = ray.put(model_files(settings.model, options.config))
    with ray_serve(settings) as serve:
        shared = replace(settings, options=replace(options, threads=share.cpus))
        app = application(serve, shared, ray_settings, share, model)
        try:
            # Not serve.run: where the cluster is busy it waits for ever, and no signal ends it.
            serve.run_many([serve.RunTarget(app, name=APP)], wait_for_applications_running=False)
            if wait_until_running(serve, stopped):
                log.info("listening", extra={"url": f"http://{settings.host}:{settings.port}", "port": settings.port})
            signaled = stopped.get()
        finally:
            serve.delete(APP)
    log.info("stopped")
    if signaled == signal.SIGINT:
        raise KeyboardInterrupt


@contextmanager
def ray_serve(settings: ServeSettings) -> Iterator[Any]:
    """Ray Serve, as the module: the one that runs on the cluster, or a new one that ends with the block.

    A new one stays where others have put applications on it meanwhile.

    Raises:
        UsageError: the one that runs listens elsewhere than the settings say.
    """
    serve = import_extra("ray.serve")
    from ray.serve.context import _get_global_client  # nothing public tells where Ray Serve listens

    running = _get_global_client(raise_if_no_controller_running=False)
    if running is not None:
        check_address(settings, running.http_config.host, running.http_config.port)
        yield serve
        return
    try:
        serve.start(proxy_location="EveryNode", http_options={"host": settings.host, "port": settings.port})
        yield serve
    finally:
        if not serve.status().applications:
            serve.shutdown()


def check_address(settings: ServeSettings, host: str | None, port: int) -> None:
    """Raise UsageError where the settings are not the address at which the cluster's Ray Serve listens already."""
    if (host, port) != (settings.host, settings.port):
        raise UsageError(
            f"Ray Serve is on this cluster already, on {host}:{port} and not {settings.host}:{settings.port}.",
            f"Use --host {host} --port {port}, or end it with: serve shutdown",
        )


def wait_until_running(serve: Any, stopped: queue.SimpleQueue[int]) -> bool:
    """Wait until all first replicas are up; False where a signal came before.

    Raises:
        BluError: they do not start.
    """
    while stopped.empty():
        app = serve.status().applications.get(APP)
        if app is not None and app.status == "RUNNING":
            return True
        if app is not None and app.status == "DEPLOY_FAILED":
            raise BluError(
                f"The replicas do not start: {app.message}",
                "Try the model with: blu infer PHOTO -m MODEL; see ray status.",
            )
        time.sleep(POLL)
    return False


def application(serve: Any, settings: ServeSettings, ray_settings: RaySettings, share: Share, model: Any) -> Any:
    """What ``serve.run`` takes."""

    class Deployed(Replica):
        async def __init__(self, settings: ServeSettings, model: list[Any]) -> None:  # type: ignore[misc]
            super().__init__(settings, model)
            set_up()
            await self.start()

        def __serve_build_asgi_app__(self) -> Any:
            return self.build_app()

        async def __del__(self) -> None:
            await self.close()

    deployment = serve.deployment(
        serve.ingress()(Deployed),
        name=DEPLOYMENT,
        max_ongoing_requests=settings.queue + SPARE_REQUESTS,
        autoscaling_config={
            "min_replicas": ray_settings.least,
            "max_replicas": ray_settings.most,
            # Twice a batch: one in the network and one to follow it.
            "target_ongoing_requests": 2 * settings.max_batch,
        },
        graceful_shutdown_timeout_s=settings.drain,
        max_constructor_retry_count=START_ATTEMPTS,
        ray_actor_options={"num_cpus": share.cpus, "num_gpus": share.gpus},
    )
    return deployment.bind(settings, [model])
