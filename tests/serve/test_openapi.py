"""What /openapi.json says is true: schemathesis asks everything it allows, and more."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from loopback import Running

CONFIG = """
[[operations]]  # a schema cannot say which bytes are a photo
include-path-regex = "predict|infer"
checks.positive_data_acceptance.enabled = false

[parameters]
"path.name" = "fake"
"""


def test_schemathesis_finds_nothing(shared_server: Running, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis", reason="needs schemathesis (extra dev)")
    config = tmp_path / "schemathesis.toml"
    config.write_text(CONFIG)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", config, "run"]
    options = ["--max-examples", "10", "--seed", "1", "--no-color", f"{shared_server.url}/openapi.json"]
    found = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    generated, passed = re.findall(r"(\d+) generated, (\d+) passed", found.stdout)[0]
    assert int(generated) == int(passed) > 100, found.stdout


def test_the_description_holds_bodies_statuses_and_types(client: httpx.Client) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    infer = paths["/v2/models/{name}/infer"]["post"]
    assert set(infer["requestBody"]["content"]) == {"application/json", "application/octet-stream"}
    assert {"400", "404", "408", "413", "415", "422", "429", "503", "504"} <= set(infer["responses"])
    assert {"headers", "content"} <= set(infer["responses"]["200"])
    assert list(paths["/metrics"]["get"]["responses"]["200"]["content"]) == ["text/plain"]
    ranges = {
        each["name"]: (each["schema"].get("minimum"), each["schema"].get("maximum"))
        for each in paths["/v1/predict"]["post"]["parameters"]
    }
    assert (ranges["min_score"], ranges["tile"], ranges["overlap"]) == ((0, 1), (32, 65_535), (0, 0.9))
    predict = paths["/v1/predict"]["post"]["responses"]
    assert set(predict["200"]["content"]) == {"application/json", "image/png", "application/x-npz"}
    for route in paths.values():
        for operation in route.values():
            assert all(each.get("content") for each in operation["responses"].values()), operation["summary"]
