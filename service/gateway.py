"""The gateway process: start, serve, drain. One task group owns every task; one that crashes ends the process."""

import asyncio
import os
import socket
from collections.abc import Callable
from functools import partial

import grpc
import structlog
from google.protobuf.descriptor import ServiceDescriptor
from grpc_channelz.v1 import channelz
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from contract.broker import Broker
from contract.connection import without_password
from contract.errors import BrokerDown, Draining
from llamaherd.v1 import chat_pb2, generation_pb2, model_pb2
from service.admission import Admission
from service.backoff import Backoff, until_answered
from service.chat_servicer import ChatServicer
from service.follow import Follower
from service.health import Health
from service.metrics import HerdView
from service.model_servicer import ModelServicer
from service.models import Models
from service.owned import OwnedCalls
from service.queues import Queues
from service.relay import Relay
from service.rpc import method_handlers
from service.server import bind, new_server
from service.servicer import GenerationServicer
from service.settings import GatewaySettings
from service.submit import Bounds, Submitter
from service.waiting import Waiting
from telemetry.redis_watch import RedisWatch

END_GRACE_S = 0.5  # for statuses of ended streams to leave
FLUSH_TIMEOUT_S = 3.0

GENERATION = generation_pb2.DESCRIPTOR.services_by_name["GenerationService"]
MODEL = model_pb2.DESCRIPTOR.services_by_name["ModelService"]
CHAT = chat_pb2.DESCRIPTOR.services_by_name["ChatService"]
SERVICES: tuple[ServiceDescriptor, ...] = (GENERATION, CHAT, MODEL)

log = structlog.get_logger(__name__)


async def serve(
    settings: GatewaySettings, stop: asyncio.Event, *, on_listening: Callable[[int], None] = lambda port: None
) -> None:
    """Serve until `stop`, then drain.

    Args:
        on_listening: is told the bound port, once requests are answered.

    Raises ServerUnfit if this Redis cannot be used, RuntimeError if the address cannot be bound, OSError if a TLS file
    cannot be read.
    """
    broker = Broker.connect(settings.redis_url)
    try:
        if await _broker_is_fit(broker, without_password(settings.redis_url), stop):
            await Gateway(settings, broker).run(stop, on_listening)
    finally:
        await broker.close()


