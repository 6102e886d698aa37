"""``blu inspect``: what a model file is, and how far it was measured to be from its reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from blu_export.cli.common import command_app, printable
from blu_export.cli.options import JsonOption
from blu_export.contract import Metadata, Tensor
from blu_export.embedded import embedded
from blu_export.errors import ModelFileError, UsageError
from blu_export.files import human_size, sha256_of
from blu_export.runtime.onnx_file import OnnxFile, read_onnx, spec_of
from blu_export.runtime.options import WEIGHT_SUFFIXES
from blu_export.spec import ModelSpec

app = command_app()


@app.command()
def inspect(
    model: Annotated[Path | None, typer.Argument(help="Model file. Default: the embedded model.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print a model's spec, inputs, outputs, operators, hash, and the parity that was measured.

    Reads .onnx, .engine (its sidecar), .h5 and .keras; the model is not run.

    \b
    blu inspect
    blu inspect coco.onnx --json
    """
    found = describe(model or embedded())
    print(json.dumps(found, indent=2) if as_json else printable("\n".join(_lines(found))))


def describe(path: Path) -> dict[str, Any]:
    """Everything ``blu inspect`` knows about a file, as JSON values.

    Raises:
        ModelFileError: it cannot be read as a model.
    """
    note = ""
    if path.is_dir():
        from blu_export.model.checkpoints import resolve_weights

        path, note = resolve_weights(path)
    if not path.is_file():
        raise ModelFileError(f"There is no model file {path}.", "Check the path.")
    found: dict[str, Any] = {"path": str(path), "size": path.stat().st_size, "sha256": sha256_of(path)}
    match path.suffix.lower():
        case ".onnx":
            return found | _describe_onnx(path)
        case ".engine":
            return found | _describe_engine(path)
        case suffix if suffix in WEIGHT_SUFFIXES:
            return found | _describe_weights(path) | ({"note": note} if note else {})
        case suffix:
            raise ModelFileError(f"{path} is not a model file.", f"'{suffix}' is not .onnx, .engine, .h5 or .keras.")


def _describe_onnx(path: Path) -> dict[str, Any]:
    model = read_onnx(path)
    canvas = model.json_metadata(Metadata.CANVAS)
    return {
        "kind": "onnx",
        "target": model.metadata.get(Metadata.TARGET),
        "precision": model.metadata.get(Metadata.PRECISION),
        "producer": model.producer,
        "opsets": model.opsets,
        "inputs": [_tensor(tensor) for tensor in model.inputs],
        "outputs": [_tensor(tensor) for tensor in model.outputs],
        "op_counts": dict(model.op_counts.most_common()),
        "spec": _spec_values(model, path),
        "parity": model.json_metadata(Metadata.PARITY),
        **({} if canvas is None else {"canvas": canvas}),
        "versions": model.json_metadata(Metadata.VERSIONS),
    }


def _spec_values(model: OnnxFile, path: Path) -> Any:
    """The spec; None for another program's model, which may be inspected too."""
    return _values(spec_of(model, str(path))) if Metadata.SPEC in model.metadata else None


def _describe_engine(path: Path) -> dict[str, Any]:
    sidecar = path.with_name(path.name + ".json")
    try:
        values = json.loads(sidecar.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ModelFileError(f"The sidecar {sidecar} cannot be read.", "Build the engine again.") from error
    return {"kind": "engine", "sidecar": values}


def _describe_weights(path: Path) -> dict[str, Any]:
    from blu_export.model.layers import layer_shapes
    from blu_export.model.report import compare
    from blu_export.model.weights import read_weights

    weights = read_weights(path)
    try:
        spec = weights.spec
    except UsageError as error:  # it takes a setting that is not in the file
        found: dict[str, Any] = {"spec": None, "note": str(error)}
    else:
        report = compare(layer_shapes(spec), weights.layers, not_float=weights.not_float)
        found = {"spec": _values(spec), "leftover": list(report.leftover), "unexpected": list(report.unexpected)}
    return found | {
        "kind": "weights",
        "layers": len(weights.layers),
        "tensors": sum(len(tensors) for tensors in weights.layers.values()),
    }


def _values(spec: ModelSpec) -> Any:
    return json.loads(spec.to_json())


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _lines(found: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = [f"{found['path']}  {human_size(found['size'])}  sha256 {found['sha256']}"]
    if found["kind"] == "onnx":
        lines.append(
            f"ONNX for {found['target'] or 'an unknown target'}, {found['precision'] or 'precision not noted'}, "
            f"by {found['producer'] or 'an unknown program'}, "
            + ", ".join(f"{domain} {version}" for domain, version in found["opsets"].items())
        )
        for kind in ("inputs", "outputs"):
            lines += ["", kind]
            lines += [f"  {t['name']:<16} {t['dtype']:<8} [{', '.join(map(str, t['shape']))}]" for t in found[kind]]
        counts = found["op_counts"]
        lines += ["", f"operators ({sum(counts.values())} nodes)"]
        lines.append("  " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    elif found["kind"] == "weights":
        lines.append(f"Keras weights, {found['tensors']} tensors in {found['layers']} layers")
        lines += [found["note"]] if "note" in found else []
        lines += [f"left over from training: {name}" for name in found.get("leftover", ())]
        lines += [f"of a layer that the model does not have: {name}" for name in found.get("unexpected", ())]
    if "spec" in found:
        without = "no spec: a setting is missing" if found["kind"] == "weights" else "no blu_spec: not exported by blu"
        lines += ["", "spec" if found["spec"] else without]
        lines += [f"  {name:<28} {_short(value)}" for name, value in (found["spec"] or {}).items()]
    for name in ("parity", "canvas", "versions", "sidecar"):
        if name in found:
            lines += ["", f"{name}" if found[name] else f"no {name} noted"]
            lines += _tree(found[name] or {}, "  ")
    return lines


def _tree(values: Any, indent: str) -> list[str]:
    if not isinstance(values, dict):
        return [f"{indent}{_short(values)}"]
    lines = []
    for name, value in values.items():
        if isinstance(value, dict):
            lines += [f"{indent}{name}", *_tree(value, indent + "  ")]
        elif _is_ladder(value):
            lines += [f"{indent}{name}", *(_rung(check, indent + "  ") for check in value)]
        else:
            lines.append(f"{indent}{name:<26} {_short(value)}")
    return lines


def _is_ladder(value: Any) -> bool:
    """Whether this is a list of parity.verify's checks, as JSON values."""
    return isinstance(value, list) and all(
        isinstance(check, dict) and {"name", "value", "least", "passed"} <= check.keys() for check in value
    )


def _rung(check: dict[str, Any], indent: str) -> str:
    """``✓ matched instances      1 (at least 0.99)``."""
    mark, name = "✓" if check["passed"] else "✗", _short(check["name"])
    return f"{indent}{mark} {name:<22} {_short(check['value'])} (at least {_short(check['least'])})"


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name}={_short(item)}" for name, item in value.items()) or "none"
    if isinstance(value, list):
        return ", ".join(map(_short, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
