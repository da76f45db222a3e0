"""Text to token ids and back, from a model bundle: equal to SentencePiece, and no text ever becomes a control token."""

import codecs
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from contract.bundle import ChatFormatKind, ModelBundle, Piece, PieceKind
from contract.errors import FieldViolation, InvalidRequest
from service.chat_format import LLAMA2_TAGS, Message, PromptPart, llama2_parts, refuse_tags
from service.chat_template import ChatTemplate
from service.encoding import BoundedEncoder

_SPACE = "\u2581"  # what a space is to the vocabulary; written in a text it is a space too, as in SentencePiece
_UNKNOWN_TEXT = " \u2047 "


@dataclass(frozen=True, slots=True)
class TokenSpan:
    """One token of a text and what it stands for: text.encode()[begin:end].

    The spans of a text follow each other without gap or overlap. The first token may be the space before the text
    alone: then begin = end = 0. Byte pieces of one character have a byte of it each.
    """

    id: int
    begin: int
    end: int


class PromptTokenizer:
    """The tokenizer of one model. Threads may share it; encoding runs outside the GIL, about 1.5 MB a second.

    Control and unknown pieces are not in the vocabulary that text is encoded with. So `<s>`, `</s>` and `<unk>` in
    a text stay text by construction, and the control tokens of a prompt are put in by this class alone.
    """

    def __init__(self, bundle: ModelBundle) -> None:
        """Takes 0.1 s for Llama 2's 32,000 pieces. Raises jinja2.TemplateSyntaxError for a broken template."""
        self._bundle = bundle
        self._text_tokenizer = _build_tokenizer(bundle)
        num_padding = bundle.vocab_size - len(bundle.pieces)
        self._bytes = (*map(_piece_bytes, bundle.pieces), *[b""] * num_padding)
        self._is_byte = tuple(piece.kind is PieceKind.BYTE for piece in bundle.pieces)
        self._spaced_ids = frozenset(id_ for id_, piece in enumerate(bundle.pieces) if piece.text.startswith(_SPACE))
        self._longest = _longest_piece(bundle)
        self._template: ChatTemplate | None = None
        if bundle.chat_format.kind is ChatFormatKind.JINJA:
            self._template = ChatTemplate(
                bundle.chat_format.template,
                control_ids=bundle.control_ids,
                bos_token=bundle.pieces[bundle.bos_id].text,
                eos_token=bundle.pieces[bundle.eos_id].text,
            )

    def encode_text(self, text: str) -> list[int]:
        """The ids of a text by itself, without BOS; [] for ''."""
        if not text:
            return []
        (encoding,) = self._text_tokenizer.encode_batch_fast([_as_pieces_spell(text)], add_special_tokens=False)
        ids: list[int] = encoding.ids
        return ids

    def encode_spans(self, text: str) -> Iterator[TokenSpan]:
        """The ids of a text by itself, and which bytes each stands for; slower than `encode_text`.

        One at a time, for Python's collector stops all threads, and for longer the more objects there are.
        """
        if not text:
            return
        encoding = self._text_tokenizer.encode(_as_pieces_spell(text), add_special_tokens=False)
        byte_at = [0, *accumulate(len(character.encode()) for character in text)]  # where each character begins
        last_end = 0
        for id_, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            # One character less: the space before the text is not the caller's.
            begin, end = byte_at[max(first - 1, 0)], byte_at[last - 1]
            if self._is_byte[id_]:  # the library gives each of them the whole character
                begin = max(begin, last_end)
                end = min(begin + 1, end)
            yield TokenSpan(id_, begin, end)
            last_end = end

    def least_tokens(self, text: str) -> int:
        """A number of tokens that `encode_text` cannot fall short of, known by the text's length alone.

        Every token is a piece of the vocabulary, or a byte of one character, and together they stand for the whole
        text and the space before it. So there is one for every so many characters as the longest piece has.
        """
        return -(-(len(text) + 1) // self._longest) if text and self._longest else 0

    def chat_parts(self, messages: Sequence[Message], allow_tags: bool) -> list[PromptPart]:
        """What `encode_chat` encodes, and raises: texts, each by itself, and control tokens."""
        if self._bundle.chat_format.kind is ChatFormatKind.NONE:
            raise InvalidRequest([FieldViolation("chat", "this model has no chat format; send a prompt")])
        if not allow_tags:
            refuse_tags(messages, self._template.tags if self._template else LLAMA2_TAGS)
        if self._template:
            return self._template.parts(messages)
        return llama2_parts(messages, bos_id=self._bundle.bos_id, eos_id=self._bundle.eos_id)

    def encode_prompt(self, text: str, max_tokens: int = sys.maxsize) -> list[int]:
        """BOS and the ids of a text. Raises TooManyTokens if there are more."""
        return BoundedEncoder(self, max_tokens).encode([self._bundle.bos_id, text])

    def encode_chat(self, messages: Sequence[Message], allow_tags: bool, max_tokens: int = sys.maxsize) -> list[int]:
        """The prompt of a dialog in the model's chat format.

        Args:
            messages: roles in the order the format demands; the last is the user's.
            allow_tags: let messages contain the format's own tags, as [INST]: they then read as turns to the model.

        Raises:
            InvalidRequest: the model has no chat format, a role is out of order, or a message contains a tag.
            TooManyTokens: there are more than `max_tokens`.
        """
        return BoundedEncoder(self, max_tokens).encode(self.chat_parts(messages, allow_tags))

    def encode_chat_spans(
        self, messages: Sequence[Message], allow_tags: bool = False
    ) -> tuple[str, Iterator[TokenSpan]]:
        """What `encode_chat` encodes: the text of all parts, without control tokens, and its ids with their spans.

        A control token's span is 0 to 0. Raises as `encode_chat` does.
        """
        parts = self.chat_parts(messages, allow_tags)
        return "".join(part for part in parts if isinstance(part, str)), self._spans_of(parts)

    def _spans_of(self, parts: Sequence[PromptPart]) -> Iterator[TokenSpan]:
        offset = 0
        for part in parts:
            if isinstance(part, str):
                for span in self.encode_spans(part):
                    yield TokenSpan(span.id, span.begin + offset, span.end + offset)
                offset += len(part.encode())
            else:
                yield TokenSpan(part, 0, 0)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids: control tokens have none, and the space before the text goes.

        Bytes that are no UTF-8 become U+FFFD each, and unknown is " ⁇ ", as SentencePiece has them.
        Raises ValueError for an id that the model does not have.
        """
        texts: list[str] = []
        run = bytearray()  # what stands between two control tokens: bytes do not join to a character across one
        begins = True
        for id_ in ids:
            if not 0 <= id_ < len(self._bytes):
                raise ValueError(f"token id {id_} is not in 0..{len(self._bytes) - 1}")
            piece = self._bytes[id_]
            if not piece:
                texts.append(run.decode("utf-8", _EACH_BYTE))
                run.clear()
            run += piece[1:] if begins and id_ in self._spaced_ids else piece
            begins = begins and not piece
        texts.append(run.decode("utf-8", _EACH_BYTE))
        return "".join(texts)


def _build_tokenizer(bundle: ModelBundle) -> Tokenizer:
    """BPE without normalizer (`_as_pieces_spell` is it) and without pre-tokenizer: a text is one word, as there."""
    vocabulary = {
        piece.text: id_
        for id_, piece in enumerate(bundle.pieces)
        if piece.kind not in (PieceKind.CONTROL, PieceKind.UNKNOWN)
    }
    merges = [(bundle.pieces[left].text, bundle.pieces[right].text) for left, right in bundle.merges]
    # No cache: it would keep callers' texts.
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=merges, byte_fallback=True, cache_capacity=0))
    tokenizer.add_tokens(
        [
            AddedToken(piece.text, normalized=False, special=False)
            for piece in bundle.pieces
            if piece.kind is PieceKind.USER_DEFINED
        ]
    )
    return tokenizer


def _longest_piece(bundle: ModelBundle) -> int:
    """How many characters of a text one token can stand for; 0 where a byte piece is missing: some have no token."""
    num_bytes = len({piece for piece in bundle.pieces if piece.kind is PieceKind.BYTE})
    texts = (piece.text for piece in bundle.pieces if piece.kind in (PieceKind.NORMAL, PieceKind.USER_DEFINED))
    return max(map(len, texts), default=1) if num_bytes == 256 else 0


def _as_pieces_spell(text: str) -> str:
    """A space before the text, and every space as the vocabulary writes it.

    Done here and not by the library's normalizers: those would put a space before every stretch between two
    user-defined pieces.
    """
    return _SPACE + text.replace(" ", _SPACE)


def _piece_bytes(piece: Piece) -> bytes:
    if piece.kind is PieceKind.CONTROL:
        return b""
    if piece.kind is PieceKind.UNKNOWN:
        return _UNKNOWN_TEXT.encode()
    if piece.kind is PieceKind.BYTE:
        return bytes([int(piece.text[3:5], 16)])
    return piece.text.replace(_SPACE, " ").encode()


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """Python's own "replace" gives one U+FFFD to a sequence that is cut short; SentencePiece gives each byte one."""
    assert isinstance(error, UnicodeDecodeError)
    return "\ufffd" * (error.end - error.start), error.end


_EACH_BYTE = "llamaherd.replace-each-byte"
codecs.register_error(_EACH_BYTE, _replace_each_byte)
