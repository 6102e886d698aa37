"""The short form of the fuzzer: mutations of valid requests get no 5xx, and valid photos their answers."""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
from pathlib import Path

import pytest
from fake_runner import write_model
from loopback import HERE

pytest.importorskip("tritonclient.grpc", reason="needs the extra serve")

from benchmarks.fuzz import Findings, fuzz, messages, mutate, pictures, requests


def test_mutations_differ_and_can_be_repeated() -> None:
    photo = pictures()[0]
    found = [mutate(photo, random.Random(seed)) for seed in range(50)]
    assert found == [mutate(photo, random.Random(seed)) for seed in range(50)]
    assert sum(each != photo for each in found) > 40
    assert len(requests([photo], "m")) > 15 and len(messages([photo], "m")) == 2 and len(pictures()) > 20


def test_what_is_the_servers_fault_is_found() -> None:
    found = Findings()
    for status in ("200", "400", "429", "503", "504", "500", "INTERNAL", "INVALID_ARGUMENT", "502"):
        found.note("kind", status, b"")
    assert [status for _, status, _ in found.bad] == ["500", "INTERNAL", "502"]


def test_a_few_seconds_of_mutations(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    given = {"model": str(write_model(tmp_path / "fake.onnx")), "port": 0, "grpc_port": 0, "notice": 0.0}
    command = [sys.executable, HERE / "serve_fake.py", json.dumps(given)]
    run = asyncio.run(fuzz(command, 5.0, 1, {"PYTHONPATH": path}))
    assert run.found.bad == [] and run.report["failed"] == []
    assert run.found.wrong == 0 and set(run.found.valid) <= {"200", "429"} and run.found.valid["200"]
    assert set(run.report["statuses"]) == {"http", "pictures", "grpc", "frames"}
