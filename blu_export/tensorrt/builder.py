"""From a typed ONNX graph to an engine, with TensorRT or TensorRT-RTX: the two share one API."""

from __future__ import annotations

import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from blu_export.errors import BluError, MissingDependencyError, ModelFileError, UsageError
from blu_export.files import atomic_write
from blu_export.tensorrt.sidecar import Batch, Canvases

if TYPE_CHECKING:
    import tensorrt

log = logging.getLogger(__name__)

KEPT_MESSAGES = 20
"""Different warnings that the sidecar quotes."""

_NO_FLOAT32_PRODUCT = (
    "TensorRT-RTX has no float32 matrix product for Turing cards: build with --fp16, or with --builder tensorrt on a "
    "machine with the card."
)

Progress = Callable[[str, int, int], None]
"""``(phase, steps done, steps in all)``, called by the builder as it works."""


@dataclass(frozen=True)
class BuildOptions:
    """What an engine is built for."""

    batch: Batch
    canvases: Canvases
    capability: tuple[int, int]
    workspace: int | None = None
    """Most scratch memory, bytes; None lets the builder take what the card has."""
    timing_cache: Path | None = None
    """Read before and written after the build; TensorRT only, since the other times nothing."""
    level: int | None = None
    """Builder optimization level, 0..5; None is the builder's default."""
    channels: int = 3
    """Of a canvas."""


@dataclass(frozen=True)
class Built:
    """An engine and how its build went."""

    engine: bytes
    seconds: float
    log: dict[str, Any] = field(default_factory=dict)


def build(
    trt: ModuleType,
    model: bytes,
    options: BuildOptions,
    node_names: Collection[str],
    progress: Progress | None = None,
) -> Built:
    """Build an engine of a typed model.

    Args:
        trt: ``libraries.tensorrt()`` or ``libraries.tensorrt_rtx()``.
        model: the ONNX file, target ``tensorrt``.
        node_names: its nodes; one that is refused is named in the error.

    Raises:
        ModelFileError: a node is refused; the error names it and its stage.
        UsageError: the builder does not know this compute capability.
        KeyboardInterrupt: while it worked; the build was stopped.
    """
    start = time.perf_counter()
    logger = make_logger(trt, quiet=True)
    builder: tensorrt.Builder | None = trt.Builder(logger)
    if builder is None:
        raise MissingDependencyError(
            f"{title(trt)} cannot start: {logger.last_error()}", "Look at blu doctor for driver and GPU."
        )
    network: tensorrt.INetworkDefinition = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser: tensorrt.OnnxParser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise _refusal(trt, [_parser_error(parser.get_error(i)) for i in range(parser.num_errors)], node_names)
    config: tensorrt.IBuilderConfig = builder.create_builder_config()
    _configure(trt, config, options)
    cache = _load_timing_cache(config, options.timing_cache)
    profile: tensorrt.IOptimizationProfile = builder.create_optimization_profile()
    batch, canvases = options.batch, options.canvases
    sizes = (batch.smallest, batch.best, batch.largest)
    shapes: dict[str, list[Any]] = {  # tuples become TensorRT's Dims by themselves
        "canvas": [
            (size, *canvas, options.channels)
            for size, canvas in zip(sizes, (canvases.smallest, canvases.best, canvases.largest), strict=True)
        ],
        "window": [(size, 4) for size in sizes],
    }
    for name, of_profile in shapes.items():
        profile.set_shape(name, *of_profile)
    config.add_optimization_profile(profile)
    monitor = _make_monitor(trt, progress)
    config.progress_monitor = monitor
    engine = builder.build_serialized_network(network, config)
    if monitor.interrupted:
        raise KeyboardInterrupt
    if engine is None:
        raise _refusal(trt, logger.errors or ["no reason given"], node_names)
    if cache is not None and options.timing_cache is not None:
        with atomic_write(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(config.get_timing_cache().serialize()))
    return Built(bytes(engine), time.perf_counter() - start, logger.summary())


def title(trt: ModuleType) -> str:
    """``TensorRT 11.4.0.106`` or ``TensorRT-RTX 1.7.1.116``."""
    return f"{'TensorRT-RTX' if is_rtx(trt) else 'TensorRT'} {trt.__version__}"


def is_rtx(trt: ModuleType) -> bool:
    """Whether a module is TensorRT-RTX."""
    return "rtx" in trt.__name__


