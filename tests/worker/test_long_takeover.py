"""A worker that takes over a long generation reads its log by the page, not at once, and loses none of it."""

from contract.broker import Broker
from contract.log_pages import LogPage, LogPlace
from contract.messages import LogEntry, TokenRow
from tests.worker.engine_double import expected_ids
from tests.worker.rig import MODEL, finished, local_worker, make_job, submit
from tests.worker.test_unreadable import row_of, take

NUM_LOGGED, ROW_TOKENS = 200, 2
NUM_TOKENS = NUM_LOGGED + 10


class PagedBroker(Broker):
    """Notes the tokens of each page that is read, and reads no log at once."""

    pages: list[int]

    async def read_log_page(self, generation_id: str, place: LogPlace) -> LogPage:
        """As it does."""
        page = await super().read_log_page(generation_id, place)
        self.pages.append(sum(each.end - each.t0 for each in page.entries if isinstance(each, TokenRow)))
        return page

    async def read_log(self, generation_id: str, from_position: int = 0) -> list[LogEntry]:
        """Nobody does."""
        raise AssertionError("the whole log was read at once")


async def test_a_long_log_is_taken_over_by_the_page(broker: Broker, redis_url: str) -> None:
    """Its tokens, over several pages, then those that were missing."""
    job = make_job([7], NUM_TOKENS)
    await submit(broker, job)
    (entry,) = await broker.read_jobs("first", MODEL, "normal", count=1, block_ms=0)
    taken = await take(broker, entry, "first")
    for start in range(0, NUM_LOGGED, ROW_TOKENS):
        await broker.step([row_of(job, taken.lease, start, start + ROW_TOKENS)])
    assert await broker.release(entry, worker_id="first", lease=taken.lease)

    paged = PagedBroker.connect(redis_url)
    paged.pages = []
    async with local_worker(paged):
        logged = await finished(broker, job.generation_id)
    await paged.close()

    assert logged.ids == expected_ids([7], NUM_TOKENS)
    assert logged.attempts == [1, 2]
    assert len(paged.pages) > 2
    assert sum(paged.pages) == NUM_LOGGED
