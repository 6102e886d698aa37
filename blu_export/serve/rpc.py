"""The Open Inference Protocol over gRPC, on the messages of NVIDIA's tritonclient package.

The same model, inputs and outputs as in oip; tensors travel as raw contents.
"""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import grpc
from tritonclient.grpc import service_pb2 as pb
from tritonclient.grpc import service_pb2_grpc

from blu_export import __version__
from blu_export.errors import UsageError
from blu_export.serve import oip
from blu_export.serve.problems import BadRequestError, RequestError
from blu_export.serve.service import Found, Service

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
        ],
        # Every call may hold a photo in memory.
        maximum_concurrent_rpcs=max(settings.upload_memory // settings.max_upload, 16),
    )
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Servicer(service), server)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError as error:
        raise UsageError(f"Cannot listen on {host}:{settings.grpc_port}: {error}.", "Choose --grpc-port.") from error
    await server.start()
    return server, port


class Servicer(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Answers the calls of the protocol."""

    def __init__(self, service: Service) -> None:
        self.service = service

    async def ServerLive(self, request: Any, context: Any) -> Any:
        """Is the process able to work?"""
        return pb.ServerLiveResponse(live=self.service.alive)

    async def ServerReady(self, request: Any, context: Any) -> Any:
        """Should work be sent here?"""
        return pb.ServerReadyResponse(ready=self.service.ready)

    async def ServerMetadata(self, request: Any, context: Any) -> Any:
        """Name and version."""
        return pb.ServerMetadataResponse(name="blu", version=__version__)

    async def ModelReady(self, request: Any, context: Any) -> Any:
        """Is the model ready?"""
        return await self._answer("ModelReady", context, self._model_ready(request, context))

    async def ModelMetadata(self, request: Any, context: Any) -> Any:
        """The model's inputs and outputs."""
        return await self._answer("ModelMetadata", context, self._metadata(request, context))

    async def ModelInfer(self, request: Any, context: Any) -> Any:
        """Find objects on a photo."""
        return await self._answer("ModelInfer", context, self._infer(request, context))

    async def _model_ready(self, request: Any, context: Any) -> Any:
        self._check(request.name, request.version, context)
        return pb.ModelReadyResponse(ready=self.service.ready)

    async def _metadata(self, request: Any, context: Any) -> Any:
        self._check(request.name, request.version, context)
        return pb.ModelMetadataResponse(**oip.model_metadata(self.service.model.info))

    async def _infer(self, request: Any, context: Any) -> Any:
        self._check(request.model_name, request.model_version, context)
        wanted = oip.check_outputs(dict.fromkeys([each.name for each in request.outputs] or oip.OUTPUTS, True))
        remaining = context.time_remaining()
        seconds = min(self.service.settings.timeout, float("inf") if remaining is None else remaining)
        return await self.service.predict(
            lambda: _photo(request),
            lambda found: _response(request.id, wanted, found),
            asyncio.get_running_loop().time() + seconds,
        )

    def _check(self, name: str, version: str, context: Any) -> None:
        given = {key.lower(): value for key, value in context.invocation_metadata() or ()}
        self.service.keys.check(given.get("authorization"), given.get("x-api-key"))
        oip.check_model(self.service.model.info, name, version)

    async def _answer(self, call: str, context: Any, work: Any) -> Any:
        """Await the work; count it, and turn errors into statuses."""
        start, code, details = time.perf_counter(), grpc.StatusCode.OK, ""
        try:
            return await work
        except RequestError as error:
            code, details = STATUS.get(error.status, grpc.StatusCode.INTERNAL), f"{error.what} {error.fix}".strip()
        except asyncio.CancelledError:
            code = grpc.StatusCode.CANCELLED
            raise
        except Exception:
            log.exception("call failed")
            code, details = grpc.StatusCode.INTERNAL, "The server made a mistake. Its log says more."
        finally:
            seconds = time.perf_counter() - start
            self.service.metrics.requests.labels("grpc", call, code.name).inc()
            self.service.metrics.latency.labels(call).observe(seconds)
            log.info("call", extra={"method": call, "status": code.name, "ms": round(1000 * seconds, 1)})
        await context.abort(code, details)


def _photo(request: Any) -> Any:
    """The photo of an infer request: raw contents, or typed ones."""
    if len(request.inputs) != 1 or request.inputs[0].name != oip.INPUT:
        raise BadRequestError(f"The model has one input, '{oip.INPUT}'.")
    tensor = request.inputs[0]
    if len(request.raw_input_contents) == 1:
        return oip.photo_of_bytes(tensor.datatype, list(tensor.shape), request.raw_input_contents[0])
    if request.raw_input_contents or tensor.datatype != "BYTES" or len(tensor.contents.bytes_contents) != 1:
        raise BadRequestError(f"'{oip.INPUT}' has no usable contents.", "Send raw contents.")
    return bytes(tensor.contents.bytes_contents[0])


def _response(request_id: str, wanted: dict[str, bool], found: Found) -> Any:
    response = pb.ModelInferResponse(model_name=found.info.name, model_version="1", id=request_id)
    for name in wanted:
        array = oip.output_array(name, found.detections)
        response.outputs.add(name=name, datatype=oip.OUTPUTS[name][0], shape=array.shape)
        response.raw_output_contents.append(oip.array_bytes(array))
    return response
