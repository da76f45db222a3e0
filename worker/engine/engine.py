"""The engine: from requests to events, one step of all sequences at a time.

Single-threaded: the thread that calls `step` makes all other calls too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from worker.engine import sequence as states
from worker.engine.batch import ForwardModel
from worker.engine.choice import Choice, Ending
from worker.engine.counter_rng import uniform
from worker.engine.detokenizer import TokenPieces
from worker.engine.isolation import Failure, run_isolated
from worker.engine.kv_cache import BlockPool
from worker.engine.sampler import SampledToken, sample
from worker.engine.scheduler import EngineSettings, Scheduler
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PrefilledEvent,
    ScheduledSlice,
    StartedEvent,
    StepEvent,
    TokenEvent,
)

__all__ = ["Engine", "EngineSettings", "RequestRefused", "StepEvent"]

_CHOICE = 0  # a generation has one choice


class RequestRefused(Exception):
    """The request can never run here; the text states the fact and the bound."""


@dataclass(slots=True, eq=False)
class _Generation:
    """A request in the engine. One choice each."""

    request: GenerationRequest
    sequence: states.Sequence
    choice: Choice
    is_cancelled: bool = False
    is_started: bool = False
    is_prefilled: bool = False


class Engine:
    """Continuous batching over one model.

    Invariant: a generation is in the scheduler unless its choice has ended; then only its FinishEvent is left.
    """

    def __init__(
        self,
        model: ForwardModel,
        pieces: TokenPieces,
        settings: EngineSettings,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._model = model
        self._pieces = pieces
        self._clock = clock
        self._pool = BlockPool(model.num_blocks)
        self._scheduler = Scheduler(self._pool, model.block_size, settings)
        self._generations: dict[str, _Generation] = {}
        self._num_added = 0

    def add(self, request: GenerationRequest) -> None:
        """Take a request, new or continued.

        Raises RequestRefused when it can never run to its end here. A continuation that has already ended in
        its log gives a FinishEvent with the next step, and no token.
        """
        self._require_fits(request)
        choice = Choice(self._pieces, request.stopping, strip_leading_space=request.strip_leading_space)
        try:
            choice.replay(request.output_ids)
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        self._num_added += 1
        token_ids = [*request.prompt_ids, *request.output_ids]
        sequence = states.Sequence(request.generation_id, self._num_added, token_ids)
        self._generations[request.generation_id] = _Generation(request, sequence, choice)
        if choice.ending is None:
            self._scheduler.add(sequence)

    def cancel(self, generation_id: str) -> None:
        """End the generation with CANCELLED in the next step. Unknown ids are ignored."""
        if (generation := self._generations.get(generation_id)) is not None:
            generation.is_cancelled = True

    def drop(self, generation_id: str) -> None:
        """Forget the generation at once, without an event. Unknown ids are ignored."""
        if (generation := self._generations.pop(generation_id, None)) is not None:
            self._scheduler.remove(generation.sequence)

    def hold(self, generation_id: str, held: bool) -> None:
        """Schedule the generation no more, or again. It keeps its KV blocks unless others run out of them."""
        if (generation := self._generations.get(generation_id)) is not None:
            generation.sequence.is_held = held

    def step(self) -> list[StepEvent]:
        """Close what has ended, run one slice of each scheduled sequence, and tell what happened."""
        events = list(self._close_ended())
        slices = self._scheduler.schedule()
        events += self._note_started(slices)
        for slice_, outcome in zip(slices, run_isolated(self._run, slices), strict=True):
            events += self._advance(slice_, outcome)
        return events

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something now: a token to compute, or a generation to close."""
        now = self._clock()
        ended = any(self._ending_of(each, now) is not None for each in self._generations.values())
        return ended or self._scheduler.can_schedule

    @property
    def next_deadline_s(self) -> float | None:
        """When `has_work` turns true by itself; None if no generation has a deadline."""
        deadlines = (each.request.deadline_s for each in self._generations.values())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    @property
    def num_running(self) -> int:
        """Sequences that hold KV blocks."""
        return self._scheduler.num_running

    @property
    def num_waiting(self) -> int:
        """Sequences not yet admitted, or preempted."""
        return self._scheduler.num_waiting

    @property
    def num_preemptions(self) -> int:
        """How often a sequence gave its KV blocks back to be computed again."""
        return self._scheduler.num_preemptions

    @property
    def kv_blocks_free(self) -> int:
        """Blocks of the KV cache that no sequence holds."""
        return self._pool.num_free

    def check(self) -> None:
        """Raise AssertionError unless generations, scheduler and block pool agree."""
        self._scheduler.check()
        scheduled = [each for each in self._generations.values() if each.choice.ending is None]
        assert len(scheduled) == self.num_running + self.num_waiting, "a sequence has no generation"
        for each in scheduled:
            num_tokens = len(each.request.prompt_ids) + each.choice.num_tokens
            assert len(each.sequence.token_ids) == num_tokens, "tokens and text disagree"

    def _require_fits(self, request: GenerationRequest) -> None:
        """Raise RequestRefused unless the request can run to its max_new_tokens."""
        if request.generation_id in self._generations:
            raise RequestRefused(f"generation {request.generation_id} is already in the engine")
        if not request.prompt_ids:
            raise RequestRefused("the prompt has no token")
        vocab_size = self._model.vocab_size
        for token_id in (*request.prompt_ids, *request.output_ids):
            if not 0 <= token_id < vocab_size:
                raise RequestRefused(f"token id {token_id} is outside the vocabulary of {vocab_size}")
        max_new_tokens, num_output = request.stopping.max_new_tokens, len(request.output_ids)
        if num_output > max_new_tokens:
            raise RequestRefused(f"{num_output} tokens are in the log; max_new_tokens is {max_new_tokens}")
        num_positions = len(request.prompt_ids) + max_new_tokens
        if num_positions > self._model.max_context:
            max_context = self._model.max_context
            raise RequestRefused(f"prompt and max_new_tokens are {num_positions} tokens; the context is {max_context}")
        if not self._scheduler.fits_alone(num_positions):
            capacity = self._model.num_blocks * self._model.block_size
            raise RequestRefused(f"prompt and max_new_tokens are {num_positions} tokens; the KV cache holds {capacity}")

    def _close_ended(self) -> Iterator[StepEvent]:
        """End what needs no forward pass to end: cancelled, past its deadline, or finished in its own log."""
        now = self._clock()
        for generation in tuple(self._generations.values()):
            if (ending := self._ending_of(generation, now)) is not None:
                yield self._finish(generation, ending)

    def _ending_of(self, generation: _Generation, now: float) -> Ending | None:
        if generation.choice.ending is not None:
            return generation.choice.ending
        if generation.is_cancelled:
            return Ending(FinishReason.CANCELLED)
        deadline_s = generation.request.deadline_s
        return Ending(FinishReason.TIME_LIMIT) if deadline_s is not None and now >= deadline_s else None

    def _note_started(self, slices: Sequence[ScheduledSlice]) -> Iterator[StepEvent]:
        for slice_ in slices:
            generation = self._generations[slice_.sequence.generation_id]
            if not generation.is_started:
                generation.is_started = True
                yield StartedEvent(slice_.sequence.generation_id, self._clock())

    def _run(self, slices: Sequence[ScheduledSlice]) -> list[SampledToken | None]:
        """Forward and sample; None where tokens are still to be prefilled. Repeatable: changes no state."""
        if not slices:
            return []
        logits = self._model.forward([slice_.to_batch() for slice_ in slices])
        generations = [self._generations[s.sequence.generation_id] for s in slices if s.completes]
        if len(logits) != len(generations):
            raise ValueError(f"the model gave {len(logits)} rows of logits, not {len(generations)}")
        params = [each.request.sampling for each in generations]
        sampled = iter(sample(logits, params, [_uniform_for(each) for each in generations]))
        return [next(sampled) if slice_.completes else None for slice_ in slices]

    def _advance(self, slice_: ScheduledSlice, outcome: SampledToken | Failure | None) -> Iterator[StepEvent]:
        """Put one slice's outcome into its generation's state."""
        generation = self._generations[slice_.sequence.generation_id]
        if isinstance(outcome, Failure):
            yield self._finish(generation, Ending(FinishReason.FAILED), outcome.error)
            return
        slice_.sequence.num_computed += slice_.num_tokens
        if outcome is None:
            return
        if not generation.is_prefilled:
            generation.is_prefilled = True
            yield PrefilledEvent(slice_.sequence.generation_id, self._clock())
        if outcome.is_valid:
            yield from self._take_token(generation, outcome)
        else:
            yield self._finish(generation, Ending(FinishReason.FAILED), "the logits are not finite")

    def _take_token(self, generation: _Generation, token: SampledToken) -> Iterator[StepEvent]:
        generation.sequence.token_ids.append(token.token_id)
        choice = generation.choice
        index = choice.num_tokens
        text = choice.push(token.token_id)
        generation_id = generation.request.generation_id
        yield TokenEvent(generation_id, _CHOICE, index, token.token_id, text, token.logprob)
        if choice.ending is not None:
            yield self._finish(generation, choice.ending)

    def _finish(self, generation: _Generation, ending: Ending, error: str = "") -> FinishEvent:
        """Free the generation's blocks and forget it."""
        generation_id = generation.request.generation_id
        del self._generations[generation_id]
        self._scheduler.remove(generation.sequence)
        ends_without_token = ending.reason in (FinishReason.TIME_LIMIT, FinishReason.CANCELLED)
        held_text = generation.choice.flush() if ends_without_token else ""
        return FinishEvent(generation_id, _CHOICE, ending.reason, ending.stop_string, held_text, error)


def _uniform_for(generation: _Generation) -> float:
    """The draw for the next token; greedy sampling needs none."""
    sampling = generation.request.sampling
    return uniform(sampling.seed, _CHOICE, generation.choice.num_tokens) if sampling.temperature > 0 else 0.0
