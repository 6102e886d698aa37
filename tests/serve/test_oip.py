"""The Open Inference Protocol as NVIDIA's tritonclient speaks it: the arrays are the library's, to the last bit."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fake_runner import FakeRunner
from loopback import Running, metric, png

pytest.importorskip("tritonclient", reason="needs the extra dev")

import grpc
import tritonclient.grpc
import tritonclient.http
from google.protobuf import json_format, text_format
from pycocotools import mask as coco_mask
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from blu_export.detections import Detections
from blu_export.detector import Detector
from blu_export.export.triton import TritonSettings, frontend_config, protobuf_text
from blu_export.image import decode
from blu_export.serve.oip_request import HEADER
from blu_export.spec import ModelSpec

PHOTO = png((90, 120, 150), 40, 72)
OUTPUTS = ("rois", "class_ids", "scores", "masks", "masks_rle")
MODEL = "fake"
CLIENT = Path(__file__).parents[2] / "examples" / "triton_client.py"


@pytest.fixture(scope="module")
def expected(shared_server: Running) -> Detections:
    return Detector(FakeRunner(str(shared_server.model)))(PHOTO)


@pytest.fixture(params=["http", "grpc"])
def triton(request: pytest.FixtureRequest, shared_server: Running) -> Iterator[Any]:
    """(module, client): the same calls work on both."""
    module = {"http": tritonclient.http, "grpc": tritonclient.grpc}[request.param]
    port = shared_server.port if request.param == "http" else shared_server.grpc_port
    with module.InferenceServerClient(f"127.0.0.1:{port}") as client:
        yield module, client


def photo_input(module: Any, binary: bool = True) -> Any:
    tensor = module.InferInput("image", [1], "BYTES")
    array = np.array([PHOTO], dtype=object)
    if module is tritonclient.http:
        tensor.set_data_from_numpy(array, binary_data=binary)
    else:
        tensor.set_data_from_numpy(array)
    return tensor


def check(result: Any, expected: Detections) -> None:
    for name, value in expected.to_dict().items():
        found = result.as_numpy(name)
        np.testing.assert_array_equal(found, value)
        assert found.dtype == value.dtype
    rles = [json.loads(each) for each in result.as_numpy("masks_rle")]
    np.testing.assert_array_equal(coco_mask.decode(rles), expected.masks)


def test_an_encoded_photo_gives_the_arrays_of_the_library(triton: Any, expected: Detections) -> None:
    module, client = triton
    check(client.infer(MODEL, [photo_input(module)]), expected)


def test_pixels_give_the_same(triton: Any, expected: Detections) -> None:
    module, client = triton
    pixels = decode(PHOTO)
    tensor = module.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    check(client.infer(MODEL, [tensor]), expected)


def test_binary_or_json_outputs_give_the_same(shared_server: Running, expected: Detections) -> None:
    http = tritonclient.http
    with http.InferenceServerClient(f"127.0.0.1:{shared_server.port}") as client:
        for binary in (True, False):
            outputs = [http.InferRequestedOutput(name, binary_data=binary) for name in OUTPUTS]
            check(client.infer(MODEL, [photo_input(http)], outputs=outputs), expected)


def test_only_wanted_outputs_are_sent(triton: Any) -> None:
    module, client = triton
    result = client.infer(MODEL, [photo_input(module)], outputs=[module.InferRequestedOutput("scores")], request_id="7")
    assert result.as_numpy("scores").shape == (2,)
    assert result.as_numpy("masks") is None
    answer = result.get_response(as_json=True) if module is tritonclient.grpc else result.get_response()
    assert (answer["id"], answer["model_name"]) == ("7", MODEL)


def test_health_and_metadata(triton: Any) -> None:
    module, client = triton
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1")
    json_form = {"as_json": True} if module is tritonclient.grpc else {}
    assert client.get_server_metadata(**json_form)["name"] == "blu"
    metadata = client.get_model_metadata(MODEL, **json_form)
    assert [each["name"] for each in metadata["outputs"]] == list(OUTPUTS)
    assert metadata["inputs"][0]["datatype"] == "BYTES"


def test_the_configuration_has_the_class_names_where_tritons_has_them(triton: Any, expected: Detections) -> None:
    module, client = triton
    config = client.get_model_config(MODEL, as_json=True)["config"] if module is tritonclient.grpc else None
    config = config or client.get_model_config(MODEL, "1")
    written = frontend_config(MODEL, "network", ModelSpec(expected.class_names), TritonSettings(), 1)
    exported = json_format.MessageToDict(
        text_format.Parse("\n".join(protobuf_text(written)), model_config_pb2.ModelConfig()),
        preserving_proto_field_name=True,
    )

    def tensors(values: list[dict[str, Any]]) -> list[Any]:
        return [(each["name"], each["data_type"], [int(side) for side in each["dims"]]) for each in values]

    for field in ("input", "output"):
        assert tensors(config[field]) == tensors(exported[field])
    for each in (config, exported):
        spec = ModelSpec.from_json(each["parameters"]["spec"]["string_value"])
        assert spec.class_names == expected.class_names
    assert (config["name"], config["platform"], config["backend"]) == (MODEL, "blu_mask_rcnn", "blu")
    assert config.get("max_batch_size", 0) == 0  # protobuf leaves a zero out
    with pytest.raises(InferenceServerException, match="no model 'other'"):
        client.get_model_config("other")


def example(*arguments: object) -> tuple[int, str, str]:
    """Run examples/triton_client.py: (exit code, stdout, stderr)."""
    result = subprocess.run(
        [sys.executable, CLIENT, "--model", MODEL, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize("grpc", [False, True])
def test_the_example(shared_server: Running, expected: Detections, tmp_path: Path, grpc: bool) -> None:
    server = ["--url", f"127.0.0.1:{shared_server.grpc_port if grpc else shared_server.port}", *["--grpc"] * grpc]
    good, bad, none = tmp_path / "good.png", tmp_path / "bad.png", tmp_path / "none.png"
    good.write_bytes(PHOTO)
    bad.write_bytes(b"no photo")
    lines = [f"{each.class_name}  {each.score:.3f}  x " for each in expected]
    code, out, err = example(good, *server)
    assert (code, err) == (0, "")
    assert [line[: len(start)] for line, start in zip(out.splitlines(), lines, strict=True)] == lines
    with socket.create_server(("127.0.0.1", 0)) as taken:
        closed = taken.getsockname()[1]
    down = ["--url", f"127.0.0.1:{closed}", *["--grpc"] * grpc]
    for arguments, message in (
        ([bad, *server], "not an image"),
        ([none, *server], "No such file"),
        ([good, *down], "refused"),
        ([good, *server, "--model", "other"], "no model 'other'"),
    ):
        code, out, err = example(*arguments)
        assert (code, out) == (1, "")
        assert err.startswith("error: ") and message in err and err.count("\n") == 1, err


def test_errors_reach_the_client(triton: Any) -> None:
    module, client = triton

    def refusal(name: str, tensor: Any, **options: Any) -> str:
        with pytest.raises(InferenceServerException) as caught:
            client.infer(name, [tensor], **options)
        return str(caught.value)

    assert "no model 'other'" in refusal("other", photo_input(module))
    assert "no output 'boxes'" in refusal(MODEL, photo_input(module), outputs=[module.InferRequestedOutput("boxes")])
    text = module.InferInput("image", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"no photo"], dtype=object))
    assert "not an image" in refusal(MODEL, text)
    many = module.InferInput("image", [2], "BYTES")
    many.set_data_from_numpy(np.array([PHOTO, PHOTO], dtype=object))
    assert "One photo per request" in refusal(MODEL, many)
    wrong = module.InferInput("pixels", [1], "BYTES")
    wrong.set_data_from_numpy(np.array([PHOTO], dtype=object))
    assert "one input, 'image'" in refusal(MODEL, wrong)


def test_a_version_that_is_not_there(triton: Any) -> None:
    module, client = triton
    with pytest.raises(InferenceServerException):
        client.infer(MODEL, [photo_input(module)], model_version="2")


def test_json_alone_is_enough(client: httpx.Client, expected: Detections) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PHOTO).decode()]}
    answer = client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor], "outputs": [{"name": "rois"}]})
    assert "inference-header-content-length" not in answer.headers
    (output,) = answer.json()["outputs"]
    assert output == {
        "name": "rois",
        "datatype": "INT32",
        "shape": list(expected.rois.shape),
        "data": expected.rois.ravel().tolist(),
    }


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        ({"data": ["%%%"]}, "base64"),
        ({"data": [[1, 2]]}, "base64"),
        ({"data": None}, "base64"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [1, 2, 256]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [1, [2], 3]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": ["a" * 1000, "a", "a"]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [True, 2, 3]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [1.0, 2, 3]}, "not 3 numbers"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": [[[1, 2], [3]]]}, "shape [1, 1, 3]"),
        ({"datatype": "UINT8", "shape": [2, 1, 3], "data": [[[1, 2, 3, 4, 5, 6]]]}, "shape [2, 1, 3]"),
        ({"datatype": "UINT8", "shape": [1, 1, 3], "data": "abc"}, "not a JSON list"),
        ({"shape": [True]}, "One photo"),
        ({"datatype": 5}, "not a string"),
        ({"parameters": {"shared_memory_region": "r"}}, "Shared memory"),
        ({"parameters": {"binary_data_size": 0}}, "in the JSON and after it"),
        ({"datatype": "UINT8", "shape": [1, 3], "data": [1, 2, 3]}, "height, width, channels"),
        ({"datatype": "UINT8", "shape": [0, 1, 3], "data": []}, "height, width, channels"),
        ({"datatype": "FP32", "shape": [1], "data": [1.0]}, "BYTES"),
        ({"parameters": {"binary_data_size": -1}}, "binary_data_size"),
        ({"parameters": {"binary_data_size": "4"}}, "binary_data_size"),
        ({"parameters": 5}, "not a JSON object"),
        ({"shape": 5}, "not a JSON list"),
        ({"shape": None}, "not a JSON list"),
    ],
)
def test_malformed_tensors_are_the_clients_fault(client: httpx.Client, tensor: dict[str, Any], message: str) -> None:
    body = {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], "data": [""]} | tensor]}
    answer = client.post(f"/v2/models/{MODEL}/infer", json=body)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


@pytest.mark.parametrize(
    ("request_fields", "message"),
    [
        ({"id": None}, "id of the request is not a string"),
        ({"id": "x" * 2000}, "2000 characters"),
        ({"inputs": None}, "not a JSON list"),
        ({"inputs": [None]}, "not a JSON object"),
        ({"outputs": {}}, "not a JSON list"),
        ({"outputs": [{"name": ["rois"]}]}, "not a string"),
        ({"outputs": [{"name": "rois"}, {"name": "rois"}]}, "named twice"),
        ({"outputs": [{"name": "rois", "parameters": {"binary_data": 1}}]}, "neither true nor false"),
        ({"outputs": [{"name": "rois", "parameters": {"classification": 3}}]}, "classification"),
        ({"outputs": [{"name": "rois", "parameters": {"shared_memory_region": "r"}}]}, "Shared memory"),
        ({"parameters": []}, "not a JSON object"),
    ],
)
def test_malformed_requests_are_the_clients_fault(
    client: httpx.Client, request_fields: dict[str, Any], message: str
) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(PHOTO).decode()]}
    answer = client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]} | request_fields)
    assert (answer.status_code, message in answer.json()["error"]) == (400, True), answer.text


def test_json_that_is_none_or_too_much(client: httpx.Client, shared_server: Running) -> None:
    path = f"/v2/models/{MODEL}/infer"
    for body in (b"{", b"[" * 100_000, b"\xff", b"[]", b"NaN"):
        answer = client.post(path, content=body)
        assert (answer.status_code, "JSON" in answer.json()["error"]) == (400, True), answer.text
    large = client.post(path, content=b"[" + b"[]," * 70_000 + b"[]]")
    assert (large.status_code, "binary tensor extension" in large.json()["error"]) == (413, True)
    announced = client.post(path, content=b"{}" + bytes(250_000), headers={HEADER: "210000"})
    assert announced.status_code == 413


def test_pixels_in_json_may_be_nested(client: httpx.Client) -> None:
    pixels = decode(PHOTO)
    found = []
    for data in (pixels.ravel().tolist(), pixels.tolist()):
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(pixels.shape), "data": data}
        found.append(client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor], "outputs": [{"name": "rois"}]}))
    assert found[0].status_code == 200
    assert found[0].json() == found[1].json()


def test_without_outputs_a_request_gets_all_or_is_refused_before_the_network(
    client: httpx.Client, shared_server: Running
) -> None:
    def ask(photo: bytes, **fields: Any) -> httpx.Response:
        tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
        return client.post(f"/v2/models/{MODEL}/infer", json={"inputs": [tensor]} | fields)

    small = ask(PHOTO)
    assert [each["name"] for each in small.json()["outputs"]] == list(OUTPUTS)
    before = metric(client, "blu_batch_size_count")
    large = ask(png(height=400, width=400))
    assert (large.status_code, "masks_rle" in large.json()["error"]) == (400, True)
    assert metric(client, "blu_batch_size_count") == before
    assert ask(png(height=400, width=400), outputs=[{"name": "masks_rle"}]).status_code == 200


def contradictions() -> dict[str, Any]:
    """Requests over gRPC that contradict themselves, or ask for what the server does not do."""
    raw = [len(PHOTO).to_bytes(4, "little") + PHOTO]

    def request(shape: list[int], raw_contents: list[bytes], datatype: str = "BYTES", **contents: Any) -> Any:
        made = service_pb2.ModelInferRequest(model_name=MODEL, raw_input_contents=raw_contents)
        tensor = made.inputs.add(name="image", datatype=datatype, shape=shape)
        if contents:
            tensor.contents.CopyFrom(service_pb2.InferTensorContents(**contents))
        return made

    shared, classified = request([1], raw), request([1], raw)
    shared.inputs[0].parameters["shared_memory_region"].string_param = "r"
    classified.outputs.add(name="scores").parameters["classification"].int64_param = 3
    named = request([1], raw)
    named.id = "x" * 2000
    return {
        "2 elements, but the shape [1]": request([1], [], bytes_contents=[PHOTO, PHOTO]),
        "1 elements, but the shape [2]": request([2], [], bytes_contents=[PHOTO]),
        "contents twice": request([1], raw, bytes_contents=[PHOTO]),
        "no usable contents": request([1], [], int_contents=[1]),
        "no usable contents. ": request([1, 1, 3], [], "UINT8", uint_contents=[1, 2, 3]),
        "does not have 4 elements": request([1, 1, 3], [b"1234"], "UINT8"),
        "One photo": request([1, 1, 1], raw),
        "has 10000 sides": request([1] * 10_000, raw),
        "not yyy": request([1], raw, "y" * 10_000),
        "Shared memory": shared,
        "classification": classified,
        "2000 characters": named,
    }


@pytest.mark.parametrize("message", contradictions())
def test_contradictions_over_grpc_are_the_clients_fault(shared_server: Running, message: str) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{shared_server.grpc_port}") as channel:
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT") as caught:
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(contradictions()[message])
        assert message.strip() in caught.value.details()


def test_typed_contents_over_grpc(shared_server: Running, expected: Detections) -> None:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    tensor = request.inputs.add(name="image", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(PHOTO)
    request.outputs.add(name="rois")
    with grpc.insecure_channel(f"127.0.0.1:{shared_server.grpc_port}") as channel:
        answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
    assert answer.raw_output_contents[0] == expected.rois.tobytes()


@pytest.mark.parametrize("length", ["9" * 5000, "1000", "-1", "x"])
def test_a_header_length_that_no_body_has_is_the_clients_fault(client: httpx.Client, length: str) -> None:
    headers = {"inference-header-content-length": length}
    answer = client.post(f"/v2/models/{MODEL}/infer", content=b"{}", headers=headers)
    assert (answer.status_code, "the body has 2 bytes" in answer.json()["error"]) == (400, True), answer.text


def test_compressed_requests_are_refused(client: httpx.Client) -> None:
    answer = client.post(f"/v2/models/{MODEL}/infer", content=b"x", headers={"content-encoding": "gzip"})
    assert (answer.status_code, "ompressed" in answer.json()["error"]) == (415, True)


def test_grpc_calls_are_counted_and_logged(shared_server: Running, client: httpx.Client) -> None:
    grpc = tritonclient.grpc
    with grpc.InferenceServerClient(f"127.0.0.1:{shared_server.grpc_port}") as caller:
        caller.infer(MODEL, [photo_input(grpc)])
    assert 'blu_requests_total{protocol="grpc",route="ModelInfer",status="OK"}' in client.get("/metrics").text
    assert shared_server.wait_for("call", method="ModelInfer", status="OK")["request_id"]
