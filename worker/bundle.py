"""Builds the model bundle of a Hugging Face model folder, and the detokenizer's table from a bundle."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from contract.bundle import (
    Architecture,
    ChatFormat,
    ChatFormatKind,
    GenerationDefaults,
    ModelBundle,
    Piece,
    PieceKind,
)
from worker.chat_template import read_chat_format
from worker.engine.detokenizer import PieceKind as DetokenizerKind
from worker.engine.detokenizer import TokenPieces
from worker.model_folder import ModelFolderError, read_json
from worker.vocabulary import read_vocabulary


def build_bundle(folder: Path, *, quantization: str, chat_format: ChatFormat | None = None) -> ModelBundle:
    """Read all of the bundle but the weights' quantization, which the worker decides, from the folder.

    Args:
        quantization: "int8", "nf4", "nf4-dq" or "fp16"; see ModelBundle.
        chat_format: overrides what the folder's template says, as for chat models published without one.

    Raises:
        ModelFolderError: a file is missing or wrong, or the model is not of a kind that is served.
    """
    config = read_json(folder, "config.json")
    tokenizer_config = read_json(folder, "tokenizer_config.json")
    generation_config = read_json(folder, "generation_config.json")
    vocab_size = _required(config, "vocab_size")
    vocabulary = read_vocabulary(folder, vocab_size=vocab_size)
    chosen_format = chat_format or read_chat_format(folder)
    pieces = _with_markers(vocabulary.pieces, chosen_format)
    eos_id = _token_id(pieces, tokenizer_config.get("eos_token"), config.get("eos_token_id"), "</s>")
    bundle = ModelBundle(
        pieces=pieces,
        merges=vocabulary.merges,
        bos_id=_token_id(pieces, tokenizer_config.get("bos_token"), config.get("bos_token_id"), "<s>"),
        eos_id=eos_id,
        unk_id=next((id_ for id_, piece in enumerate(pieces) if piece.kind is PieceKind.UNKNOWN), None),
        eos_ids=_eos_ids(generation_config, config) or (eos_id,),
        context_length=_required(config, "max_position_embeddings"),
        vocab_size=vocab_size,
        chat_format=chosen_format,
        defaults=_read_defaults(generation_config),
        quantization=quantization,
        architecture=_read_architecture(config),
    )
    return ModelBundle.from_bytes(bundle.to_bytes())  # what gateways will read, or MalformedBundle here


def token_pieces(bundle: ModelBundle) -> TokenPieces:
    """The detokenizer's table. Unknown is control there: it has no text of its own."""
    return TokenPieces.from_vocab((piece.text, _DETOKENIZER_KINDS[piece.kind]) for piece in bundle.pieces)


def count_llama_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a Llama with this config.json: embedding, layers, final norm, and output layer unless tied."""
    hidden, layers, ffn = config["hidden_size"], config["num_hidden_layers"], config["intermediate_size"]
    heads = config["num_attention_heads"]
    head_size = config.get("head_dim") or hidden // heads
    kv_heads = config.get("num_key_value_heads") or heads
    attention = 2 * hidden * heads * head_size + 2 * hidden * kv_heads * head_size
    layer = attention + 3 * hidden * ffn + 2 * hidden
    embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
    return int(embeddings + layers * layer + hidden)


_DETOKENIZER_KINDS = {
    PieceKind.NORMAL: DetokenizerKind.NORMAL,
    PieceKind.USER_DEFINED: DetokenizerKind.NORMAL,
    PieceKind.BYTE: DetokenizerKind.BYTE,
    PieceKind.CONTROL: DetokenizerKind.CONTROL,
    PieceKind.UNKNOWN: DetokenizerKind.CONTROL,
}


def _required(config: Mapping[str, Any], name: str) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ModelFolderError(f"config.json has no {name}")
    return value


def _with_markers(pieces: tuple[Piece, ...], chat_format: ChatFormat) -> tuple[Piece, ...]:
    """A user-defined piece that the chat template writes is a marker: nobody's text may become it."""
    if chat_format.kind is not ChatFormatKind.JINJA:
        return pieces
    return tuple(
        Piece(piece.text, PieceKind.CONTROL)
        if piece.kind is PieceKind.USER_DEFINED and piece.text in chat_format.template
        else piece
        for piece in pieces
    )


def _token_id(pieces: tuple[Piece, ...], named: object, configured: object, fallback: str) -> int:
    """The id of a special token: by its name in tokenizer_config.json, else config.json's id, else Llama's name."""
    name = named.get("content") if isinstance(named, dict) else named
    ids = {piece.text: id_ for id_, piece in enumerate(pieces) if piece.kind is PieceKind.CONTROL}
    if isinstance(name, str) and name in ids:
        return ids[name]
    if isinstance(configured, list) and configured:
        configured = configured[0]
    if isinstance(configured, int):
        return configured
    if fallback in ids:
        return ids[fallback]
    raise ModelFolderError(f"the vocabulary has no {fallback}, and no file of the folder names another")


def _eos_ids(*configs: Mapping[str, Any]) -> tuple[int, ...]:
    """eos_token_id of the first configuration that has one; it is an id or a list of ids."""
    for config in configs:
        value = config.get("eos_token_id")
        if isinstance(value, int):
            return (value,)
        if isinstance(value, list) and value:
            return tuple(value)
    return ()


def _read_defaults(generation_config: Mapping[str, Any]) -> GenerationDefaults:
    def number(name: str) -> float | None:
        value = generation_config.get(name)
        return None if value is None else float(value)

    return GenerationDefaults(
        do_sample=generation_config.get("do_sample"),
        temperature=number("temperature"),
        top_k=generation_config.get("top_k"),
        top_p=number("top_p"),
        min_p=number("min_p"),
        typical_p=number("typical_p"),
        repetition_penalty=number("repetition_penalty"),
        max_new_tokens=generation_config.get("max_new_tokens"),
        max_length=generation_config.get("max_length"),
    )


def _read_architecture(config: Mapping[str, Any]) -> Architecture:
    num_heads = _required(config, "num_attention_heads")
    is_llama = config.get("model_type") == "llama"
    return Architecture(
        model_type=str(config.get("model_type", "")),
        num_layers=_required(config, "num_hidden_layers"),
        hidden_size=_required(config, "hidden_size"),
        num_heads=num_heads,
        num_kv_heads=config.get("num_key_value_heads") or num_heads,
        num_parameters=count_llama_parameters(config) if is_llama else None,
    )
