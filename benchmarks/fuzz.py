"""Mutations of valid requests, gRPC messages and pictures against a running server: no 5xx, no growth of memory.

Valid photos go in between, and must be answered as by a quiet server. ``python -m benchmarks fuzz --seconds 1200``.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.loadgen import ServerProcess, descendants, exchange, request

WAIT = 3.0
"""Seconds for an answer: a request that lost a part is still waited for by the server."""
BETWEEN = 20
"""Mutations of a kind between two valid photos."""
WARM_UP = 0.25
"""Part of the time after which memory is compared."""
SAMPLES = 8
"""Of memory; growth is from the median of the first half of them to that of the second."""
BAD_CODES = ("UNKNOWN", "INTERNAL", "UNAVAILABLE", "DATA_LOSS")
TOKENS = (
    b"\0",
    b"\xff",
    b"\r\n",
    b"0",
    b"-1",
    b"99999999999999999999",
    b"null",
    b"{}",
    b"[]",
    b'"',
    b"NaN",
    b"\xf0\x9f",
)


@dataclass
class Findings:
    """What was answered, and what should not have been."""

    statuses: dict[str, Counter[str]] = field(default_factory=dict)
    """Kind of request -> answer -> how often."""
    bad: list[tuple[str, str, bytes]] = field(default_factory=list)
    """(kind, answer, request)."""
    valid: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def note(self, kind: str, status: str, data: bytes) -> None:
        """Count an answer; keep its request where it is the server's fault."""
        self.statuses.setdefault(kind, Counter())[status] += 1
        if status in BAD_CODES or (status.startswith("5") and status not in ("503", "504")):
            self.bad.append((kind, status, data))


def mutate(data: bytes, rng: random.Random) -> bytes:
    """One to eight changes: bytes flipped, set, cut out, doubled, moved, put in; or all cut off from somewhere."""
    found = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        if not found:
            break
        start = rng.randrange(len(found))
        end = min(len(found), start + rng.choice((1, 2, 4, 16, 256)))
        match rng.randrange(8):
            case 0:
                found[start] ^= 1 << rng.randrange(8)
            case 1:
                found[start] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del found[start:end]
            case 3:
                found[start:start] = found[start:end] * rng.choice((1, 2, 50))
            case 4:
                piece = found[start:end]
                del found[start:end]
                place = rng.randrange(len(found) + 1)
                found[place:place] = piece
            case 5:
                found[start:start] = rng.choice(TOKENS)
            case 6:
                found[start:end] = rng.randbytes(end - start)
            case 7 if rng.random() < 0.3:
                del found[start:]
    return bytes(found)


def pictures() -> list[bytes]:
    """Valid files of every format that is read, small, in the ways that they are packed."""
    rows, columns = np.mgrid[:48, :64]
    photo = Image.fromarray(np.stack([4 * rows, 3 * columns, rows + columns], -1).astype(np.uint8))
    forms: list[tuple[str, dict[str, Any]]] = [
        *(("JPEG", {"quality": 80, "progressive": progressive}) for progressive in (False, True)),
        *(("PNG", {}), ("BMP", {}), ("WEBP", {"quality": 70}), ("WEBP", {"lossless": True})),
        *(("TIFF", {"compression": each}) for each in (None, "tiff_lzw", "tiff_deflate", "packbits", "jpeg")),
    ]
    found = []
    for image in (photo, photo.convert("L"), photo.convert("P"), photo.convert("CMYK"), photo.convert("RGBA")):
        for kind, options in forms:
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError):  # not every format has every mode
                image.save(buffer, kind, **options)
                found.append(buffer.getvalue())
    return found


