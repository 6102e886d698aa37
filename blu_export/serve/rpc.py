"""The Open Inference Protocol over gRPC, on the messages of NVIDIA's tritonclient package.

The same model, inputs and outputs as in oip; tensors travel as raw contents.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from blu_export import __version__
from blu_export.contract import PHOTO_INPUT, PHOTO_OUTPUTS
from blu_export.errors import UsageError
from blu_export.serve import oip
from blu_export.serve.errors import BadRequestError, DeadlineError, RequestError
from blu_export.serve.limits import Memory
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
HEAD_BYTES = 2**16
"""Of a message, beside the photo."""
MAX_AGE = 60
"""Seconds after which a connection takes no more calls; clients open another by themselves."""
ANSWER_GRACE = 90
"""Seconds beyond a request's time that such a connection has for its last answers, of up to 256 MB each; then it is
cut. gRPC does not tell whether a client reads, and gives an unread answer's memory back only with its connection."""
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
            ("grpc.max_connection_age_grace_ms", round(1000 * (settings.timeout + ANSWER_GRACE))),
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
    message within the time of the call. Only a call that sends a photo is counted, from its start: how much of the
    message has come gRPC does not tell.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.max_message = service.settings.max_upload + HEAD_BYTES
        self.messages = Memory("messages", max(service.settings.upload_memory, self.max_message))

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
        try:
            if name not in HEALTH:
                given = {key.lower(): value for key, value in context.invocation_metadata() or ()}
                self.service.keys.check(given.get("authorization"), given.get("x-api-key"))
            answer = await self._answer(name, handler, messages, context)
            with self.service.answering(len(answer)):
                await context.write(answer)
        except RequestError as error:
            code, details = STATUS.get(error.status, grpc.StatusCode.INTERNAL), f"{error.what} {error.fix}".strip()
        except (asyncio.CancelledError, grpc.aio.BaseError):  # the latter where the connection is gone
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("call failed")
            code, details = grpc.StatusCode.INTERNAL, "The server made a mistake. Its log says more."
        finally:
            seconds = time.perf_counter() - start
            self.service.metrics.requests.labels("grpc", name, code.name).inc()
            self.service.metrics.latency.labels(name).observe(seconds)
            level = logging.DEBUG if name in HEALTH else logging.INFO
            log.log(level, "call", extra={"method": name, "status": code.name, "ms": round(1000 * seconds, 1)})
        if code is not grpc.StatusCode.OK:
            await context.abort(code, details)

    async def _answer(self, name: str, handler: Any, messages: AsyncIterator[bytes], context: Any) -> bytes:
        """The message that answers a call, within the time of a request or what the client gives."""
        remaining = context.time_remaining()
        seconds = min(self.service.settings.timeout, float("inf") if remaining is None else remaining)
        counts = name == "ModelInfer"
        try:
            async with asyncio.timeout(seconds):
                with self.messages.hold(self.max_message if counts else 0):
                    message = await anext(messages)
                with self.messages.hold(len(message) if counts else 0):
                    request = handler.request_deserializer(message)
                    answer: bytes = handler.response_serializer(await handler.unary_unary(request, context))
                    return answer
        except TimeoutError:
            raise DeadlineError(
                f"No result within {seconds:.3g} s, the message and the queue included.",
                "Try again when the server is less busy.",
            ) from None
        except StopAsyncIteration:
            raise BadRequestError("The call sent no message.") from None
        except DecodeError as error:
            raise BadRequestError(f"The message cannot be read: {error}.") from error


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
        wanted = oip.check_outputs(dict.fromkeys([each.name for each in request.outputs] or PHOTO_OUTPUTS, True))
        return await self.service.predict(
            lambda: _photo(request),
            lambda found: _response(request.id, wanted, found),
            asyncio.get_running_loop().time() + self.service.settings.timeout,
        )


def _photo(request: Any) -> Any:
    """The photo of an infer request: raw contents, or typed ones."""
    if len(request.inputs) != 1 or request.inputs[0].name != PHOTO_INPUT:
        raise BadRequestError(f"The model has one input, '{PHOTO_INPUT}'.")
    tensor = request.inputs[0]
    if len(request.raw_input_contents) == 1:
        return oip.photo_of_bytes(tensor.datatype, list(tensor.shape), request.raw_input_contents[0])
    if request.raw_input_contents or tensor.datatype != "BYTES" or len(tensor.contents.bytes_contents) != 1:
        raise BadRequestError(f"'{PHOTO_INPUT}' has no usable contents.", "Send raw contents.")
    return bytes(tensor.contents.bytes_contents[0])


def _response(request_id: str, wanted: dict[str, bool], found: Found) -> Any:
    response = pb.ModelInferResponse(model_name=found.info.name, model_version="1", id=request_id)
    for name in wanted:
        array = oip.output_array(name, found.detections)
        response.outputs.add(name=name, datatype=PHOTO_OUTPUTS[name][0], shape=array.shape)
        response.raw_output_contents.append(oip.array_bytes(array))
    return response
