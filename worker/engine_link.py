"""The engine as the serving process sees it: it runs elsewhere, commands go out and reports come in by a socket."""

import asyncio
import socket
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

from contract.bundle import ModelBundle
from worker.engine.sequence import GenerationRequest, StepEvent
from worker.engine_loop import Command, Told
from worker.engine_wire import Frames, StepReport, frame
from worker.step_meter import StepMeter

Deliver = Callable[[Sequence[StepEvent]], None]


class EngineLost(Exception):
    """The engine has failed, or its process has ended; the text is its own last word, if there was one."""


class EngineLink(asyncio.Protocol):
    """One engine's commands and reports. The methods are called on the event loop and return at once.

    An engine that fails comes out of `run` as EngineLost; nothing is left to be saved then: another worker continues
    what this one held.
    """

    def __init__(self, meter: StepMeter) -> None:
        self._meter = meter
        self._frames = Frames()
        self._transport: asyncio.WriteTransport | None = None
        self._deliver: Deliver = lambda _events: None
        loop = asyncio.get_running_loop()
        self._bundle: asyncio.Future[ModelBundle] = loop.create_future()
        self._ended: asyncio.Future[None] = loop.create_future()
        self._ended.add_done_callback(self._fail_waiting)
        self._borders: dict[int, asyncio.Future[None]] = {}
        self._num_asked = 0  # for a border: a number is never used again, its answer may still be under way

    @classmethod
    async def over(cls, channel: socket.socket, meter: StepMeter) -> Self:
        """A link over our end of a socket pair, which is the link's from here on."""
        _, link = await asyncio.get_running_loop().create_unix_connection(lambda: cls(meter), sock=channel)
        return link

    async def loaded(self) -> ModelBundle:
        """What the engine has loaded, once it has. Raises EngineLost."""
        return await asyncio.shield(self._bundle)

    async def run(self, deliver: Deliver) -> None:
        """Hand out reports until the engine has stopped. Every event has been delivered when this returns.

        Args:
            deliver: called with the events of one step; must not block.

        Raises EngineLost.
        """
        self._deliver = deliver
        try:
            await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            self.stop()
            await asyncio.wait([self._ended])  # the engine ends at its next step border
            raise

    def stop(self) -> None:
        """End `run` at the next step border."""
        self._send(Command.STOP)

    def add(self, request: GenerationRequest) -> None:
        """Hand a request to the engine; a request it refuses ends with a FinishEvent FAILED."""
        self._send(Command.ADD, request)
        self._meter.note_request(request)

    def cancel(self, generation_id: str) -> None:
        """End the generation in the next step."""
        self._send(Command.CANCEL, generation_id)

    def drop(self, generation_id: str) -> None:
        """Forget the generation. Events that are under way may still be delivered."""
        self._send(Command.DROP, generation_id)

    def hold(self, generation_id: str, held: bool) -> None:
        """Schedule the generation no more, or again."""
        self._send(Command.HOLD, generation_id, held)

    async def settled(self) -> None:
        """Return at a step border, with every earlier command carried out. Raises EngineLost."""
        if self._ended.done():
            raise self._ended.exception() or EngineLost("the engine has stopped")
        self._num_asked += 1
        number, border = self._num_asked, asyncio.get_running_loop().create_future()
        self._borders[number] = border
        self._send(Command.SETTLE, number)
        try:
            await border
        finally:
            del self._borders[number]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """As asyncio calls it."""
        self._transport = cast(asyncio.WriteTransport, transport)  # uvloop's are none by their class

    def data_received(self, data: bytes) -> None:
        """As asyncio calls it."""
        for message in self._frames.feed(data):
            if isinstance(message, StepReport):
                self._meter.note_step(message)
                if message.events:
                    self._deliver(message.events)
            else:
                self._hear(*message)

    def connection_lost(self, error: Exception | None) -> None:
        """As asyncio calls it: with the error that came out of `data_received`, which is ours and not the engine's."""
        self._transport = None
        if not self._ended.done():
            gone = EngineLost("the engine's process has ended")
            self._ended.set_exception(gone if error is None or isinstance(error, OSError) else error)

    def _hear(self, told: Told, *arguments: object) -> None:
        match told, arguments:
            case Told.LOADED, (bytes() as bundle,):
                self._bundle.set_result(ModelBundle.from_bytes(bundle))
            case Told.SETTLED, (int() as number,):
                if number in self._borders and not self._borders[number].done():
                    self._borders[number].set_result(None)
            case Told.ENDED, ():
                self._ended.set_result(None)
            case Told.FAILED, (str() as error,):
                self._ended.set_exception(EngineLost(error))

    def _send(self, command: Command, *arguments: object) -> None:
        if self._transport is not None:  # else nobody hears it, and `run` says so
            self._transport.write(frame((command, *arguments)))

    def _fail_waiting(self, ended: "asyncio.Future[None]") -> None:
        """Nobody waits for an engine that has ended."""
        error = ended.exception() or EngineLost("the engine has stopped")
        waits: list[asyncio.Future[Any]] = [self._bundle, *self._borders.values()]
        for waiting in waits:
            if not waiting.done():
                waiting.set_exception(error)
                waiting.exception()  # nobody has to ask
        if self._transport is not None:
            self._transport.close()