class Gateway:
    """The parts of one gateway process and their order."""

    def __init__(self, settings: GatewaySettings, broker: Broker) -> None:
        self._settings = settings
        self._broker = broker
        self._models = Models(broker, settings.dead_after_ms / 1000, settings.stale_after_s)
        self._relay = Relay(broker, settings.resume_wait_s)
        self._admission = Admission(settings.max_streams)
        self._queues = Queues(broker)
        self._waiting = Waiting(
            self._queues, max_jobs=settings.max_gateway_waiting, max_tokens=settings.max_gateway_waiting_tokens
        )
        self._herd_view = HerdView(broker, self._models, self._admission, self._queues)
        self._health = Health(service.full_name for service in SERVICES)

    async def run(self, stop: asyncio.Event, on_listening: Callable[[int], None]) -> None:
        """Serve, then drain. The relay's tasks outlive the streams, and the leaver outlives all."""
        server = new_server(self._settings)
        port = bind(server, self._settings)
        self._relay.describe = partial(self._describe, port)
        await until_answered(self._relay.beat_once)  # makes the inbox: before it is there, rows go nowhere
        await self._models.first_look()
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(self._relay.beat(), name="beat"),
                group.create_task(self._relay.read_inbox(), name="inbox"),
                group.create_task(self._relay.sweep(), name="sweep"),
                group.create_task(self._relay.leaver.run(), name="leaver"),
                group.create_task(self._models.watch(self._note_models), name="models"),
                group.create_task(self._queues.watch(self._waiting.tell), name="queues"),
                group.create_task(self._herd_view.watch(), name="herd-view"),
                group.create_task(RedisWatch(self._broker.find_weaknesses).run(), name="redis-watch"),
            ]
            self._add_services(server, OwnedCalls(group))
            await server.start()
            try:
                log.info("gateway listens", host=self._settings.host, port=port, gateway_id=self._relay.gateway_id)
                on_listening(port)
                await stop.wait()
                await self._drain()
            finally:
                await server.stop(END_GRACE_S)
            await self._say_goodbye()
            for task in tasks:
                task.cancel()

    def _describe(self, port: int) -> dict[str, str]:
        """What `herd status` shows of this gateway."""
        state = "serving" if self._health.is_serving else "no worker"
        return {
            "state": state if self._admission.is_open else "draining",
            "address": f"{self._settings.host}:{port}",
            "host": socket.gethostname(),
            "pid": str(os.getpid()),
            "streams": str(self._admission.num_inside),
        }

    async def _drain(self) -> None:
        """Tell balancers first, then take nothing new, then let streams end by themselves for a while."""
        self._health.drain()
        self._admission.close()
        log.info("gateway drains", num_streams=self._admission.num_inside)
        try:
            async with asyncio.timeout(self._settings.drain_timeout_s):
                await self._admission.emptied()
        except TimeoutError:
            log.warning("streams are ended", num_streams=self._admission.num_inside)
            self._relay.end_all(Draining())

    async def _say_goodbye(self) -> None:
        """Leave what streams left behind, and take the inbox away."""
        try:
            async with asyncio.timeout(FLUSH_TIMEOUT_S):
                await self._relay.leaver.flush()
                await self._broker.gateway_gone(self._relay.gateway_id)
        except (TimeoutError, BrokerDown):
            log.warning("the broker was not told of the end; it finds out by the heartbeat")
        log.info("gateway ends")

    def _note_models(self) -> None:
        healthy = self._models.healthy
        if healthy != self._health.healthy:
            log.info("serving" if healthy else "no healthy worker", models=sorted(healthy))
        self._health.set_models(self._models.known, healthy)

    def _add_services(self, server: grpc.aio.Server, calls: OwnedCalls) -> None:
        submitter = Submitter(
            self._broker,
            self._models,
            self._queues,
            calls,
            Bounds(
                self._settings.max_waiting,
                self._settings.max_waiting_tokens,
                self._settings.max_caller_generations,
            ),
            gateway_id=self._relay.gateway_id,
            id_key=self._settings.id_key,
        )
        follower = Follower(
            self._broker,
            self._models,
            self._relay,
            submitter,
            self._admission,
            self._waiting,
            max_log_bytes=self._settings.max_log_bytes,
        )
        chat = ChatServicer(
            self._broker,
            self._models,
            follower,
            self._admission,
            setup_timeout_s=self._settings.request_timeout_s,
            drain_timeout_s=self._settings.drain_timeout_s,
        )
        for service, servicer in (
            (GENERATION, GenerationServicer(self._broker, follower)),
            (MODEL, ModelServicer(self._models)),
            (CHAT, chat),
        ):
            handlers = method_handlers(service, servicer.handlers, write_timeout_s=self._settings.write_timeout_s)
            server.add_generic_rpc_handlers([handlers])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        channelz.add_channelz_servicer(server)
        reflection.enable_server_reflection(_reflected(), server)


def _reflected() -> list[str]:
    """Every service there is."""
    return [
        *(service.full_name for service in SERVICES),
        health_pb2.DESCRIPTOR.services_by_name["Health"].full_name,
        "grpc.channelz.v1.Channelz",
        reflection.SERVICE_NAME,
    ]


async def _broker_is_fit(broker: Broker, where: str, stop: asyncio.Event) -> bool:
    """Wait for a broker that answers; False if `stop` comes first. Raises ServerUnfit."""
    backoff = Backoff()
    while not stop.is_set():
        try:
            await broker.check_server()
        except BrokerDown:
            log.warning("the broker does not answer yet", redis=where)
            await backoff.wait()
        else:
            return True
    return False
