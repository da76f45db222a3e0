"""Meta's Llama 2 chat format as token ids, and which of them the model is taught to predict.

Each turn is BOS, "[INST] question [/INST]", " answer ", EOS, encoded by itself; the system prompt stands inside the
first question. Source: `chat_completion` in Meta's llama repository. Training differs in one place on purpose: after
the last word of an answer the model is taught EOS at once, not the blank before it, so that answers end clean.
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece

from training.corpus.dialogue import Dialogue

BOS_ID, EOS_ID = 1, 2
IGNORED = 65535  # a label that no loss is taken at; fits the uint16 arrays of the packed corpus


class ChatEncoder:
    """Turns dialogues into ids. `prompt` ends where generation starts; `example` adds the labels for training."""

    def __init__(self, tokenizer_file: Path) -> None:
        self.pieces = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_file))
        self._blank = self.pieces.piece_to_id("▁")

    def prompt(self, dialogue: Dialogue) -> list[int]:
        """Ids of all turns, the last one without its answer."""
        ids: list[int] = []
        for index, turn in enumerate(dialogue.turns):
            ids += self._question(dialogue, index)
            if index < len(dialogue.turns) - 1:
                ids += [*self.pieces.encode(turn.answer), self._blank, EOS_ID]
        return ids

    def example(self, dialogue: Dialogue) -> tuple[list[int], list[int]]:
        """Ids of all turns, and for each position the id to predict there, or `IGNORED`."""
        ids: list[int] = []
        labels: list[int] = []
        for index, turn in enumerate(dialogue.turns):
            question, answer = self._question(dialogue, index), self.pieces.encode(turn.answer)
            ids += [*question, *answer, self._blank, EOS_ID]
            labels += [IGNORED] * (len(question) - 1) + [*answer, EOS_ID] + [IGNORED] * 2
        return ids, labels

    def text(self, ids: list[int]) -> str:
        """The text of generated ids, up to EOS, without the blank that starts an answer."""
        if EOS_ID in ids:
            ids = ids[: ids.index(EOS_ID)]
        return str(self.pieces.decode(ids))

    def _question(self, dialogue: Dialogue, index: int) -> list[int]:
        content = dialogue.turns[index].user
        if index == 0 and dialogue.system:
            content = f"<<SYS>>\n{dialogue.system}\n<</SYS>>\n\n{content}"
        return [BOS_ID, *self.pieces.encode(f"[INST] {content.strip()} [/INST]")]