def requests(photos: Sequence[bytes], model: str) -> list[bytes]:
    """Valid HTTP requests of every kind, as bytes on the wire."""
    photo = photos[0]
    form = b'--x\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + photo + b"\r\n--x--\r\n"
    tensor: dict[str, Any] = {"name": "image", "datatype": "BYTES", "shape": [1]}
    as_json = json.dumps({"id": "1", "inputs": [tensor | {"data": [base64.b64encode(photo).decode()]}]}).encode()
    binary = tensor | {"parameters": {"binary_data_size": len(photo) + 4}}
    head = json.dumps(
        {"inputs": [binary], "outputs": [{"name": "masks_rle", "parameters": {"binary_data": True}}]}
    ).encode()
    pixels = tensor | {"datatype": "UINT8", "shape": [2, 2, 3], "data": list(range(12))}
    infer = f"/v2/models/{model}/infer"
    chunked = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (photo[:300], photo[300:])) + b"0\r\n\r\n"
    return [
        request(photo, "/v1/predict?min_score=0.5&classes=1&masks=polygon", {"Accept": "application/json"}),
        request(photo, "/v1/predict", {"Accept": "image/png;q=0.9, application/x-npz;q=0.1"}),
        request(form, "/v1/predict", {"Content-Type": "multipart/form-data; boundary=x"}),
        request(as_json, infer, {"Content-Type": "application/json"}),
        request(
            head + len(photo).to_bytes(4, "little") + photo, infer, {"Inference-Header-Content-Length": str(len(head))}
        ),
        request(json.dumps({"inputs": [pixels], "outputs": [{"name": "rois"}]}).encode(), infer),
        b"POST /v1/predict HTTP/1.1\r\nHost: blu\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked,
        *(
            request(b"", path, method=method)
            for path in ("/", "/v2", "/v1/model", "/openapi.json", "/metrics", f"/v2/models/{model}/config")
            for method in ("GET", "HEAD")
        ),
    ]


def messages(photos: Sequence[bytes], model: str) -> list[bytes]:
    """Valid ModelInferRequests, serialized."""
    from tritonclient.grpc import service_pb2 as pb

    found = []
    for raw in (True, False):
        message = pb.ModelInferRequest(model_name=model, id="1")
        tensor = message.inputs.add(name="image", datatype="BYTES", shape=[1])
        message.outputs.add(name="scores")
        if raw:
            message.raw_input_contents.append(len(photos[0]).to_bytes(4, "little") + photos[0])
        else:
            tensor.contents.bytes_contents.append(photos[0])
        found.append(message.SerializeToString())
    return found


