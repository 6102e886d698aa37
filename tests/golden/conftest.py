"""Models of the golden configurations in every runtime, and the original's results as instances."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from golden_cases import CONFIGURATIONS, Golden

from blu_export.detections import Detections
from blu_export.image import Molded, unmold
from blu_export.runtime.base import Runner


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


@pytest.fixture(scope="module")
def keras_model(golden_weights: Callable[[str], Path]) -> Iterator[Callable[[str, tuple[str, ...]], Any]]:
    """``keras_model(cfg, settings)``: the Keras model, kept until another is asked for."""
    from blu_export.model.weights import build_model

    kept: dict[Any, Any] = {}

    def forget() -> None:
        kept.clear()
        gc.collect()  # it is full of cycles

    def build(cfg: str, settings: tuple[str, ...]) -> Any:
        if (cfg, settings) not in kept:
            forget()
            kept[cfg, settings] = build_model(golden_weights(cfg), settings=[*CONFIGURATIONS[cfg], *settings])[0]
        return kept[cfg, settings]

    yield build
    forget()


@pytest.fixture(scope="module")
def runner(
    keras_model: Callable[[str, tuple[str, ...]], Any], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Runner]]:
    """``runner(cfg, runtime, *more settings)``: that model. The one given before is closed."""
    from blu_export.export.learned import subnetworks
    from blu_export.graph.compose import compose
    from blu_export.runtime import RunnerOptions, load_runner
    from blu_export.runtime.keras import KerasRunner

    folder = tmp_path_factory.mktemp("golden")

    @cache
    def exported(cfg: str, settings: tuple[str, ...]) -> dict[str, Path]:
        """The file of each target."""
        import onnx

        model = keras_model(cfg, settings)
        parts = subnetworks(model, 18)
        paths = {}
        for target in ("portable", "tensorrt"):
            graph = compose(parts, model.spec, target)
            onnx.helper.set_model_props(graph, {"blu_spec": model.spec.to_json(), "blu_target": target})
            paths[target] = folder / f"{cfg}-{'-'.join(settings)}-{target}.onnx"
            onnx.save(graph, paths[target])
        return paths

    with ExitStack() as open_now:

        def make(cfg: str, runtime: str, *settings: str) -> Runner:
            open_now.close()
            if runtime == "keras":
                return open_now.enter_context(KerasRunner.of_model(keras_model(cfg, settings)))
            name, _, target = runtime.partition("-")
            return open_now.enter_context(
                load_runner(exported(cfg, settings)[target or "portable"], RunnerOptions(name))
            )

        yield make


@pytest.fixture(scope="module")
def from_proposals(keras_model: Callable[[str, tuple[str, ...]], Any]) -> Callable[..., Detections]:
    """``from_proposals(cfg, settings, case, clamp)``: what the Keras model finds from the original's own proposals.

    ``clamp=False`` samples as the original does, rows of zeros included (see ROI_EDGE); ``True`` as we do.
    Nothing else differs between the two.
    """
    import tensorflow as tf

    from blu_export.model import roi_align

    def detect(cfg: str, settings: tuple[str, ...], case: Golden, clamp: bool) -> Detections:
        model = keras_model(cfg, settings)
        *pyramid, _, _, _ = model.trunk(model.preprocess(case.canvas[None]), training=False)
        with mock.patch.object(roi_align, "ROI_EDGE", roi_align.ROI_EDGE if clamp else 1.0):
            found = model.detect_in(
                tf.constant(case.arrays["rpn_rois"][None]),
                pyramid,
                tf.constant(case.window[None]),
                tf.constant(case.canvas.shape[:2]),
            )
        canvas = Molded(case.canvas, case.window, 1.0, case.image.shape[:2])
        return unmold(found["detections"][0].numpy(), found["masks"][0].numpy(), canvas, model.spec)

    return detect
