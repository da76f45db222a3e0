"""One generation as one unbroken stream, whatever happens to the calls that bring it. No I/O: both shells feed it.

Until `accepted` has come, the call to make is Generate with the same request_id, which attaches to the generation if
the first call did reach the service; afterwards it is Attach, from the next position and with the chain.
"""

import zlib
from array import array
from collections.abc import Sequence

import grpc

from llamaherd.client.errors import ConnectionBroken, DataLoss, HerdError, UnknownGeneration
from llamaherd.v1 import chat_pb2, common_pb2, generation_pb2

GENERATE = "/llamaherd.v1.GenerationService/Generate"
ATTACH = "/llamaherd.v1.GenerationService/Attach"
CHAIN_START = 0

Response = generation_pb2.GenerateResponse
StreamRequest = generation_pb2.GenerateRequest | generation_pb2.AttachRequest | chat_pb2.SendTurnRequest


def extend_chain(chain: int, choice: int, token_id: int) -> int:
    """The chain with one more token, as `Token.chain` defines it."""
    return zlib.crc32(choice.to_bytes(4, "little") + token_id.to_bytes(4, "little"), chain)


class Reading:
    """What was read of a generation so far, and what to ask for next.

    Invariant: every token before `position`, from where the reading began, was given out once and in order, and
    `_chains[i]` is the chain after position `_start + i`.

    Args:
        request: starts the generation, under a request_id; None reads one that another call has started.
    """

    def __init__(
        self,
        request: generation_pb2.GenerateRequest | None,
        *,
        generation_id: str = "",
        from_position: int = 0,
        chain: int | None = None,
    ) -> None:
        assert request is None or request.request_id, "without request_id a repeated call starts a second generation"
        self.request = request
        self.generation_id = generation_id
        self.accepted: common_pb2.Accepted | None = None
        self.finished: dict[int, common_pb2.ChoiceFinished] = {}
        self.completed: common_pb2.Completed | None = None
        self.attempt = 0
        self.turn: chat_pb2.TurnFinished | None = None  # of a conversation
        self._start = from_position
        self._first_chain = CHAIN_START if from_position == 0 else chain
        self._chains = array("I")  # after each token taken
        self._queue_position: int | None = None
        self._may_stand = False  # a Generate call may have reached the service
        self._is_left = False

    @property
    def position(self) -> int:
        """The position of the next token."""
        return self._start + len(self._chains)

    @property
    def chain(self) -> int | None:
        """The chain over all tokens before `position`; None if it was not told and no token has come yet."""
        return self._chains[-1] if self._chains else self._first_chain

    @property
    def is_known(self) -> bool:
        """Whether the service has told of the generation, so that it can be ended for certain."""
        return self.generation_id != ""

    @property
    def is_complete(self) -> bool:
        """Whether everything has come."""
        return self.completed is not None

    @property
    def goes_on(self) -> bool:
        """Whether there is more to read, and someone who reads it."""
        return not self.is_complete and not self._is_left

    def next_call(self) -> tuple[str, StreamRequest]:
        """Method and request that go on from here."""
        if self.request is not None and not self.generation_id:
            self._may_stand = True
            return GENERATE, self.request
        chain = self.chain if self.position > 0 else None
        return ATTACH, generation_pb2.AttachRequest(
            generation_id=self.generation_id, from_position=self.position, chain=chain
        )

    def read(self, body: bytes) -> Sequence[Response]:
        """What a serialized response of the call at hand adds; as `take`."""
        return self.take(Response.FromString(body))

    def take(self, response: Response) -> Sequence[Response]:
        """What the response adds: nothing if all of it was given out before.

        Raises DataLoss if it does not continue what was given out.
        """
        fresh: list[Response] = []
        if response.tokens:
            tokens = [token for token in response.tokens if self._is_new(token)]
            if len(tokens) == len(response.tokens) and response.WhichOneof("event") is None:
                return (response,)
            if tokens:
                fresh.append(Response(tokens=tokens))
        if self._is_new_event(response):
            fresh.append(Response.FromString(response.SerializeToString()) if response.tokens else response)
            fresh[-1].ClearField("tokens")
        return fresh

    def ended(self) -> None:
        """The call ended with OK. Raises ConnectionBroken if that was too early."""
        if not self.is_complete:
            raise ConnectionBroken("the stream ended before `completed`", grpc.StatusCode.UNKNOWN)

    def failed(self, error: HerdError) -> HerdError:
        """The error to act on, for one that the call at hand ended with.

        A generation that is gone before any of it came is started again: its record was lost with a tail of the log.
        """
        if error.reason:
            self._may_stand = False
        if isinstance(error, UnknownGeneration) and self.request is not None and self.position == 0:
            self.generation_id = ""
            self.accepted = None
            self.attempt = 0
            return ConnectionBroken("the generation was lost before its first token", grpc.StatusCode.UNAVAILABLE)
        return error

    def leave(self) -> bool:
        """Read no more. Whether a generation that this reading started may still be running."""
        was_reading, self._is_left = self.goes_on, True
        return was_reading and self.request is not None and (self.generation_id != "" or self._may_stand)

    def _is_new(self, token: common_pb2.Token) -> bool:
        offset = token.position - self._start
        if offset > len(self._chains):
            raise _data_loss(f"token {token.position} came where {self.position} was due")
        if offset < len(self._chains):
            if offset >= 0 and token.chain != self._chains[offset]:
                raise _data_loss(f"token {token.position} is not the one that was delivered")
            return False
        chain = self.chain
        if chain is not None and extend_chain(chain, token.choice, token.id) != token.chain:
            raise _data_loss(f"token {token.position} does not continue what was delivered")
        self._chains.append(token.chain)
        return True

    def _is_new_event(self, response: Response) -> bool:
        match response.WhichOneof("event"):
            case "accepted":
                return self._is_new_acceptance(response.accepted)
            case "queued":
                is_new = self.attempt == 0 and response.queued.position != self._queue_position
                self._queue_position = response.queued.position
                return is_new
            case "started":
                is_new = response.started.attempt > self.attempt
                self.attempt = max(self.attempt, response.started.attempt)
                return is_new
            case "choice_finished":
                is_new = response.choice_finished.choice not in self.finished
                self.finished.setdefault(response.choice_finished.choice, response.choice_finished)
                return is_new
            case "completed":
                return self._is_new_completion(response.completed)
            case _:
                return False  # an event of a newer service

    def _is_new_acceptance(self, accepted: common_pb2.Accepted) -> bool:
        if self.generation_id and accepted.generation_id != self.generation_id:
            raise _data_loss(f"generation {self.generation_id} came back as {accepted.generation_id}")
        self.generation_id = accepted.generation_id
        is_new = self.accepted is None
        self.accepted = accepted
        return is_new

    def _is_new_completion(self, completed: common_pb2.Completed) -> bool:
        if self.position < completed.usage.output_tokens:
            raise _data_loss(f"the stream is complete with {self.position} of {completed.usage.output_tokens} tokens")
        is_new = self.completed is None
        self.completed = completed
        return is_new


def _data_loss(text: str) -> DataLoss:
    return DataLoss(text, grpc.StatusCode.DATA_LOSS)
