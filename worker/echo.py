"""The prompt's tokens as tokens of the output: what a request for an echo begins with.

An echo stands in the log like all other tokens, so that reading on from any position needs no exception. Its text is
complete by itself: what is generated has the same tokens, draws and text with it as without.
"""

from collections.abc import Sequence

from contract.messages import Alternative, Job, LoggedToken
from worker.engine.detokenizer import Detokenizer, TokenPieces
from worker.engine.sequence import PromptLogprob, TokenLogprob


def echo_of(job: Job, pieces: TokenPieces, logprobs: Sequence[PromptLogprob]) -> list[LoggedToken]:
    """The prompt of choice 0, then of choice 1 and so on; [] for a job that wants no echo.

    Args:
        logprobs: of the prompt's tokens but the first, if the job wants them.
    """
    if not job.echo:
        return []
    assert len(logprobs) == (len(job.prompt_ids) - 1 if job.prompt_logprobs else 0), "the prompt is not scored"
    texts = _texts_of(job.prompt_ids, pieces)
    scored = (None, *logprobs) if logprobs else (None,) * len(texts)
    return [
        LoggedToken(
            choice=choice,
            index=index,
            position=choice * len(texts) + index,
            token_id=job.prompt_ids[index],
            text=text,
            logprob=None if score is None else score.logprob,
            alternatives=() if score is None else alternatives_of(score.top_logprobs, pieces),
        )
        for choice in range(job.num_choices)
        for index, (text, score) in enumerate(zip(texts, scored, strict=True))
    ]


def alternatives_of(tokens: Sequence[TokenLogprob], pieces: TokenPieces) -> tuple[Alternative, ...]:
    """The engine's alternatives with their texts."""
    return tuple(Alternative(each.token_id, each.logprob, pieces.text_of(each.token_id)) for each in tokens)


def _texts_of(prompt_ids: Sequence[int], pieces: TokenPieces) -> list[str]:
    """The text that each token releases; nothing is held back at the end."""
    detokenizer = Detokenizer(pieces, strip_leading_space=True)  # the tokenizer has put it there
    texts = [detokenizer.push(token_id) for token_id in prompt_ids]
    texts[-1] += detokenizer.flush()
    return texts
