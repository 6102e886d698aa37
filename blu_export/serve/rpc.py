"""The Open Inference Protocol over gRPC, on the messages of NVIDIA's tritonclient package.

The same model, inputs and outputs as in oip; tensors travel as raw contents.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from typing import Any

os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its own lines go to stderr, and wait for its reader

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from blu_export import __version__
from blu_export.contract import PHOTO_INPUT, PHOTO_OUTPUTS
from blu_export.errors import UsageError
from blu_export.runtime.onnx_file import encode_varint
from blu_export.serve import oip
from blu_export.serve.decoder_process import Upload
from blu_export.serve.errors import BadRequestError, DeadlineError, RequestError
from blu_export.serve.limits import Memory
from blu_export.serve.logs import id_of_request, request_id
from blu_export.serve.oip_request import check_parameters, wanted_outputs
from blu_export.serve.peers import Calls, Places, cut_off
from blu_export.serve.service import KEEP_ALIVE, Found, Service

log = logging.getLogger(__name__)

STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.INVALID_ARGUMENT,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP status of a RequestError -> gRPC's; all others are INTERNAL."""
MAX_DIMENSIONS = 8
MAX_NAME = 64
"""Characters of a datatype; it is refused, as it is or cut off."""
HEAD_BYTES = 2**16
"""Of a message, beside the photo."""
MAX_AGE = 60
"""Seconds after which a connection takes no more calls; clients open another by themselves."""
COPIES = 2
"""Of an answer in memory until it is read: ours, and gRPC's."""
PING_AFTER, PING_TIMEOUT = 20, 10
"""Seconds without a sign of life after which the client is pinged, and cut off if it does not answer."""
STREAMS = 128
"""Calls at once on a connection; well-behaved clients keep further ones back."""
STREAM_WINDOW = 2**16
"""Bytes of a message that arrive before its call reads it."""
IDENTITY = 1
"""The only compression that is taken, as gRPC's bit set: photos are compressed, and what unpacks to gigabytes is not
asked for its size."""
RAW_TAG = bytes([pb.ModelInferResponse.RAW_OUTPUT_CONTENTS_FIELD_NUMBER << 3 | 2])
"""Before each of the raw contents, in protobuf's form: the field, and that its length follows."""
HEALTH = frozenset({"ServerLive", "ServerReady"})
"""Calls that need no key."""


