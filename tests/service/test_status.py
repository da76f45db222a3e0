"""Every error as a status: the table is total, its rows are reached over a real channel, and trailers stay small."""

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from contract import errors
from contract.broker import Broker
from contract.errors import FieldViolation, ServeError
from llamaherd.v1 import common_pb2, generation_pb2
from service.status import PUSHBACK_KEY, TABLE, to_status, unexpected_status
from tests.redis_server import RunningServer, start_valkey
from tests.service.bundles import bundle
from tests.service.conftest import short_folder
from tests.service.error_details import details_of
from tests.service.every_error import CODE, REACHED, RETRY, World
from tests.service.gateways import RunningGateway, error_of, open_stream, prompt, running_gateway
from tests.service.scripted_worker import ScriptedWorker, scripted_worker
from tests.until import until


def subclasses(cls: type[ServeError]) -> set[type[ServeError]]:
    """All of them, however deep."""
    return {cls_ for child in cls.__subclasses__() for cls_ in {child} | subclasses(child)}


def test_every_error_has_a_row() -> None:
    """An error without a row would reach a client as INTERNAL."""
    assert subclasses(ServeError) == set(TABLE)


def test_reasons_are_unique_and_upper_snake() -> None:
    """Clients branch on them."""
    reasons = [row.reason for row in TABLE.values()]
    assert len(set(reasons)) == len(reasons)
    assert all(
        reason == reason.upper() and reason.replace("_", "").isalpha() and len(reason) < 64 for reason in reasons
    )


def test_every_row_is_reached() -> None:
    """Each exactly once: whoever adds an error adds what brings it about."""
    assert sorted(row[0].__name__ for row in REACHED) == sorted(cls.__name__ for cls in TABLE)


@pytest.fixture(scope="module")
async def world(
    gateway: RunningGateway,
    worker: ScriptedWorker,
    broker: Broker,
    valkey: RunningServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> AsyncIterator[World]:
    """Gateways in every state that an error tells of."""
    async with AsyncExitStack() as stack:
        tiny = await stack.enter_async_context(running_gateway(valkey.url, max_waiting=1, max_streams=2))
        impatient = await stack.enter_async_context(running_gateway(valkey.url, max_streams=1, write_timeout_s=0.5))
        stingy = await stack.enter_async_context(running_gateway(valkey.url, max_caller_generations=1))
        leaving = await stack.enter_async_context(running_gateway(valkey.url, drain_timeout_s=60))
        call, _ = await open_stream(leaving, prompt())
        stack.callback(call.cancel)
        leaving.stop.set()
        lost = start_valkey(short_folder(tmp_path_factory))
        other = Broker.connect(lost.url)
        stack.push_async_callback(other.close)
        await stack.enter_async_context(scripted_worker(other, {"chat": bundle()}))
        cut_off = await stack.enter_async_context(running_gateway(lost.url))
        lost.kill()
        yield World(gateway, worker, broker, tiny, impatient, stingy, leaving, cut_off)


@pytest.mark.parametrize("row", REACHED, ids=[row[3] for row in REACHED])
async def test_a_caller_is_told_what_happened(world: World, row: Any) -> None:
    """Code, text, ErrorInfo, field violations, and a retry delay in the details and in the trailer."""
    _, trigger, code, reason, text, metadata, rest = row
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trigger(world)

    told = caught.value
    info, bad, retry = details_of(told)
    assert (told.code(), info.reason, info.domain) == (code, reason, "llamaherd.dev")
    assert re.fullmatch(text, told.details() or ""), told.details()
    assert info.metadata.keys() == metadata.keys()
    assert all(re.fullmatch(pattern, info.metadata[key]) for key, pattern in metadata.items())
    assert {violation.field for violation in bad.field_violations} == rest - {RETRY}
    pushback = dict(told.trailing_metadata() or ()).get(PUSHBACK_KEY)
    assert (retry is not None, pushback is not None) == (RETRY in rest,) * 2
    if retry is not None and pushback is not None:
        assert retry.ToMilliseconds() == int(pushback) > 0


def test_an_unforeseen_error_tells_nothing_but_the_request_id() -> None:
    """What went wrong stands in the log."""
    status = unexpected_status("abc")
    assert (status.code, status.details) == (CODE.INTERNAL, "internal error, request abc")


async def test_an_unforeseen_error_reaches_the_client_so(gateway: RunningGateway, broker: Broker) -> None:
    """A bundle that no version writes: INTERNAL, the request's id, and nothing of the cause."""
    await broker.announce("broken", "0" * 64, b"no bundle")
    told: list[grpc.aio.AioRpcError] = []

    async def is_seen() -> bool:
        told.append(await error_of(gateway.stub.Generate(prompt(model="broken", request_id="r1"))))
        return told[-1].code() is not CODE.NOT_FOUND

    await until(is_seen, what="the gateway has looked again")
    error = told[-1]

    assert (error.code(), error.details()) == (CODE.INTERNAL, "internal error, request r1")
    assert details_of(error)[0].metadata["request_id"] == "r1"


@pytest.mark.parametrize("letter", ["x", "\N{PILE OF POO}"])
def test_trailers_stay_below_what_clients_take(letter: str) -> None:
    """A thousand wrong fields with long texts, in letters that grow most when encoded."""
    long = letter * 5000
    told = [
        to_status(errors.InvalidRequest([FieldViolation(f"f{n}{long}", long) for n in range(1000)])),
        to_status(errors.UnknownModel(long, [long])),
        to_status(errors.UnknownGeneration(long)),
        to_status(errors.RequestIdReused(long)),
    ]

    for status in told:
        in_base64 = sum(len(value) * 4 // 3 for _, value in status.trailing_metadata)
        percent_encoded = 3 * len(status.details.encode())
        assert in_base64 + percent_encoded < 8000


async def test_a_request_that_is_wrong_all_over_gets_its_answer(gateway: RunningGateway) -> None:
    """A thousand messages with wrong roles: the client can read the status."""
    request = generation_pb2.GenerateRequest(spec=common_pb2.GenerationSpec(model="chat"))
    for _ in range(1024):
        request.spec.chat.messages.add(content="x")
    error = await error_of(gateway.stub.Generate(request))

    assert error.code() is CODE.INVALID_ARGUMENT
    _, bad, _ = details_of(error)
    assert bad.field_violations[0].field == "spec.chat.messages[0].role"
    assert "1012 more" in bad.field_violations[-1].description
