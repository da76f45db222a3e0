"""A generation inside the engine: its choices, each with a sequence, a text and rules for its logits."""

from __future__ import annotations

from dataclasses import dataclass, field

from worker.engine.choice import Choice, Ending
from worker.engine.counter_rng import uniform
from worker.engine.detokenizer import TokenPieces
from worker.engine.logit_rules import LogitRules
from worker.engine.sampler import SamplingRow
from worker.engine.sequence import FinishReason, GenerationRequest, PromptLogprob, Sequence


@dataclass(slots=True, eq=False)
class Branch:
    """One choice of a generation: `sequence` is what the scheduler sees, `choice` its text and end.

    Invariant: the sequence's tokens are the prompt and the tokens that `choice` and `rules` have read.
    """

    request: GenerationRequest
    sequence: Sequence
    choice: Choice
    rules: LogitRules

    @property
    def index(self) -> int:
        """Which choice it is."""
        return self.sequence.choice

    def push(self, token_id: int, place: int | None = None) -> str:
        """Read the next token of the output and return the text that it releases.

        Args:
            place: where the sequence has it already, as a token that was not known; None if it has not.
        """
        if place is None:
            self.sequence.token_ids.append(token_id)
        else:
            self.sequence.token_ids[place] = token_id
        self.rules.push(token_id)
        return self.choice.push(token_id)

    def sampling_row(self) -> SamplingRow:
        """How its next token is chosen; greedy sampling needs no draw."""
        sampling, num_tokens = self.request.sampling, self.choice.num_tokens + self.sequence.num_unknown
        draw = uniform(sampling.seed, self.sequence.choice, num_tokens) if sampling.temperature > 0 else 0.0
        rules = self.rules if self.rules.is_active else None
        return SamplingRow(sampling, draw, rules, self.request.num_top_logprobs)


@dataclass(slots=True, eq=False)
class Generation:
    """A request in the engine.

    Attributes:
        live: branches that have no FinishEvent yet, by choice.
        ended_in_log: the log has the end of at least one choice.
        prompt_logprobs: of the prompt's tokens so far, the first token excepted.
    """

    request: GenerationRequest
    live: dict[int, Branch]
    ended_in_log: bool
    is_cancelled: bool = False
    is_started: bool = False
    is_prefilled: bool = False
    prompt_logprobs: list[PromptLogprob] = field(default_factory=list)

    def endings(self, now: float) -> list[tuple[Branch, Ending]]:
        """The live branches that need no forward pass to end: ended in the log, cancelled, past the deadline."""
        deadline_s = self.request.deadline_s
        cut = None
        if self.is_cancelled:
            cut = Ending(FinishReason.CANCELLED)
        elif deadline_s is not None and now >= deadline_s:
            cut = Ending(FinishReason.TIME_LIMIT)
        elif not self.ended_in_log:
            return []
        found = ((branch, branch.choice.ending or cut) for branch in self.live.values())
        return [(branch, ending) for branch, ending in found if ending is not None]


def open_generation(
    request: GenerationRequest, pieces: TokenPieces, vocab_size: int, *, first_arrival: int
) -> Generation:
    """A generation with every branch where its log ends.

    The first branch that goes on also computes the prompt's logprobs, if they are wanted: the others take the
    prompt's blocks from it.

    Args:
        first_arrival: rank of the first choice among all sequences; the others' follow.

    Raises ValueError if the log of a choice goes on after its end.
    """
    branches = {}
    for index, output_ids in enumerate(request.outputs):
        sequence = Sequence(
            request.generation_id,
            first_arrival + index,
            list(request.prompt_ids),
            choice=index,
            num_prompt=len(request.prompt_ids),
        )
        sequence.num_common = len(request.prompt_ids) if request.num_choices > 1 else 0
        choice = Choice(pieces, request.stopping, strip_leading_space=request.strip_leading_space)
        branches[index] = branch = Branch(request, sequence, choice, LogitRules(request, vocab_size))
        for token_id in output_ids:
            branch.choice.require_open()
            branch.push(token_id)
    going_on = [branch for branch in branches.values() if branch.choice.ending is None]
    if request.wants_prompt_logprobs and going_on:
        going_on[0].sequence.wants_all_logits = True
    return Generation(request, branches, ended_in_log=len(going_on) < len(branches))