def rtx_capability(trt: ModuleType, capability: tuple[int, int]) -> Any:
    """TensorRT-RTX's own value of a compute capability.

    Raises:
        UsageError: it does not build for this one.
    """
    name = "SM{}{}".format(*capability)
    found = getattr(trt.ComputeCapability, name, None)
    if found is None:
        known = sorted(int(n[2:]) for n in dir(trt.ComputeCapability) if re.fullmatch(r"SM\d+", n))
        raise UsageError(
            f"{title(trt)} does not build for {name.lower()}.",
            f"It builds for {', '.join(f'sm{n}' for n in known)}; use --builder tensorrt on a machine with the GPU.",
        )
    return found


def check_target(trt: ModuleType, capability: tuple[int, int]) -> None:
    """Whether a builder knows a GPU at all, before minutes of work; TensorRT knows what is there.

    Raises:
        UsageError: it does not build for this one.
    """
    if is_rtx(trt):
        rtx_capability(trt, capability)


def _configure(trt: ModuleType, config: tensorrt.IBuilderConfig, options: BuildOptions) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector then shows every layer's types
    config.clear_flag(trt.BuilderFlag.TF32)  # ten bits of mantissa would be another precision than the file's
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.level is not None:
        config.builder_optimization_level = options.level
    if is_rtx(trt):
        _aim(config, rtx_capability(trt, options.capability))


def _aim(config: Any, capability: Any) -> None:
    """Build for one compute capability; TensorRT-RTX only."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)


def _load_timing_cache(config: tensorrt.IBuilderConfig, path: Path | None) -> tensorrt.ITimingCache | None:
    if path is None:
        return None
    data = path.read_bytes() if path.exists() else b""
    cache: tensorrt.ITimingCache | None = config.create_timing_cache(data)
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        log.warning("the timing cache %s is of another GPU or TensorRT version: a new one is begun", path)
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, ignore_mismatch=False)
    return cache


def _parser_error(error: tensorrt.ParserError) -> str:
    return f"{error.node_name()} ({error.node_operator()}): {error.desc()}"


def _refusal(trt: ModuleType, messages: list[str], node_names: Collection[str]) -> BluError:
    """The error for a graph that the builder did not take: which node, of which stage, and why."""
    text = messages[0]
    quoted = [n for message in messages for n in re.findall(r"[\w./:-]+", message.replace("'", " "))]
    node = next((n for n in quoted if n in node_names), None)
    where = f"node {node} of stage {node.partition('/')[0]}" if node else "the graph"
    fix = _NO_FLOAT32_PRODUCT if "FP32 GEMM is not supported" in text else "blu inspect shows what is in the file."
    return ModelFileError(f"{title(trt)} refuses {where}: {' '.join(text.split()).rstrip('.')}.", fix)


def make_logger(trt: ModuleType, quiet: bool = False) -> Any:
    """A logger for the builder or runtime that keeps warnings and errors.

    Args:
        quiet: errors are not shown as they come, since the caller quotes them.
    """
    error_level = logging.DEBUG if quiet else logging.ERROR

    class Logger(trt.ILogger):  # type: ignore[name-defined, misc]
        """Keeps what is worth a look."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: Counter[str] = Counter()

        def log(self, severity: Any, message: str) -> None:
            """Called by the native library, from any thread."""
            if severity <= trt.ILogger.Severity.ERROR:
                self.errors.append(message)
                log.log(error_level, "%s", message)
            elif severity == trt.ILogger.Severity.WARNING:
                self.warnings[message.strip()] += 1
            else:
                log.debug("%s", message)

        def last_error(self) -> str:
            """The last error, or that there was none."""
            return self.errors[-1] if self.errors else "no reason given"

        def summary(self) -> dict[str, Any]:
            """Counts, and the different warnings."""
            return {
                "errors": self.errors,
                "warnings": sum(self.warnings.values()),
                "different_warnings": dict(self.warnings.most_common(KEPT_MESSAGES)),
            }

    return Logger()


def _make_monitor(trt: ModuleType, progress: Progress | None) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined, misc]
        """Passes the outermost phases on; stops the build on Ctrl-C."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.interrupted = False
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            """Called by the builder."""
            self._steps[phase_name] = num_steps
            self._report(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            """Called by the builder; False asks it to stop."""
            self._report(phase_name, step)
            return not self.interrupted

        def phase_finish(self, phase_name: str) -> None:
            """Called by the builder."""
            self._report(phase_name, self._steps.pop(phase_name, 0))

        def _report(self, phase: str, done: int) -> None:
            try:
                if progress is not None:
                    progress(phase, done, self._steps.get(phase, done))
            except KeyboardInterrupt:  # an exception must not pass through the native library
                self.interrupted = True

    return Monitor()
