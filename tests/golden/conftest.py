"""Models of the golden configurations in every runtime, and the original's results as instances."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from golden_cases import CONFIGURATIONS, Golden
from made import hash_of, made
from numpy.typing import NDArray

from blu_export.detections import Detections
from blu_export.image import Molded, unmold
from blu_export.runtime.base import Runner
from blu_export.spec import ModelSpec


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One process runs all of these: each that did would hold a model of every configuration."""
    for item in items:
        if item.path.parent == Path(__file__).parent:
            item.add_marker(pytest.mark.xdist_group("golden"))


@pytest.fixture(scope="session")
def golden(golden_case: Callable[[str, str], Any]) -> Callable[[str, str], Golden]:
    """``golden(cfg, image)``: one case; ``cfg`` may be ``edge_cases``."""

    def load(cfg: str, image: str) -> Golden:
        case = golden_case(cfg, image)
        crops = [case["masks"][y1:y2, x1:x2, i] for i, (y1, x1, y2, x2) in enumerate(case["rois"])]
        return Golden(
            image,
            case["image"],
            case["padded_image"],
            case["window"].astype(np.float32),
            case["rois"],
            case["class_ids"],
            case["scores"],
            tuple(crops),
            case,
        )

    return load


@pytest.fixture(scope="session")
def images_of(shared: Path) -> Callable[[str], list[str]]:
    """``images_of(cfg)``: the names of its cases."""
    return lambda cfg: sorted(path.stem for path in (shared / "golden/expected" / cfg).glob("*.npz"))


KerasModel = Callable[[str, tuple[str, ...]], Any]


@pytest.fixture(scope="module")
def keras_model(golden_weights: Callable[[str], Path]) -> Iterator[KerasModel]:
    """``keras_model(cfg, settings)``: the Keras model, kept until another is asked for."""
    kept: dict[Any, Any] = {}

    def forget() -> None:
        kept.clear()
        gc.collect()  # it is full of cycles

    def build(cfg: str, settings: tuple[str, ...]) -> Any:
        from blu_export.model.weights import build_model

        if (cfg, settings) not in kept:
            forget()
            kept[cfg, settings] = build_model(golden_weights(cfg), settings=[*CONFIGURATIONS[cfg], *settings])[0]
        return kept[cfg, settings]

    yield build
    forget()


class OnceRun(Runner):
    """The Keras model, which computes each canvas once per user and source; built when it must compute."""

    runtime, precision, device = "keras", "float32", "CPU"

    def __init__(self, name: str, weights: Path, spec: ModelSpec, model: Callable[[], Any]) -> None:
        self.name, self.weights, self.spec, self.model = name, weights, spec, model

    def run(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> tuple[Any, Any]:
        """See Runner.run."""

        def make(path: Path) -> None:
            detections, masks, _ = self.run_stages(canvas, window)
            np.savez_compressed(path, detections=detections, masks=masks)

        with np.load(made(f"{self.name}-keras-{hash_of(canvas, window)}.npz", make, self.weights)) as arrays:
            return arrays["detections"], arrays["masks"]

    def run_stages(self, canvas: NDArray[np.uint8], window: NDArray[np.float32]) -> Any:
        """See KerasRunner.run_stages; computed each time."""
        from blu_export.runtime.keras import KerasRunner

        return KerasRunner.of_model(self.model()).run_stages(canvas, window)


@pytest.fixture(scope="session")
def golden_spec(golden_weights: Callable[[str], Path]) -> Callable[[str, tuple[str, ...]], ModelSpec]:
    """``golden_spec(cfg, settings)``: the spec of that configuration with more settings."""
    from blu_export.model.given import Given
    from blu_export.model.weights import read_weights

    @cache
    def spec(cfg: str, settings: tuple[str, ...]) -> ModelSpec:
        return read_weights(golden_weights(cfg)).make_spec(Given.of(settings=[*CONFIGURATIONS[cfg], *settings]))

    return spec


@pytest.fixture(scope="module")
def runner(
    keras_model: KerasModel, golden_weights: Callable[[str], Path], golden_spec: Callable[..., ModelSpec]
) -> Iterator[Callable[..., Runner]]:
    """``runner(cfg, runtime, *more settings)``: that model. The one given before is closed."""
    from blu_export.export.onnx import export_onnx
    from blu_export.export.options import ExportOptions
    from blu_export.runtime import RunnerOptions, load_runner

    def exported(cfg: str, settings: tuple[str, ...], target: str) -> Path:
        weights = golden_weights(cfg)
        options = ExportOptions(settings=[*CONFIGURATIONS[cfg], *settings], target=target, verify=False)
        return made(
            f"{name_of(cfg, settings)}-{target}.onnx", lambda path: export_onnx(weights, path, options), weights
        )

    with ExitStack() as open_now:

        def make(cfg: str, runtime: str, *settings: str) -> Runner:
            open_now.close()
            if runtime == "keras":
                model = partial(keras_model, cfg, settings)
                spec = golden_spec(cfg, settings)
                return open_now.enter_context(OnceRun(name_of(cfg, settings), golden_weights(cfg), spec, model))
            name, _, target = runtime.partition("-")
            return open_now.enter_context(
                load_runner(exported(cfg, settings, target or "portable"), RunnerOptions(name))
            )

        yield make


def name_of(cfg: str, settings: tuple[str, ...]) -> str:
    """Names files of that model."""
    return "-".join([cfg, *settings])


@pytest.fixture(scope="module")
def from_proposals(
    keras_model: KerasModel, golden_weights: Callable[[str], Path], golden_spec: Callable[..., ModelSpec]
) -> Callable[..., Detections]:
    """``from_proposals(cfg, settings, case, clamp)``: what the Keras model finds from the original's own proposals.

    ``clamp=False`` samples as the original does, rows of zeros included (see ROI_EDGE); ``True`` as we do.
    Nothing else differs between the two. Computed once per user and source.
    """

    def compute(cfg: str, settings: tuple[str, ...], case: Golden, clamp: bool, path: Path) -> None:
        import tensorflow as tf

        from blu_export.model import roi_align

        model = keras_model(cfg, settings)
        *pyramid, _, _, _ = model.trunk(model.preprocess(case.canvas[None]), training=False)
        with mock.patch.object(roi_align, "ROI_EDGE", roi_align.ROI_EDGE if clamp else 1.0):
            found = model.detect_in(
                tf.constant(case.arrays["rpn_rois"][None]),
                pyramid,
                tf.constant(case.window[None]),
                tf.constant(case.canvas.shape[:2]),
            )
        np.savez_compressed(path, detections=found["detections"][0].numpy(), masks=found["masks"][0].numpy())

    def detect(cfg: str, settings: tuple[str, ...], case: Golden, clamp: bool) -> Detections:
        given = hash_of(case.canvas, case.window, case.arrays["rpn_rois"])
        name = f"{name_of(cfg, settings)}-from-proposals-{given}-{'clamped' if clamp else 'zeros'}.npz"
        made_at = made(name, partial(compute, cfg, settings, case, clamp), golden_weights(cfg))
        canvas = Molded(case.canvas, case.window, 1.0, case.image.shape[:2])
        with np.load(made_at) as arrays:
            return unmold(arrays["detections"], arrays["masks"], canvas, golden_spec(cfg, settings))

    return detect
