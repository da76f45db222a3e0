"""The engine: from requests to events, one step of all sequences at a time.

Single-threaded: the thread that calls `step` makes all other calls too. With an `AheadModel` the host is one step
ahead of the device wherever it can be: a step is queued before the one before is read. A sequence that turns out to
have ended then has one token too many under way, which nobody is told of. Only what needs the last token on the host
before the next can be chosen (penalties, biases, alternatives), or blocks that others hold, waits for the device first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain

from worker.engine.batch import AheadModel, ForwardModel
from worker.engine.choice import Ending
from worker.engine.detokenizer import TokenPieces
from worker.engine.flight import Flight, Part, take_off
from worker.engine.generation import Branch, Generation, open_generation
from worker.engine.isolation import Failure, run_isolated
from worker.engine.kv_cache import BlockPool
from worker.engine.logprobs import ScoredToken
from worker.engine.occupancy import Occupancy
from worker.engine.scheduler import EngineSettings, Scheduler
from worker.engine.sequence import (
    FinishEvent,
    FinishReason,
    GenerationRequest,
    PrefilledEvent,
    PromptLogprob,
    PromptLogprobsEvent,
    ScheduledSlice,
    StartedEvent,
    StepEvent,
    TokenEvent,
)
from worker.engine.step_runner import SliceOutcome, run_slices

__all__ = ["Engine", "EngineSettings", "RequestRefused", "StepEvent"]


class RequestRefused(Exception):
    """The request can never run here; the text states the fact and the bound."""


class Engine:
    """Continuous batching over one model.

    Invariant: the live branches of its generations are in the scheduler, but those whose choice has ended; of them
    only the FinishEvent is left.
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
        self._generations: dict[str, Generation] = {}
        self._num_added = 0
        self._flight: Flight | None = None

    def add(self, request: GenerationRequest) -> None:
        """Take a request, new or continued.

        Raises RequestRefused when it can never run to its end here. A choice that has already ended in the log
        gives a FinishEvent with the next step, and no token.
        """
        self._require_fits(request)
        try:
            generation = open_generation(request, self._pieces, self._model.vocab_size, first_arrival=self._num_added)
        except ValueError as error:
            raise RequestRefused(str(error)) from error
        self._num_added += request.num_choices
        self._generations[request.generation_id] = generation
        for branch in generation.live.values():
            if branch.choice.ending is None:
                self._scheduler.add(branch.sequence)

    def cancel(self, generation_id: str) -> None:
        """End the generation with CANCELLED in the next step. Unknown ids are ignored."""
        if (generation := self._generations.get(generation_id)) is not None:
            generation.is_cancelled = True

    def drop(self, generation_id: str) -> None:
        """Forget the generation at once, without an event. Unknown ids are ignored."""
        if (generation := self._generations.pop(generation_id, None)) is not None:
            for branch in generation.live.values():
                self._scheduler.remove(branch.sequence)

    def hold(self, generation_id: str, held: bool) -> None:
        """Schedule the generation no more, or again. It keeps its KV blocks unless others run out of them."""
        if (generation := self._generations.get(generation_id)) is not None:
            for branch in generation.live.values():
                branch.sequence.is_held = held

    def step(self) -> list[StepEvent]:
        """Close what has ended, run or queue one slice of each scheduled sequence, and tell what happened."""
        events = list(self._close_ended())
        under_way, self._flight = self._flight, None
        if under_way is not None and not self._scheduler.has_spare_blocks:
            events += self._land(under_way)  # before anybody gives back blocks in which a token is not known
            under_way = None
        slices = self._scheduler.schedule()
        events += self._note_started(slices)
        if slices and isinstance(self._model, AheadModel):
            self._flight = take_off(self._model, [self._part(slice_) for slice_ in slices])
        if under_way is not None:
            events += self._land(under_way)
        if self._flight is None:
            events += self._run_to_the_end([slice_ for slice_ in slices if self._is_live(slice_)])
        return events

    def probe(self) -> None:
        """Make sure that the device still computes. For an idle engine: a step says the same. Raises if it is lost."""
        self._model.probe()

    @property
    def has_work(self) -> bool:
        """Whether `step` would do something now: a token to compute, or a generation to close."""
        now = self._clock()
        is_busy = self._flight is not None or self._scheduler.can_schedule
        return is_busy or any(each.endings(now) for each in self._generations.values())

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

    @property
    def occupancy(self) -> Occupancy:
        """How full it is, for metrics."""
        blocks, pool = self._model.num_blocks, self._pool
        scheduler = self._scheduler
        return Occupancy(
            scheduler.num_running, scheduler.num_scheduled, blocks - pool.num_free, blocks, scheduler.num_preemptions
        )

    def check(self) -> None:
        """Raise AssertionError unless generations, scheduler and block pool agree."""
        self._scheduler.check()
        branches = [branch for each in self._generations.values() for branch in each.live.values()]
        scheduled = [branch for branch in branches if branch.choice.ending is None]
        assert len(scheduled) == self.num_running + self.num_waiting, "a sequence has no generation"
        for branch in scheduled:
            num_tokens = len(branch.request.prompt_ids) + branch.choice.num_tokens + branch.sequence.num_unknown
            assert len(branch.sequence.token_ids) == num_tokens, "tokens and text disagree"
        assert all(each.live for each in self._generations.values()), "a generation has no choice left"

    def _require_fits(self, request: GenerationRequest) -> None:
        """Raise RequestRefused unless each choice can run to its max_new_tokens, if need be by itself."""
        if request.generation_id in self._generations:
            raise RequestRefused(f"generation {request.generation_id} is already in the engine")
        if not request.prompt_ids:
            raise RequestRefused("the prompt has no token")
        vocab_size, outputs = self._model.vocab_size, request.outputs
        biased = (token_id for token_id, _ in request.sampling.logit_bias)
        for token_id in chain(request.prompt_ids, *outputs, biased):
            if not 0 <= token_id < vocab_size:
                raise RequestRefused(f"token id {token_id} is outside the vocabulary of {vocab_size}")
        max_new_tokens, num_output = request.stopping.max_new_tokens, max(len(output) for output in outputs)
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
            for branch, ending in generation.endings(now):
                yield self._finish(generation, branch, ending)

    def _note_started(self, slices: Sequence[ScheduledSlice]) -> Iterator[StepEvent]:
        for slice_ in slices:
            generation = self._generations[slice_.sequence.generation_id]
            if not generation.is_started:
                generation.is_started = True
                yield StartedEvent(slice_.sequence.generation_id, self._clock())

    def _part(self, slice_: ScheduledSlice) -> Part:
        generation = self._generations[slice_.sequence.generation_id]
        return slice_, generation, generation.live[slice_.sequence.choice]

    def _is_live(self, slice_: ScheduledSlice) -> bool:
        generation = self._generations.get(slice_.sequence.generation_id)
        branch = generation.live.get(slice_.sequence.choice) if generation is not None else None
        return branch is not None and branch.sequence is slice_.sequence

    def _land(self, flight: Flight) -> Iterator[StepEvent]:
        """Read a queued step's tokens. Of sequences that have ended since nothing is told."""
        for awaited, token in flight.land():
            generation, branch = awaited.generation, awaited.branch
            is_known = self._generations.get(generation.request.generation_id) is generation
            if not is_known or generation.live.get(branch.index) is not branch:
                continue
            if token.is_valid:
                yield from self._take_token(generation, branch, token, awaited.place)
            else:
                yield self._fail(branch, "the logits are not finite")

    def _run_to_the_end(self, slices: Sequence[ScheduledSlice]) -> Iterator[StepEvent]:
        for slice_, outcome in zip(slices, run_isolated(self._run, slices), strict=True):
            yield from self._advance(slice_, outcome)

    def _run(self, slices: Sequence[ScheduledSlice]) -> list[SliceOutcome]:
        return run_slices(self._model, slices, [self._part(each)[2] for each in slices]) if slices else []

    def _advance(self, slice_: ScheduledSlice, outcome: SliceOutcome | Failure) -> Iterator[StepEvent]:
        """Put one slice's outcome into its generation's state."""
        generation = self._generations.get(slice_.sequence.generation_id)
        if generation is None:
            return  # another choice of it has failed in this step
        branch = generation.live[slice_.sequence.choice]
        if isinstance(outcome, Failure):
            yield self._fail(branch, outcome.error)
        elif not outcome.is_valid:
            yield self._fail(branch, "the logits are not finite")
        else:
            if slice_.sequence.wants_all_logits:
                yield from self._note_prompt(generation, slice_, outcome.prompt)
            slice_.sequence.num_computed += slice_.num_tokens
            if outcome.token is not None:
                yield from self._take_token(generation, branch, outcome.token)

    def _note_prompt(
        self, generation: Generation, slice_: ScheduledSlice, scored: Sequence[ScoredToken]
    ) -> Iterator[StepEvent]:
        """Collect the prompt's logprobs, and tell them once they are complete."""
        logprobs = generation.prompt_logprobs
        del logprobs[slice_.sequence.num_computed :]  # a preempted sequence computes its prompt again
        logprobs += [PromptLogprob(each.token_id, each.logprob, each.top_logprobs) for each in scored]
        if len(logprobs) == len(generation.request.prompt_ids) - 1:
            slice_.sequence.wants_all_logits = False
            yield PromptLogprobsEvent(generation.request.generation_id, tuple(logprobs))

    def _take_token(
        self, generation: Generation, branch: Branch, token: ScoredToken, place: int | None = None
    ) -> Iterator[StepEvent]:
        generation_id = generation.request.generation_id
        if not generation.is_prefilled:
            generation.is_prefilled = True
            yield PrefilledEvent(generation_id, self._clock())
        index = branch.choice.num_tokens
        text = branch.push(token.token_id, place)
        yield TokenEvent(generation_id, branch.index, index, token.token_id, text, token.logprob, token.top_logprobs)
        if branch.choice.ending is not None:
            yield self._finish(generation, branch, branch.choice.ending)

    def _finish(self, generation: Generation, branch: Branch, ending: Ending) -> FinishEvent:
        """Free the choice's blocks and forget it, and the generation with its last one."""
        generation_id = generation.request.generation_id
        del generation.live[branch.index]
        self._scheduler.remove(branch.sequence)
        if not generation.live:
            del self._generations[generation_id]
        ends_without_token = ending.reason in (FinishReason.TIME_LIMIT, FinishReason.CANCELLED)
        held_text = branch.choice.flush() if ends_without_token else ""
        return FinishEvent(generation_id, branch.index, ending.reason, ending.stop_string, held_text)

    def _fail(self, branch: Branch, error: str) -> FinishEvent:
        """Forget the whole generation: its caller gets an error, whatever its other choices would say."""
        generation_id = branch.request.generation_id
        self.drop(generation_id)
        return FinishEvent(generation_id, branch.index, FinishReason.FAILED, None, "", error)
