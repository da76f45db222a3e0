"""The short form of `make faults`: every kind of blow once, under load, and no client notices any."""

from tests.faults.chaos.run import Plan, run

NUM_CLIENTS = 12


async def test_no_client_notices_what_is_killed_frozen_drained_and_restarted() -> None:
    """Each token once, in order, with the undisturbed run's text, and every stream ends."""
    report = await run(Plan(num_kills=0, seed=11, num_streams=NUM_CLIENTS, num_workers=3, num_gateways=2, max_s=240))
    assert report.is_clean, "\n".join(report.lines)
    assert report.felt.num_kills >= 8
    assert report.tally.streams >= NUM_CLIENTS
    assert report.felt.counts["redis restarts"] == 1
