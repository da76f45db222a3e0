"""Small models for the gateway: every byte is a token, so that lengths are easy to count."""

from contract.bundle import Architecture, ChatFormat, ChatFormatKind, GenerationDefaults, ModelBundle, Piece, PieceKind

CONTEXT = 4096
PIECES = (
    Piece("<unk>", PieceKind.UNKNOWN),
    Piece("<s>", PieceKind.CONTROL),
    Piece("</s>", PieceKind.CONTROL),
    *(Piece(f"<0x{byte:02X}>", PieceKind.BYTE) for byte in range(256)),
    Piece("\u2581", PieceKind.NORMAL),
    *(Piece(letter, PieceKind.NORMAL) for letter in "abcdefghijklmnopqrstuvwxyz"),
)


def bundle(chat_format: ChatFormatKind = ChatFormatKind.LLAMA2, **defaults: float | int | bool) -> ModelBundle:
    """A model of these pieces; keyword arguments are its generation_config."""
    return ModelBundle(
        pieces=PIECES,
        merges=(),
        bos_id=1,
        eos_id=2,
        unk_id=0,
        eos_ids=(2,),
        context_length=CONTEXT,
        vocab_size=len(PIECES),
        chat_format=ChatFormat(chat_format),
        defaults=GenerationDefaults(**defaults),  # type: ignore[arg-type]  # each test gives what its field takes
        quantization="int8",
        architecture=Architecture("llama", 2, 64, 4, 2),
    )
