"""``blu doctor``: versions, providers, GPUs, and what each missing extra would bring."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from typing import Any

from blu_export import __version__
from blu_export.cli.common import command_app
from blu_export.cli.options import JsonOption
from blu_export.embedded import embedded
from blu_export.errors import ModelFileError
from blu_export.extras import EXTRAS, PURPOSES, install_command
from blu_export.runtime.cpu import usable_cores

app = command_app()

_BASE = ("numpy", "cv2", "PIL", "pycocotools", "rich", "typer")


@app.command()
def doctor(as_json: JsonOption = False) -> None:
    """Print what is installed here, and what is missing.

    Nothing is installed or changed.
    """
    found = examine()
    if as_json:
        print(json.dumps(found, indent=2))
        return
    cpu, gpus = found["cpu"], found["gpus"] or ["none (nvidia-smi lists none)"]
    print(f"blu {found['blu']}   Python {found['python']}   {found['platform']}")
    print(f"processor  {cpu['name']}, {cpu['usable_cores']} of {cpu['logical']} usable, {' '.join(cpu['features'])}")
    print(f"GPU        {'; '.join(gpus)}")
    print(f"model      {found['embedded_model'] or 'no embedded model in this installation'}")
    print(f"base       {_versions(found['base'])}")
    for line in found["runtimes"]:
        print(f"runtime    {line}")
    for extra, state in found["extras"].items():
        print(f"\n{'✗' if state['missing'] else '✓'} {extra}: {PURPOSES[extra]}")
        if state["installed"]:
            print(f"    {_versions(state['installed'])}")
        if state["missing"]:
            print(f"    missing: {', '.join(state['missing'])}")
            print(f"    {install_command(extra)}")


def examine() -> dict[str, Any]:
    """Everything ``blu doctor`` knows, as JSON values."""
    extras: dict[str, Any] = {}
    for extra, modules in EXTRAS.items():
        extras[extra] = {
            "installed": _installed(modules),
            "missing": [module for module in modules if find_spec(module) is None],
        }
    try:
        model: str | None = os.fspath(embedded())
    except ModelFileError:
        model = None
    return {
        "blu": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": {
            "name": _cpu_name(),
            "logical": os.cpu_count(),
            "usable_cores": usable_cores(),
            "features": _cpu_features(),
        },
        "gpus": _gpus(),
        "embedded_model": model,
        "runtimes": _runtimes(),
        "base": _installed(_BASE),
        "extras": extras,
    }


def _versions(packages: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in packages.items())


def _installed(modules: Sequence[str]) -> dict[str, str]:
    """Versions of the modules that are here, none of them imported.

    Where several distributions share a module, as cuda-bindings and cuda-core do, each stands under its own name.
    """
    found: dict[str, str] = {}
    for module in modules:
        if find_spec(module) is None:
            continue
        names = sorted(set(_distributions().get(module, [])))
        if len(names) > 1:
            found |= {name: metadata.version(name) for name in names}
        else:
            found[module] = metadata.version(names[0]) if names else "?"
    return found


@cache
def _distributions() -> Mapping[str, list[str]]:
    return metadata.packages_distributions()


def _runtimes() -> list[str]:
    """What ONNX Runtime and OpenVINO offer here."""
    lines = []
    if find_spec("onnxruntime") is not None:
        import onnxruntime

        lines.append(f"onnxruntime: {', '.join(onnxruntime.get_available_providers())}")
    if find_spec("openvino") is not None:
        import openvino

        lines.append(f"openvino: {', '.join(openvino.Core().available_devices)}")
    return lines


def _cpu_name() -> str:
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _cpu_features() -> list[str]:
    """The instruction sets that decide how fast int8 and bf16 are."""
    known = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "asimddp", "bf16")
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            present = set(line.partition(":")[2].split())
            return [feature for feature in known if feature in present]
    return []


def _cpuinfo() -> list[str]:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read().splitlines()
    except OSError:  # not Linux
        return []


def _gpus() -> list[str]:
    """NVIDIA GPUs with compute capability, driver and memory, as nvidia-smi names them."""
    if shutil.which("nvidia-smi") is None:
        return []
    query = "--query-gpu=name,compute_cap,driver_version,memory.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", query, "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi fails: {error}"]
    return [line.strip() for line in answer.stdout.splitlines() if line.strip()]
