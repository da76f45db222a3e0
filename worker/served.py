"""What an engine process serves, once it is loaded. No torch."""

from dataclasses import dataclass

from contract.bundle import ModelBundle
from worker.engine_loop import SteppingEngine


@dataclass(frozen=True, slots=True)
class Served:
    """A loaded model: what is announced, and what runs it."""

    bundle: ModelBundle
    engine: SteppingEngine
