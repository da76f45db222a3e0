"""One client of a chaos run: reads a generation to its end through whatever happens, and checks every token of it."""

import asyncio
import enum
import random
import sys
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

import grpc

from llamaherd.v1 import common_pb2, generation_pb2, generation_pb2_grpc
from tests.faults.chaos.requests import Question

FIRST_WAIT_S, LONGEST_WAIT_S = 0.05, 1.0
HALF_A_CHARACTER = "\ufffd"  # what a cancel makes of one that was not complete
ASKS_AGAIN = 0.3  # of reconnects: by Generate instead of Attach

Stub = generation_pb2_grpc.GenerationServiceStub
Response = generation_pb2.GenerateResponse | generation_pb2.AttachResponse


class Habit(enum.Enum):
    """How a client behaves."""

    READS = "reads"
    STALLS = "stalls"  # stops reading for a while, so that its gateway has to drop what it buffers
    CANCELS = "cancels"  # in the middle
    HOPS = "hops"  # drops its stream now and then and reads on at another gateway


class Wrong(Exception):
    """The client got what it must never get; the first argument says of which kind."""


@dataclass(slots=True)
class Tally:
    """What all clients of a run saw."""

    streams: int = 0
    tokens: int = 0
    lost: int = 0
    duplicated: int = 0
    wrong: int = 0
    cancelled: int = 0
    reconnects: int = 0
    resume_s: list[float] = field(default_factory=list)  # from the kill of a stream's gateway to its next news
    examples: list[str] = field(default_factory=list)

    def note(self, kind: str, text: str) -> None:
        """A stream went wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        print(f"{kind}: {text}", file=sys.stderr, flush=True)
        if len(self.examples) < 20:
            self.examples.append(f"{kind}: {text}")


class Reader:
    """One generation, read to its end.

    Attributes:
        gateway: where it is read now, by number; -1 between two attempts.
        struck_s: when that gateway was killed, until something comes again.
    """

    def __init__(self, question: Question, stubs: list[Stub], habit: Habit, rnd: random.Random, tally: Tally) -> None:
        self.question = question
        self.generation_id = ""
        self.gateway = -1
        self.struck_s: float | None = None
        self.last_news_s = time.monotonic()
        self._stubs = stubs
        self._habit = habit
        self._rnd = rnd
        self._tally = tally
        self._request_id = str(uuid.UUID(int=rnd.getrandbits(128)))
        self._place = 0  # in the stream at hand: which position comes next
        self._chains: list[int] = []  # of every token taken
        self._ids: list[list[int]] = [[] for _ in question.choices]
        self._texts = [""] * len(question.choices)
        self._ends: dict[int, common_pb2.ChoiceFinished] = {}
        self._act_at = rnd.randint(1, 60)  # position
        self._asked_to_cancel = False

    async def run(self) -> None:
        """Read to the end, over as many streams as it takes. Raises Wrong."""
        wait_s, last = FIRST_WAIT_S, -1
        while True:
            others = [number for number in range(len(self._stubs)) if number != last] or [0]
            self.gateway = last = self._rnd.choice(others)
            try:
                if await self._read(self._stubs[self.gateway]):
                    break
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise Wrong("wrong", f"{self} ended with {error.code()}: {error.details()}") from None
                await asyncio.sleep(wait_s * self._rnd.uniform(0.5, 1.0))
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
            else:
                wait_s = FIRST_WAIT_S
            self._tally.reconnects += 1
        self.gateway = -1
        self._check_whole()

    async def _read(self, stub: Stub) -> bool:
        """One stream; whether it came to the generation's end. Raises Wrong and AioRpcError."""
        stream = self._open(stub)
        is_complete = False
        try:
            async for response in stream:
                self._take(response)
                is_complete = is_complete or response.HasField("completed")
                if response.tokens or is_complete:
                    self._note_news()
                if self._place >= self._act_at and not await self._act(stub):
                    return False
        finally:
            stream.cancel()
        if not is_complete:
            raise Wrong("lost", f"{self}: a stream ended with OK before its end")
        return True

    def _open(self, stub: Stub) -> Any:
        """Attach where we are; or ask again with the same request_id, which brings the generation from its start."""
        if not self.generation_id or self._rnd.random() < ASKS_AGAIN:
            self._place = 0
            return stub.Generate(generation_pb2.GenerateRequest(spec=self.question.spec, request_id=self._request_id))
        self._place = len(self._chains)
        where = generation_pb2.AttachRequest(generation_id=self.generation_id, from_position=self._place)
        if self._chains:
            where.chain = self._chains[-1]
        return stub.Attach(where)

    async def _act(self, stub: Stub) -> bool:
        """What this client does in the middle; False to leave the stream and come back at another gateway."""
        self._act_at = self._place + self._rnd.randint(20, 100)
        match self._habit:
            case Habit.CANCELS if not self._asked_to_cancel:
                self._asked_to_cancel = True
                request = generation_pb2.CancelGenerationRequest(generation_id=self.generation_id)
                await stub.CancelGeneration(request)
            case Habit.STALLS:
                await asyncio.sleep(self._rnd.uniform(0.1, 3.0))
            case Habit.HOPS:
                return False
        return True

    def _note_news(self) -> None:
        self.last_news_s = time.monotonic()
        if self.struck_s is not None:
            self._tally.resume_s.append(self.last_news_s - self.struck_s)
            self.struck_s = None

    def _take(self, response: Response) -> None:
        if response.HasField("accepted"):
            if self.generation_id not in ("", response.accepted.generation_id):
                raise Wrong("wrong", f"{self}: another generation, {response.accepted.generation_id}")
            self.generation_id = response.accepted.generation_id
        for token in response.tokens:
            self._take_token(token)
        if response.HasField("choice_finished"):
            self._ends[response.choice_finished.choice] = response.choice_finished

    def _take_token(self, token: common_pb2.Token) -> None:
        if token.position != self._place:
            kind = "duplicated" if token.position < self._place else "lost"
            raise Wrong(kind, f"{self}: position {token.position} came")
        self._place += 1
        if token.position < len(self._chains):
            if token.chain != self._chains[token.position]:
                raise Wrong("wrong", f"{self}: asked again, position {token.position} has another token")
            return
        ids = self._ids[token.choice]
        expected = self.question.choices[token.choice].ids
        if token.index != len(ids) or token.index >= len(expected) or token.id != expected[token.index]:
            raise Wrong("wrong", f"{self}: choice {token.choice} got token {token.id} at index {token.index}")
        ids.append(token.id)
        self._texts[token.choice] += token.text
        self._chains.append(token.chain)
        self._tally.tokens += 1

    def _check_whole(self) -> None:
        """Every choice is what it is undisturbed, or a beginning of that if it was cancelled."""
        for number, expected in enumerate(self.question.choices):
            end = self._ends.get(number)
            if end is None:
                raise Wrong("lost", f"{self}: choice {number} has no end")
            text = self._texts[number] + end.text
            if end.reason == common_pb2.FINISH_REASON_CANCELLED and self._asked_to_cancel:
                self._tally.cancelled += 1
                whole = text.removesuffix(HALF_A_CHARACTER) if end.text else text
                if not expected.text.startswith(whole):
                    raise Wrong("wrong", f"{self}: cancelled, with {text[-40:]!r} at the end")
            elif (tuple(self._ids[number]), text, end.reason) != (expected.ids, expected.text, expected.reason):
                raise Wrong("wrong", f"{self}: choice {number} has {text[-40:]!r}, {expected.text[-40:]!r} is right")

    def __str__(self) -> str:
        return f"{self.generation_id or self._request_id} ({self._habit.value}) at {len(self._chains)}"


async def read_for_ever(
    readers: set[Reader],
    questions: list[Question],
    stubs: list[Stub],
    rnd: random.Random,
    tally: Tally,
    stop: asyncio.Event,
) -> None:
    """One client after another, until `stop`; the last one is read to its end.

    Args:
        readers: those that read now.
    """
    habits = rnd.choices((Habit.READS, Habit.STALLS, Habit.CANCELS, Habit.HOPS), weights=(70, 10, 10, 10), k=1000)
    for number in range(10**9):
        if stop.is_set():
            return
        reader = Reader(rnd.choice(questions), stubs, habits[number % len(habits)], rnd, tally)
        readers.add(reader)
        try:
            await reader.run()
        except Wrong as wrong:
            kind, text = wrong.args
            tally.note(kind, text)
        finally:
            readers.discard(reader)
        tally.streams += 1
