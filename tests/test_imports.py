"""What importing costs: inference never needs TensorFlow, and no module is broken."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import blu_export
from blu_export.extras import EXTRAS, install_command

FakeOnnx = Callable[..., Path]

ROOT = Path(blu_export.__file__).parent.parent
MODULES = sorted(module.name for module in pkgutil.walk_packages(blu_export.__path__, "blu_export."))

WITHOUT_TRAINING = """
import runpy, sys

class Hide:
    "A finder that does not find the packages of some extras: they are as if not installed."
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {packages!r}:
            return None
        return self.finder.find_spec(name, path, target)
    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Hide(finder) for finder in sys.meta_path]
sys.argv = {argv!r}
try:
    {action}
finally:
    loaded = {{name.partition(".")[0] for name in sys.modules}} & {packages!r}
    assert not loaded, loaded
"""
BLU = 'runpy.run_module("blu_export", run_name="__main__")'


def without_training(
    action: str, *arguments: object, extras: tuple[str, ...] = ("train", "export")
) -> subprocess.CompletedProcess[str]:
    """Run Python code where the extras ``train`` and ``export`` are not installed."""
    packages = {package for extra in extras for package in EXTRAS[extra]}
    program = WITHOUT_TRAINING.format(packages=packages, argv=["blu", *map(str, arguments)], action=action)
    return subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", [name for name in MODULES if not name.endswith("__main__")])
def test_every_module_imports(module: str) -> None:
    try:
        import_module(module)
    except ModuleNotFoundError as error:
        optional = {package for packages in EXTRAS.values() for package in packages}
        if (error.name or "").partition(".")[0] not in optional:
            raise
        pytest.skip(f"needs {error.name}")


def test_public_names_are_all_there() -> None:
    for name in blu_export.__all__:
        assert getattr(blu_export, name) is not None
    assert set(blu_export.__all__) <= set(dir(blu_export))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        blu_export.lod  # noqa: B018


def test_importing_the_package_imports_nothing_else() -> None:
    program = (
        "import sys; import blu_export; loaded = [name for name, module in sys.modules.items() if module]; "
        "names = {name.partition('.')[0] for name in loaded}; "
        "print(*sorted(names - sys.stdlib_module_names - {'__main__'}))"
    )
    result = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.split() == ["blu_export"]


def test_help_imports_neither_numpy_nor_a_runtime() -> None:
    program = (
        "import sys, runpy; sys.argv = ['blu', '--help']\n"
        "try: runpy.run_module('blu_export', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'numpy', 'cv2', 'PIL', 'onnxruntime', 'openvino', 'tensorflow', 'keras', 'onnx', 'rich'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)


def test_the_package_works_without_the_training_extra() -> None:
    result = without_training("import blu_export; blu_export.load, blu_export.Detector, blu_export.Detections")
    assert result.returncode == 0, result.stderr


def test_help_and_doctor_work_without_the_training_extra() -> None:
    for arguments in (["--help"], ["infer", "--help"], ["doctor"]):
        result = without_training(BLU, *arguments)
        assert result.returncode == 0, result.stderr
    assert "missing: tensorflow, keras" in result.stdout


def test_infer_works_without_the_training_extra(fake_onnx: FakeOnnx, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.full((40, 60, 3), 200, np.uint8)).save(photo)
    formats = [option for name in ("table", "json", "coco", "npz", "overlay") for option in ("--format", name)]
    for runtime in ("onnxruntime", "openvino"):
        result = without_training(
            BLU, "infer", photo, "--model", fake_onnx(), "--runtime", runtime, "--out", tmp_path / runtime, *formats
        )
        assert result.returncode == 0, result.stderr
        assert "coat" in result.stdout
        assert len(list((tmp_path / runtime).iterdir())) == 4


def test_a_missing_extra_says_what_to_install(tmp_path: Path) -> None:
    weights = tmp_path / "weights.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n")
    for runtime, extra in (("auto", "export"), ("keras", "train")):
        result = without_training(BLU, "infer", "photo.jpg", "--model", weights, "--runtime", runtime)
        assert result.returncode == 4
        assert install_command(extra) in result.stderr
        assert "Traceback" not in result.stderr


def test_weights_are_exported_and_run_without_tensorflow(tmp_path: Path) -> None:
    output, photo = tmp_path / "light.onnx", ROOT / "models" / "demo" / "astronaut.jpg"
    result = without_training(BLU, "export", "onnx", "--output", output, extras=("train",))
    assert result.returncode == 0, result.stderr
    assert "not compared with Keras: TensorFlow is not installed" in result.stderr
    assert b"not compared with Keras: TensorFlow is not installed" in output.read_bytes()
    found = []
    for model in (output, ROOT / "models" / "garments.h5"):
        result = without_training(BLU, "infer", photo, "--model", model, "--json", extras=("train",))
        assert result.returncode == 0, result.stderr
        found.append(result.stdout)
    assert found[0] == found[1]
    assert '"detections": [{' in found[0]
    result = without_training(BLU, "export", "onnx", "--converter", "tf2onnx", "--output", output, extras=("train",))
    assert result.returncode == 4
    assert install_command("train") in result.stderr


def test_collecting_tests_needs_no_tensorflow(loaded_at_collection: set[str]) -> None:
    """It takes seconds in every process; a test file imports it in the functions that use it."""
    assert "pytest" in loaded_at_collection
    assert not loaded_at_collection & {"tensorflow", "keras", "tf2onnx"}
