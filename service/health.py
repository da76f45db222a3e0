"""grpc.health.v1: SERVING while a worker is there whose device computes, and this gateway does not drain.

Own servicer, since grpcio-health-checking's holds a lock while it writes to a watcher: one that does not read would
hold up the change for all.
"""

import asyncio
from collections.abc import Iterable

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from service.status import abort_unknown_service

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_SERVICE_UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
_MODEL_PREFIX = "llamaherd.v1.GenerationService/"


def model_service(model: str) -> str:
    """What a health check asks for to learn of one model."""
    return f"{_MODEL_PREFIX}{model}"


class Health(health_pb2_grpc.HealthServicer):  # type: ignore[misc]  # grpcio-health-checking ships no types
    """The state of the whole process (""), of each of its services, and of each model (`model_service`).

    Args:
        served: names of services that work while some model is healthy.
    """

    def __init__(self, served: Iterable[str]) -> None:
        self._served = frozenset(("", *served))
        self._known: frozenset[str] = frozenset()
        self._healthy: frozenset[str] = frozenset()
        self._is_draining = False
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        """What is answered for ""."""
        return bool(self._healthy) and not self._is_draining

    @property
    def healthy(self) -> frozenset[str]:
        """The models that were healthy when last told."""
        return self._healthy

    def set_models(self, known: frozenset[str], healthy: frozenset[str]) -> None:
        """The models there are, and those of them that a worker serves whose device computes."""
        if (known, healthy) != (self._known, self._healthy):
            self._known, self._healthy = known, healthy
            self._tell()

    def drain(self) -> None:
        """NOT_SERVING from now on, whatever the workers do."""
        self._is_draining = True
        self._tell()

    async def Check(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> health_pb2.HealthCheckResponse:
        """The state now; NOT_FOUND for a service that is not here."""
        status = self._status(request.service)
        if status == _SERVICE_UNKNOWN:
            await abort_unknown_service(context)
        return health_pb2.HealthCheckResponse(status=status)

    async def Watch(
        self, request: health_pb2.HealthCheckRequest, context: grpc.aio.ServicerContext[object, object]
    ) -> None:
        """The state now and after each change, for as long as the client wants."""
        told = None
        while True:
            changed = self._changed
            status = self._status(request.service)
            if status != told:
                await context.write(health_pb2.HealthCheckResponse(status=status))
                told = status
            await changed.wait()

    def _status(self, service: str) -> int:
        if service in self._served:
            return int(_SERVING if self.is_serving else _NOT_SERVING)
        if service.startswith(_MODEL_PREFIX) and (model := service.removeprefix(_MODEL_PREFIX)) in self._known:
            return int(_SERVING if self.is_serving and model in self._healthy else _NOT_SERVING)
        return int(_SERVICE_UNKNOWN)

    def _tell(self) -> None:
        """Wake every watcher; each compares for itself."""
        self._changed.set()
        self._changed = asyncio.Event()
