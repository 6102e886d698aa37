#!/usr/bin/env bash
# Everything worth measuring on a machine with an NVIDIA GPU, in one go: within eight minutes, without internet.
#
#   benchmarks/gpu.sh                          what is installed here; models/garments.onnx and benchmarks/cache/*.onnx
#   benchmarks/gpu.sh --wheels DIR             packages from a folder of wheels, in an environment of its own
#   benchmarks/gpu.sh coco.onnx --calibration photos/ --out t4.json --minutes 8
#
# Writes one JSON file, benchmarks/results/gpu.json. What is missing is said, and what it would bring; exit code 4
# when nothing could be measured.
set -euo pipefail
cd "$(dirname "$0")/.."
arguments=() wheels=""
while [ $# -gt 0 ]; do
    case "$1" in
        --wheels) wheels="${2:?--wheels needs a folder}"; shift 2 ;;
        *) arguments+=("$1"); shift ;;
    esac
done

python="${PYTHON:-}"
if [ -z "$python" ]; then
    if [ -x .venv/bin/python ]; then python=.venv/bin/python; else python=python3; fi
fi
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || { echo "error: there is no folder $wheels" >&2; exit 3; }
    ls "$wheels"/*.whl >/dev/null 2>&1 || { echo "error: there are no wheels in $wheels" >&2; exit 3; }
    environment="$(mktemp -d)"
    trap 'rm -rf "$environment"' EXIT
    "${PYTHON:-python3}" -m venv "$environment"
    python="$environment/bin/python"
    # Every wheel of the folder, exactly: nothing is asked of an index.
    "$python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps "$wheels"/*.whl
fi
"$python" -m benchmarks gpu ${arguments[@]+"${arguments[@]}"}