class Fuzz:
    """One server, and what is thrown at it."""

    def __init__(self, server: ServerProcess, grpc_port: int, seed: int) -> None:
        self.server = server
        self.grpc_port = grpc_port
        self.seed = seed
        self.found = Findings()
        self.photo = pictures()[0]
        self.expected: Any = None
        self.report: dict[str, Any] = {}
        self._channel_of_grpc: Any = None

    async def run(self, seconds: float) -> dict[str, Any]:
        """Everything for that long; the report."""
        model = (await exchange(self.server.port, request(b"", "/v1/model", method="GET"))).json()["name"]
        self.expected = (await self._ask()).json()["detections"]
        end = time.monotonic() + seconds
        photos = pictures()
        memory: list[int] = []
        makers: dict[str, tuple[Sequence[bytes], Callable[[bytes], Any]]] = {
            "http": (requests(photos, model), self._http),
            "pictures": (photos, self._picture),
            "grpc": (messages(photos, model), self._grpc),
            "frames": ([b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])], self._frames),
        }
        await asyncio.gather(
            self._watch_memory(seconds, memory),
            *(self._throw(kind, valid, send, end) for kind, (valid, send) in makers.items()),
        )
        half = len(memory) // 2
        before, after = (float(np.median(part)) for part in (memory[:half], memory[half:]))
        return {
            "statuses": {kind: dict(sorted(each.items())) for kind, each in self.found.statuses.items()},
            "valid": dict(self.found.valid),
            "wrong": self.found.wrong,
            "bad": [(kind, status) for kind, status, _ in self.found.bad],
            "memory_mb": [round(each / 2**20, 1) for each in memory],
            "growth": round(after / before - 1, 4),
        }

    async def _throw(self, kind: str, valid: Sequence[bytes], send: Callable[[bytes], Any], end: float) -> None:
        rng = random.Random(f"{self.seed} {kind}")
        count = 0
        while time.monotonic() < end:
            data = mutate(rng.choice(valid), rng)
            self.found.note(kind, await send(data), data)
            count += 1
            if count % BETWEEN == 0:
                await self._send_valid()

    async def _send_valid(self) -> None:
        reply = await self._ask()
        self.found.valid[str(reply.status)] += 1
        if reply.status == 200 and reply.json()["detections"] != self.expected:
            self.found.wrong += 1

    async def _ask(self) -> Any:
        return await exchange(self.server.port, request(self.photo, "/v1/predict?masks=none"))

    async def _http(self, data: bytes) -> str:
        """The status of what is sent as it is; ``none`` where the server waits for more, or hangs up."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(WAIT):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
                try:
                    writer.write(data)
                    line = await reader.readline()
                    if line.startswith(b"HTTP/1.1 "):
                        return line.split(b" ")[1].decode("ascii")
                finally:
                    writer.close()
        return "none"

    async def _picture(self, data: bytes) -> str:
        return str((await exchange(self.server.port, request(data, "/v1/predict"))).status)

    async def _frames(self, data: bytes) -> str:
        """Bytes to the port of gRPC: nothing is expected but that it goes on."""
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(WAIT):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.grpc_port)
                try:
                    writer.write(data + random.Random(data).randbytes(200))
                    await reader.read(2**12)
                finally:
                    writer.close()
        return "sent"

    async def _grpc(self, data: bytes) -> str:
        import grpc

        if self._channel_of_grpc is None:
            self._channel_of_grpc = grpc.aio.insecure_channel(f"127.0.0.1:{self.grpc_port}")
        call = self._channel_of_grpc.unary_unary("/inference.GRPCInferenceService/ModelInfer")(data, timeout=90)
        try:
            await call
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)
        return "OK"

    async def _watch_memory(self, seconds: float, memory: list[int]) -> None:
        """SAMPLES times after the warm-up: the server and all its processes."""
        await asyncio.sleep(WARM_UP * seconds)
        for _ in range(SAMPLES):
            await asyncio.sleep((1 - WARM_UP) * seconds / SAMPLES)
            memory.append(sum(map(_own, descendants(self.server.process.pid))))


def _own(pid: int) -> int:
    """Bytes that a process has for itself and its share of what the server's have in common; 0 once it is gone.

    Without the files that it maps: their pages are shared with everything else that runs on the machine.
    """
    with contextlib.suppress(OSError):
        lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
        return sum(int(words[1]) * 1024 for words in lines if words[0] in ("Pss_Anon:", "Pss_Shmem:"))
    return 0


async def fuzz(command: Sequence[str | Path], seconds: float, seed: int, env: dict[str, str] | None = None) -> Fuzz:
    """Start a server and throw at it; returns with ``report`` set. The server must have a gRPC port."""
    server = await ServerProcess.start(command, env)
    try:
        listening = await server.wait_for("listening")
        run = Fuzz(server, listening["grpc_port"], seed)
        run.report = await run.run(seconds)
        run.report["failed"] = [line for line in server.lines if line["event"] in ("request failed", "call failed")][:3]
    finally:
        await server.stop(signal.SIGINT)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=1200.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for requests that got an answer they should not")
    options = parser.parse_args()
    command = [sys.executable, "-m", "blu_export", "serve", "--port", "0", "--grpc-port", "0"]
    run = asyncio.run(fuzz(command, options.seconds, options.seed))
    print(json.dumps(run.report, indent=2))
    if options.keep and run.found.bad:
        options.keep.mkdir(parents=True, exist_ok=True)
        for index, (kind, status, data) in enumerate(run.found.bad):
            (options.keep / f"{index:03}-{kind}-{status}").write_bytes(data)
    if run.found.bad or run.found.wrong or set(run.found.valid) - {"200", "429"} or run.report["growth"] > 0.05:
        sys.exit(1)


if __name__ == "__main__":
    main()