async def start(service: Service) -> tuple[grpc.aio.Server, int]:
    """Start the gRPC server on ``settings.grpc_port``; returns it and the port.

    Raises:
        UsageError: the port is taken.
    """
    settings = service.settings
    server = grpc.aio.server(
        options=[
            ("grpc.max_receive_message_length", settings.max_upload + HEAD_BYTES),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_allowed_incoming_connections", settings.max_connections),
            ("grpc.server_handshake_timeout_ms", round(1000 * settings.head_timeout)),
            ("grpc.max_connection_idle_ms", 1000 * KEEP_ALIVE),
            ("grpc.max_connection_age_ms", 1000 * MAX_AGE),
            ("grpc.max_connection_age_grace_ms", round(1000 * (settings.timeout + settings.send_timeout))),
            ("grpc.keepalive_time_ms", 1000 * PING_AFTER),
            ("grpc.keepalive_timeout_ms", 1000 * PING_TIMEOUT),
            ("grpc.max_concurrent_streams", STREAMS),
            ("grpc.http2.bdp_probe", 0),  # would open the windows of streams that no one reads
            ("grpc.http2.lookahead_bytes", STREAM_WINDOW),
            ("grpc.compression_enabled_algorithms_bitset", IDENTITY),
        ],
        interceptors=[Guard(service)],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise UsageError(f"Cannot listen on {host}:{settings.grpc_port}: {error}.", "Choose --grpc-port.") from error
    await server.start()
    return server, port


class Guard(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Around every call: its key, its time, its memory, the count, and a line in the log.

    gRPC reads the message of a unary call before any code of ours runs, for as long as it takes. To the network a
    stream of one message is the same, so every call is taken as one: the key comes before the message, and the
    message within ``message_timeout``. How much of it has come gRPC does not tell: half of the memory for messages
    is for those on their way, in places as large as the largest one.

    A call ends with a status that is set, never with ``abort``: its exception would hold the frames that raised it,
    and these the answer, until the garbage collector comes by.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        memory = max(service.settings.upload_memory, 2 * (service.settings.max_upload + HEAD_BYTES))
        self.messages = Memory("messages", memory // 2)
        self.places = Places(memory // 2 // (service.settings.max_upload + HEAD_BYTES))
        self.calls = Calls(service.settings.max_connections)

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """See grpc.aio; None is the answer UNIMPLEMENTED."""
        name = handler_call_details.method.rpartition("/")[2]
        handler = await continuation(handler_call_details)
        if handler is None or name not in vars(Servicer):
            return None

        async def call(messages: AsyncIterator[bytes], context: Any) -> None:
            await self._call(name, handler, messages, context)

        return grpc.stream_stream_rpc_method_handler(call)

    async def _call(self, name: str, handler: Any, messages: AsyncIterator[bytes], context: Any) -> None:
        """Answer a call; count it, and turn errors into statuses."""
        start, code, details = time.perf_counter(), grpc.StatusCode.OK, ""
        given = {key.lower(): value for key, value in context.invocation_metadata() or () if isinstance(value, str)}
        current = id_of_request(given.get("x-request-id"))
        request_id.set(current)  # each call is a task of its own
        context.set_trailing_metadata((("x-request-id", current),))
        try:
            if name not in HEALTH:
                self.service.keys.check(given.get("authorization"), given.get("x-api-key"))
            with self.calls.hold(context.peer()), self._trace(name, given):
                await self._send(await self._answer(name, handler, messages, context), context)
        except RequestError as error:
            code, details = STATUS.get(error.status, grpc.StatusCode.INTERNAL), f"{error.what} {error.fix}".strip()
        except grpc.aio.BaseError:  # the connection is gone
            code = grpc.StatusCode.CANCELLED
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("call failed")
            code, details = grpc.StatusCode.INTERNAL, "Internal server error. The server's log says more."
        finally:
            seconds = time.perf_counter() - start
            self.service.metrics.requests.labels("grpc", name, code.name).inc()
            self.service.metrics.latency.labels(name).observe(seconds)
            level = logging.DEBUG if name in HEALTH else logging.INFO
            log.log(level, "call", extra={"method": name, "status": code.name, "ms": round(1000 * seconds, 1)})
        if code is not grpc.StatusCode.OK:
            context.set_code(code)
            context.set_details(details)

    def _trace(self, name: str, metadata: dict[str, str]) -> AbstractContextManager[Any]:
        return self.service.traces.request(name, metadata) if name == "ModelInfer" else nullcontext()

    async def _answer(self, name: str, handler: Any, messages: AsyncIterator[bytes], context: Any) -> bytes:
        """The message that answers a call, within the time of a request or what the client gives."""
        remaining = context.time_remaining()
        seconds = min(self.service.settings.timeout, float("inf") if remaining is None else remaining)
        large = name == "ModelInfer"
        try:
            async with asyncio.timeout(seconds):
                async with self.places.hold(context.peer()) if large else nullcontext():
                    message = await self._receive(messages)
                with self.messages.hold(len(message) if large else 0):
                    request = handler.request_deserializer(message)
                    del message
                    answer = await handler.unary_unary(request, context)
                    return answer if isinstance(answer, bytes) else bytes(handler.response_serializer(answer))
        except TimeoutError:
            raise DeadlineError(
                f"No result within {seconds:.3g} s, the message and the queue included.",
                "Try again when the server is less busy.",
            ) from None
        except DecodeError as error:
            raise BadRequestError(f"The message cannot be read: {error}.") from error

    async def _receive(self, messages: AsyncIterator[bytes]) -> bytes:
        seconds = self.service.settings.message_timeout
        try:
            async with asyncio.timeout(seconds):
                return await anext(messages)
        except TimeoutError:
            raise DeadlineError(f"The message did not arrive within {seconds:.3g} s.", "Send it faster.") from None
        except StopAsyncIteration:
            raise BadRequestError("The call sent no message.") from None

    async def _send(self, answer: bytes, context: Any) -> None:
        """Send the message; who has not read it after ``send_timeout`` is cut off."""
        with self.service.answering(COPIES * len(answer)):
            timer = asyncio.get_running_loop().call_later(self.service.settings.send_timeout, cut_off, context.peer())
            try:
                await context.write(answer)
            finally:
                timer.cancel()


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers the calls of the protocol; Guard stands before it."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Is the process able to work?"""
        return pb.ServerLiveResponse(live=self.service.alive)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Should work be sent here?"""
        return pb.ServerReadyResponse(ready=self.service.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name, version and extensions."""
        return pb.ServerMetadataResponse(name="blu", version=__version__, extensions=oip.EXTENSIONS)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Is the model ready?"""
        oip.check_model(self.service.model.info, request.name, request.version)
        return pb.ModelReadyResponse(ready=self.service.ready)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """The model's inputs and outputs."""
        oip.check_model(self.service.model.info, request.name, request.version)
        return pb.ModelMetadataResponse(**oip.model_metadata(self.service.model.info))

    async def ModelConfig(self, request: Any, context: Any) -> Any:
        """The model's configuration, class names included."""
        oip.check_model(self.service.model.info, request.name, request.version)
        return pb.ModelConfigResponse(config=oip.model_config(self.service.model.info))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Find objects on a photo."""
        oip.check_model(self.service.model.info, request.model_name, request.model_version)
        return await self.service.predict(
            _upload(request), _response, asyncio.get_running_loop().time() + self.service.settings.timeout
        )


def _upload(request: Any) -> Upload:
    """The photo of an infer request, and what is wanted of it.

    Raises:
        BadRequestError: it is not a valid request for our model; what its photo is remains to be seen.
    """
    if [each.name for each in request.inputs] != [PHOTO_INPUT]:
        raise BadRequestError(f"The model has one input, '{PHOTO_INPUT}'.")
    (tensor,) = request.inputs
    if len(tensor.shape) > MAX_DIMENSIONS:
        raise BadRequestError(f"The shape of '{PHOTO_INPUT}' has {len(tensor.shape)} sides.")
    check_parameters(tensor.parameters)
    for each in request.outputs:
        check_parameters(each.parameters)
    names = [each.name for each in request.outputs]
    wanted = wanted_outputs(request.id, names, [True] * max(len(names), 1))
    details = {"datatype": tensor.datatype[:MAX_NAME], "shape": list(tensor.shape), "wanted": asdict(wanted)}
    return Upload(_contents(request, tensor), "tensor", details)


def _contents(request: Any, tensor: Any) -> bytes:
    """The input in its binary form."""
    typed = {field.name: len(value) for field, value in tensor.contents.ListFields()}
    if request.raw_input_contents:
        if typed or len(request.raw_input_contents) != 1:
            raise BadRequestError(f"'{PHOTO_INPUT}' has contents twice.", "Send them once, as raw contents.")
        return bytes(request.raw_input_contents[0])
    if tensor.datatype != "BYTES" or set(typed) != {"bytes_contents"}:
        raise BadRequestError(f"'{PHOTO_INPUT}' has no usable contents.", "Send raw contents.")
    if typed["bytes_contents"] != math.prod(tensor.shape):
        raise BadRequestError(
            f"'{PHOTO_INPUT}' has {typed['bytes_contents']} elements, but the shape {list(tensor.shape)[:8]}."
        )
    photo: bytes = tensor.contents.bytes_contents[0]
    return len(photo).to_bytes(4, "little") + photo


def _response(found: Found) -> bytes:
    """The ModelInferResponse, serialized: the tensors are appended to the rest, which saves two copies of them."""
    assert found.wanted is not None
    response = pb.ModelInferResponse(model_name=found.info.name, model_version="1", id=found.wanted.id)
    pieces: list[Any] = []
    for name in found.wanted.outputs:
        array = oip.output_array(name, found.detections)
        response.outputs.add(name=name, datatype=PHOTO_OUTPUTS[name][0], shape=array.shape)
        data = oip.array_bytes(array)
        pieces += [RAW_TAG, encode_varint(len(data)), data]
    return oip.joined([response.SerializeToString(), *pieces])
