"""How full an engine is, told between steps. No torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Occupancy:
    """An engine between two steps.

    Attributes:
        num_running: sequences that hold KV blocks.
        num_scheduled: sequences that ran in the last step: its batch size.
        kv_blocks_used, kv_blocks: of the KV cache.
        num_preemptions: so far.
    """

    num_running: int
    num_scheduled: int
    kv_blocks_used: int
    kv_blocks: int
    num_preemptions: int
