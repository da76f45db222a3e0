"""Reads a token log from its start, as it stands now, by the page: between two pages the event loop serves others."""

from collections.abc import Callable, Sequence

import structlog

from contract.errors import LogBehind
from contract.log_pages import LogPlace
from contract.messages import CHAIN_START, ChoiceEnd, Ending, MalformedMessage, TokenRow, decode_tokens
from llamaherd.v1 import common_pb2
from service.token_stream import ReadLog

log = structlog.get_logger(__name__)

TakeRow = Callable[[Sequence[common_pb2.Token], int, Sequence[ChoiceEnd]], None]
"""What is done with a row's tokens, their bytes, and the ends of choices that ride in it."""


async def walk_log(read_log: ReadLog, generation_id: str, take: TakeRow) -> Ending | None:
    """Give every row to `take`, each token once, in order; the log's end, if it has one.

    Raises LogBehind if the log lost a tail meanwhile and goes on otherwise, or cannot be read; BrokerDown.
    """
    walk = _Walk(take)
    place: LogPlace | None = LogPlace.at(0)
    try:
        while place is not None:
            page = await read_log(generation_id, place)
            for entry in page.entries:
                match entry:
                    case TokenRow():
                        walk.step(entry)
                    case Ending():
                        return entry
            place = page.goes_on
    except MalformedMessage as error:
        log.error("token log cannot be read", generation_id=generation_id, error=str(error))
        raise LogBehind(walk.position) from None
    return None


class _Walk:
    """How far it has come: `position` is that of the next token."""

    def __init__(self, take: TakeRow) -> None:
        self._take = take
        self.position = 0
        self._chain = CHAIN_START

    def step(self, row: TokenRow) -> None:
        """A row; its first tokens may be known, where a lost tail was written again in other rows."""
        tokens = decode_tokens(row.body) if row.body else ()
        num_known = self.position - row.t0
        if not 0 <= num_known <= len(tokens):
            raise LogBehind(self.position)
        if (tokens[num_known - 1].chain if num_known else row.chain0) != self._chain:
            raise LogBehind(self.position)
        if num_known:
            self._take(tokens[num_known:], 0, row.choice_ends)
        else:
            self._take(tokens, len(row.body), row.choice_ends)
        if tokens:
            self.position, self._chain = row.end, tokens[-1].chain
