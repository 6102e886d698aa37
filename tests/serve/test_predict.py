"""POST /v1/predict: the same detections as the library, in every form that can be asked for."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from fake_runner import FakeRunner
from loopback import Running, Start, gray, png
from PIL import Image
from pycocotools import mask as coco_mask

from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.serve.errors import TooLargeError
from blu_export.serve.oip import output_array
from blu_export.serve.render import NPZ, Options, render
from blu_export.serve.service import Found
from blu_export.serve.worker_process import ModelInfo
from blu_export.spec import ModelSpec

PHOTO = png((90, 120, 150), 40, 72)


@pytest.fixture(scope="module")
def expected(shared_server: Running) -> Detections:
    return Detector(FakeRunner(str(shared_server.model)))(PHOTO)


def test_raw_body_and_form_give_the_same(client: httpx.Client, expected: Detections) -> None:
    raw = client.post("/v1/predict", content=PHOTO, headers={"content-type": "image/png"}).json()
    form = client.post("/v1/predict", files={"image": ("photo.png", PHOTO, "image/png")}).json()
    assert raw["detections"] == form["detections"]
    assert raw["image"] == {"height": 40, "width": 72}
    assert raw["classes"] == ["coat", "shoe"]
    assert set(raw["seconds"]) == {"decode", "queue", "run"}
    assert [each["class"] for each in raw["detections"]] == ["coat", "shoe"]
    np.testing.assert_array_equal([each["box"] for each in raw["detections"]], expected.rois)
    np.testing.assert_allclose([each["score"] for each in raw["detections"]], expected.scores, atol=1e-6)


def test_npz_has_the_bound_of_full_masks(expected: Detections, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo("fake", ModelSpec(expected.class_names), "", "", "", 1, "", 0.0)
    found = Found(expected, None, None, info, {}, 1)
    monkeypatch.setattr("blu_export.serve.oip.MAX_MASK_BYTES", math.prod(expected.image_size))
    assert len(expected) == 2
    with pytest.raises(TooLargeError, match="application/json") as caught:
        render(found, Options(media_type=NPZ))
    assert caught.value.status == 413
    with pytest.raises(TooLargeError, match="masks_rle"):
        output_array("masks", expected)
    one = Options(media_type=NPZ, classes=("1",))  # what is not wanted does not count
    with np.load(io.BytesIO(render(found, one))) as arrays:
        np.testing.assert_array_equal(arrays["masks"], expected[:1].masks)


def test_npz_is_the_dict_of_the_library(client: httpx.Client, expected: Detections) -> None:
    answer = client.post("/v1/predict", content=PHOTO, headers={"accept": "application/x-npz"})
    assert answer.headers["content-type"] == "application/x-npz"
    with np.load(io.BytesIO(answer.content)) as arrays:
        assert set(arrays) == {"rois", "class_ids", "scores", "masks"}
        for name, value in expected.to_dict().items():
            np.testing.assert_array_equal(arrays[name], value)
            assert arrays[name].dtype == value.dtype


def test_masks_as_rle_polygon_or_none(client: httpx.Client, expected: Detections) -> None:
    by_kind = {
        kind: client.post("/v1/predict", params={"masks": kind}, content=PHOTO).json()["detections"]
        for kind in ("rle", "polygon", "none")
    }
    for index, each in enumerate(by_kind["rle"]):
        np.testing.assert_array_equal(coco_mask.decode(each["mask"]), expected.masks[:, :, index])
    for index, each in enumerate(by_kind["polygon"]):
        drawn = Image.new("1", (72, 40))
        from PIL import ImageDraw

        for outline in each["polygons"]:
            ImageDraw.Draw(drawn).polygon(outline, fill=1, outline=1)
        np.testing.assert_array_equal(np.asarray(drawn), expected.masks[:, :, index])
    assert all("mask" not in each and "polygons" not in each for each in by_kind["none"])


def test_overlay_has_the_size_of_the_photo_and_differs_from_it(client: httpx.Client) -> None:
    answer = client.post("/v1/predict", content=PHOTO, headers={"accept": "image/png"})
    assert answer.headers["content-type"] == "image/png"
    with Image.open(io.BytesIO(answer.content)) as drawn:
        assert drawn.size == (72, 40)
        assert (np.asarray(drawn.convert("RGB")) != (90, 120, 150)).any()


def test_min_score_and_classes(client: httpx.Client) -> None:
    def names(**params: object) -> list[str]:
        found = client.post("/v1/predict", params=params, content=gray(153)).json()["detections"]
        return [each["class"] for each in found]

    assert names() == ["coat", "shoe"]  # scores 0.6 and 0.3
    assert names(min_score=0.5) == ["coat"]
    assert names(min_score=0.7) == []
    assert names(classes="shoe") == names(classes="2") == ["shoe"]
    assert names(classes="coat, shoe") == ["coat", "shoe"]


@pytest.mark.parametrize(
    ("params", "headers", "status"),
    [
        ({"min_score": "2"}, {}, 400),
        ({"min_score": "nan"}, {}, 400),
        ({"masks": "png"}, {}, 400),
        ({"classes": "hat"}, {}, 400),
        ({"classes": "0"}, {}, 400),
        ({"classes": "3"}, {}, 400),
        ({}, {"accept": "text/html"}, 406),
        ({}, {"accept": "application/json;q=0"}, 406),
        ({}, {"content-type": "text/plain"}, 415),
        ({}, {"content-type": "application/json"}, 415),
        ({}, {"content-type": "multipart/form-data"}, 400),
        ({}, {"content-type": "multipart/form-data; boundary=x"}, 400),
    ],
)
def test_a_senseless_request_is_told_why(
    client: httpx.Client, params: dict[str, str], headers: dict[str, str], status: int
) -> None:
    answer = client.post("/v1/predict", params=params, headers=headers, content=PHOTO)
    assert answer.status_code == status
    assert answer.json()["error"]["message"]
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def jpeg() -> bytes:
    buffer = io.BytesIO()
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        pytest.param(b"", 400, id="empty"),
        pytest.param(b"hello, I am no image", 415, id="text"),
        pytest.param(b"\x00" * 1000, 415, id="zeros"),
        pytest.param(b"%PDF-1.7 ...", 415, id="pdf"),
        pytest.param(cut(jpeg()), 422, id="cut jpeg"),
        pytest.param(PHOTO[:40], 422, id="png header"),
        pytest.param(png(height=1100, width=1100), 413, id="too many pixels"),
    ],
)
def test_what_is_no_photo(client: httpx.Client, body: bytes, status: int) -> None:
    answer = client.post("/v1/predict", content=body)
    assert (answer.status_code, answer.json()["error"]["message"] != "") == (status, True)


def test_too_many_bytes_are_refused_declared_or_not(client: httpx.Client) -> None:
    body = b"\xff\xd8" + b"\x00" * 400_000

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    assert client.post("/v1/predict", content=body).status_code == 413
    assert client.post("/v1/predict", content=chunks()).status_code == 413
    assert client.post("/v1/predict", content=PHOTO).status_code == 200


def test_request_ids_are_kept_when_harmless(client: httpx.Client) -> None:
    assert client.get("/v2", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert client.get("/v2", headers={"x-request-id": 'a"b c'}).headers["x-request-id"] != 'a"b c'


def test_every_request_is_logged_and_counted(shared_server: Running, client: httpx.Client) -> None:
    def count() -> float:
        wanted = 'blu_requests_total{protocol="http",route="/v1/predict",status="200"}'
        lines = client.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(wanted))

    before = count()
    client.post("/v1/predict", content=PHOTO, headers={"x-request-id": "logged-1"})
    assert count() == before + 1
    line = shared_server.wait_for("request", request_id="logged-1")
    assert (line["path"], line["status"], line["level"]) == ("/v1/predict", 200, "info")


def test_metrics_tell_of_stages_batches_queue_and_model(client: httpx.Client) -> None:
    client.post("/v1/predict", content=PHOTO)
    text = client.get("/metrics").text
    for stage in ("decode", "queue", "run", "unmold"):
        assert f'blu_stage_seconds_count{{stage="{stage}"}}' in text
    assert "blu_batch_size_count" in text
    assert "blu_queue_length 0.0" in text
    sha256 = client.get("/v1/model").json()["sha256"]
    assert f'sha256="{sha256}"' in text


def test_pages_load_nothing_from_elsewhere(client: httpx.Client) -> None:
    for path in (
        "/",
        "/docs",
        "/static/page.js",
        "/static/page.css",
        "/static/docs.js",
        "/static/palette.js",
        "/static/rle.js",
    ):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert not re.search("(?:https?:)?//[a-z0-9]", answer.text.replace("http://www.w3.org/2000/svg", ""))


@pytest.mark.parametrize("path", ["/static/../app.py", "/static/%2e%2e/app.py", "/static/", "/static/page.jsx", "/etc"])
def test_nothing_else_is_served(client: httpx.Client, path: str) -> None:
    assert client.get(path).status_code == 404


def test_openapi_describes_every_status_that_predict_gives(client: httpx.Client) -> None:
    described = client.get("/openapi.json").json()["paths"]["/v1/predict"]["post"]["responses"]
    assert {"200", "400", "406", "408", "413", "415", "422", "429", "504"} <= set(described)
    json.dumps(described)


def test_wrong_method(client: httpx.Client) -> None:
    answer = client.get("/v1/predict")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_serving_a_real_model_imports_no_tensorflow(launch: object, fake_onnx: object) -> None:
    server = launch(model=fake_onnx(), loader="blu_export.runtime:load_runner")  # type: ignore[operator]
    with server.client() as client:
        square = png(height=64, width=64)  # it fills the canvas, whose mean is the score
        found = client.post("/v1/predict", content=square).json()["detections"]
    assert [round(each["score"], 4) for each in found] == [0.2, 0.1]
    mapped = {pid: Path(f"/proc/{pid}/maps") for pid in (server.process.pid, server.workers[-1])}
    if not all(path.exists() for path in mapped.values()):
        pytest.skip("needs /proc")
    assert all("tensorflow" not in path.read_text() for path in mapped.values())
    assert "onnxruntime" not in mapped[server.process.pid].read_text()
    assert "onnxruntime" in mapped[server.workers[-1]].read_text()
    assert server.stop() == 0


@pytest.mark.parametrize("path", ["/", "/docs", "/static/page.css", "/v2/health/live", "/v2/health/ready", "/metrics"])
def test_head_is_get_without_a_body(client: httpx.Client, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.content) == (get.status_code, b"")
    assert head.headers["content-type"] == get.headers["content-type"]
    assert path == "/metrics" or head.headers["content-length"] == get.headers["content-length"]


@pytest.mark.parametrize(("method", "path", "allowed"), [("POST", "/", "GET, HEAD"), ("GET", "/v1/predict", "POST")])
def test_what_a_path_takes_is_said(client: httpx.Client, method: str, path: str, allowed: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)
    assert allowed in answer.json()["error"]["fix"]


@pytest.mark.parametrize("path", ["/v2/", "/docs/", "/v1/predict/", "/v2//", "/v2/health/live/"])
def test_nothing_is_redirected_to_where_a_header_says(client: httpx.Client, path: str) -> None:
    answer = client.get(path, headers={"host": "evil.example"})
    assert answer.status_code == 404 and "location" not in answer.headers


@pytest.mark.parametrize("host", ["[", "a b", "evil.example:99999", "é".encode("latin-1")])
def test_a_host_that_is_none_makes_no_difference(client: httpx.Client, host: str | bytes) -> None:
    assert client.get("/v2/models/other", headers={"host": host}).status_code == 404


def test_every_problem_says_what_to_do(client: httpx.Client) -> None:
    answers = [
        client.get("/nothing"),
        client.get("/v1/predict"),
        client.post("/v1/predict"),
        client.post("/v1/predict", content=b"no photo"),
        client.post("/v1/predict", content=PHOTO, params={"min_score": "high"}),
        client.post("/v1/predict", content=PHOTO, headers={"content-encoding": "gzip"}),
        client.post("/v1/predict", content=bytes(400_000)),
        client.post("/v1/predict", files={"image": b""}),
    ]
    problems = [answer.json()["error"] for answer in answers]
    assert all(problem["fix"] and problem["message"] for problem in problems)
    assert "MB" in answers[-2].json()["error"]["message"]


@pytest.mark.parametrize(
    ("cors", "origin", "allowed"),
    [
        ([], "https://a.example", False),
        (["https://a.example"], "https://a.example", True),
        (["https://a.example", "http://b.example:8080"], "http://b.example:8080", True),
        (["https://a.example"], "https://a.example.evil.example", False),
        (["https://a.example"], "null", False),
        (["*"], "https://any.example", True),
    ],
)
def test_pages_of_other_sites_need_to_be_named(launch: Start, cors: list[str], origin: str, allowed: bool) -> None:
    server = launch(cors=cors, api_keys=["0123456789abcdef0123"])
    with server.client() as client:
        asked = {"origin": origin, "access-control-request-method": "POST"}
        preflight = client.options("/v1/predict", headers=asked)
        assert preflight.status_code == (204 if allowed else 401)
        answer = client.get("/v1/model", headers={"origin": origin, "x-api-key": "0123456789abcdef0123"})
        refused = client.get("/v1/model", headers={"origin": origin})
        assert (answer.status_code, refused.status_code) == (200, 401)
        for each in (preflight, answer, refused):
            assert each.headers.get("access-control-allow-origin") == (origin if allowed else None)
            assert ("vary" in each.headers) is bool(cors)
