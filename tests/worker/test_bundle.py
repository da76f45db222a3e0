"""The model bundle: what the worker reads from a model folder, and what a gateway reads from the bytes."""

import dataclasses
import json
from pathlib import Path

import pytest
import sentencepiece
from tokenizers import AddedToken, Tokenizer
from tokenizers.models import BPE

from contract.bundle import (
    Architecture,
    ChatFormat,
    ChatFormatKind,
    GenerationDefaults,
    MalformedBundle,
    ModelBundle,
    Piece,
    PieceKind,
    digest_of,
)
from service.tokenizer import PromptTokenizer
from tests.tokenizer_models import (
    SPACE,
    train_llama2_like,
    train_with_equal_space_runs,
    write_json,
    write_model_folder,
)
from worker.bundle import build_bundle, count_llama_parameters, token_pieces
from worker.model_folder import ModelFolderError

LLAMA2_TEMPLATE = (
    "{% if messages[0]['role'] == 'system' %}{% set rest = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set rest = messages %}{% set system = none %}{% endif %}{% for message in rest %}"
    "{% if loop.first and system is not none %}"
    "{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def tiny_bundle() -> ModelBundle:
    """Made by hand: three control pieces, one byte, three normal pieces, one merge."""
    pieces = (
        *(Piece("<unk>", PieceKind.UNKNOWN), Piece("<s>", PieceKind.CONTROL), Piece("</s>", PieceKind.CONTROL)),
        Piece("<0x0A>", PieceKind.BYTE),
        *(Piece(SPACE, PieceKind.NORMAL), Piece("é", PieceKind.NORMAL), Piece(f"{SPACE}é", PieceKind.NORMAL)),
        *(Piece("", PieceKind.CONTROL), Piece("<tool>", PieceKind.USER_DEFINED)),
    )
    return ModelBundle(
        pieces=pieces,
        merges=((4, 5),),
        bos_id=1,
        eos_id=2,
        unk_id=0,
        eos_ids=(2,),
        context_length=4096,
        vocab_size=16,
        chat_format=ChatFormat(ChatFormatKind.JINJA, "{{ messages }}"),
        defaults=GenerationDefaults(do_sample=True, temperature=0.6, top_p=0.9),
        quantization="nf4",
        architecture=Architecture("llama", 2, 64, 4, 2, 1000),
    )


def changed(payload: bytes, **fields: object) -> bytes:
    return json.dumps({**json.loads(payload), **fields}).encode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_model_folder(tmp_path / "model", train_llama2_like())


class TestBytes:
    def test_a_bundle_comes_back_whole(self) -> None:
        bundle = tiny_bundle()
        assert ModelBundle.from_bytes(bundle.to_bytes()) == bundle

    def test_the_digest_never_changes(self) -> None:
        """Gateways and workers of different releases name one bundle alike; a new digest is a new format version."""
        assert tiny_bundle().digest == "e1f83332cdad11b375b88b39671b210933f52af0b8bda7ec2dd1bb2f28ba795e"
        assert digest_of(tiny_bundle().to_bytes()) == tiny_bundle().digest

    def test_the_digest_tells_models_apart(self) -> None:
        bundle = tiny_bundle()
        assert dataclasses.replace(bundle, quantization="int8").digest != bundle.digest
        assert dataclasses.replace(bundle, eos_ids=(2, 7)).digest != bundle.digest

    def test_unknown_fields_are_ignored(self) -> None:
        bundle = tiny_bundle()
        newer = changed(
            bundle.to_bytes(),
            later=1,
            architecture={**dataclasses.asdict(bundle.architecture), "num_experts": 8},
            chat_format={"kind": "jinja", "template": "{{ messages }}", "stop": "x"},
        )
        assert ModelBundle.from_bytes(newer) == bundle

    def test_another_version_is_refused(self) -> None:
        with pytest.raises(MalformedBundle, match="version 2; this program reads version 1"):
            ModelBundle.from_bytes(changed(tiny_bundle().to_bytes(), version=2))

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            changed(tiny_bundle().to_bytes(), bos_id=99),
            changed(tiny_bundle().to_bytes(), bos_id=4),
            changed(tiny_bundle().to_bytes(), bos_id="1"),
            changed(tiny_bundle().to_bytes(), merges=[4]),
            changed(tiny_bundle().to_bytes(), merges=[4, 99]),
            changed(tiny_bundle().to_bytes(), vocab_size=3),
            changed(tiny_bundle().to_bytes(), kinds={"odd": [1]}),
            changed(tiny_bundle().to_bytes(), kinds={"control": [99]}),
            changed(tiny_bundle().to_bytes(), chat_format={"kind": "odd"}),
            changed(tiny_bundle().to_bytes(), architecture={}),
        ],
    )
    def test_bytes_that_are_no_bundle_are_refused(self, payload: bytes) -> None:
        with pytest.raises(MalformedBundle):
            ModelBundle.from_bytes(payload)


class TestVocabulary:
    def test_training_a_test_model_is_deterministic(self) -> None:
        assert train_llama2_like.__wrapped__() == train_llama2_like()

    def test_pieces_are_sentencepieces(self, folder: Path) -> None:
        reference = sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
        pieces = build_bundle(folder, quantization="int8").pieces
        assert [piece.text for piece in pieces] == [reference.id_to_piece(id_) for id_ in range(reference.piece_size())]
        for id_, piece in enumerate(pieces):
            assert (piece.kind is PieceKind.CONTROL) == reference.is_control(id_)
            assert (piece.kind is PieceKind.BYTE) == reference.is_byte(id_)
            assert (piece.kind is PieceKind.UNKNOWN) == reference.is_unknown(id_)

    def test_a_folder_with_tokenizer_json_alone_encodes_the_same(self, folder: Path) -> None:
        text = "The return of  12 <s> é 🙂\n        if x"
        bundle = build_bundle(folder, quantization="int8")
        self.write_tokenizer_json(folder, bundle)
        (folder / "tokenizer.model").unlink()
        from_json = build_bundle(folder, quantization="int8")
        assert from_json == bundle
        assert PromptTokenizer(from_json).encode_text(text) == PromptTokenizer(bundle).encode_text(text)

    def test_merges_come_from_tokenizer_model_where_both_files_exist(self, tmp_path: Path) -> None:
        """A tokenizer.json whose converter put the merge of two spaces first gives other ids; ours stay right."""
        serialized = train_with_equal_space_runs()
        folder = write_model_folder(tmp_path, serialized)
        bundle = build_bundle(folder, quantization="int8")
        spaces = bundle.pieces.index(Piece(SPACE, PieceKind.NORMAL))
        two_first = sorted(bundle.merges, key=lambda merge: merge != (spaces, spaces))
        self.write_tokenizer_json(folder, dataclasses.replace(bundle, merges=tuple(two_first)))
        text = "x =  the"
        reference = sentencepiece.SentencePieceProcessor(model_proto=serialized).encode(text)
        assert PromptTokenizer(build_bundle(folder, quantization="int8")).encode_text(text) == reference
        (folder / "tokenizer.model").unlink()
        assert PromptTokenizer(build_bundle(folder, quantization="int8")).encode_text(text) != reference

    def test_added_tokens_take_their_places(self, folder: Path) -> None:
        size = len(build_bundle(folder, quantization="int8").pieces)
        write_model_folder(folder, train_llama2_like(), vocab_size=size + 3)
        tokens = {
            "1": {"content": "<s>", "special": True},
            str(size): {"content": "<|end|>", "special": True},
            str(size + 2): {"content": "my word", "special": False},
            str(size + 3): {"content": "[PAD]", "special": True},
        }
        write_json(folder / "tokenizer_config.json", {"added_tokens_decoder": tokens})
        bundle = build_bundle(folder, quantization="int8")
        assert bundle.pieces[size:] == (
            Piece("<|end|>", PieceKind.CONTROL),
            Piece("", PieceKind.CONTROL),  # an id that nobody names
            Piece(f"my{SPACE}word", PieceKind.USER_DEFINED),
        )  # [PAD] lies beyond the embedding: its row does not exist
        assert bundle.control_ids == {"<s>": 1, "</s>": 2, "<|end|>": size}
        tokenizer = PromptTokenizer(bundle)
        assert size + 2 in tokenizer.encode_text("is my word here")
        assert size not in tokenizer.encode_text("is <|end|> here")

    def test_a_user_defined_token_that_the_template_writes_is_a_marker(self, folder: Path) -> None:
        size = len(build_bundle(folder, quantization="int8").pieces)
        write_model_folder(folder, train_llama2_like(), vocab_size=size + 1)
        write_json(
            folder / "tokenizer_config.json",
            {
                "added_tokens_decoder": {str(size): {"content": "<|user|>", "special": False}},
                "chat_template": "<|user|>{{ messages[0].content }}",
            },
        )
        assert build_bundle(folder, quantization="int8").control_ids["<|user|>"] == size

    def test_an_added_token_may_not_take_the_place_of_a_piece(self, folder: Path) -> None:
        write_json(folder / "added_tokens.json", {"<|end|>": 5})
        with pytest.raises(ModelFolderError, match=r"'<\|end\|>' claims id 5"):
            build_bundle(folder, quantization="int8")

    def test_detokenizer_table_holds_the_bytes_of_every_piece(self, folder: Path) -> None:
        bundle = build_bundle(folder, quantization="int8")
        table = token_pieces(bundle)
        text = "The return of  12 é 🙂"
        ids = PromptTokenizer(bundle).encode_text(text)
        assert b"".join(map(table.bytes_of, ids)).decode() == " " + text
        assert [table.bytes_of(id_) for id_ in (0, 1, 2)] == [b"", b"", b""]

    @staticmethod
    def write_tokenizer_json(folder: Path, bundle: ModelBundle) -> None:
        texts = [piece.text for piece in bundle.pieces]
        bpe = BPE(
            vocab={text: id_ for id_, text in enumerate(texts)},
            merges=[(texts[left], texts[right]) for left, right in bundle.merges],
            byte_fallback=True,
            unk_token="<unk>",
        )
        tokenizer = Tokenizer(bpe)
        tokenizer.add_special_tokens([AddedToken(text, special=True) for text in ("<unk>", "<s>", "</s>")])
        tokenizer.save(str(folder / "tokenizer.json"))


class TestConfiguration:
    def test_defaults_are_those_of_the_generation_config(self, folder: Path) -> None:
        write_json(
            folder / "generation_config.json",
            {"do_sample": True, "temperature": 1, "top_p": 0.9, "max_length": 4096, "eos_token_id": [2, 7]},
        )
        bundle = build_bundle(folder, quantization="int8")
        assert bundle.defaults == GenerationDefaults(do_sample=True, temperature=1.0, top_p=0.9, max_length=4096)
        assert bundle.eos_ids == (2, 7)
        assert bundle.eos_id == 2

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("repetition_penalty", 0),
            ("min_p", 1.5),
            ("top_p", 0),
            ("temperature", -1),
            ("top_k", -1),
            ("max_length", 0),
        ],
    )
    def test_a_default_that_no_request_could_ask_for_is_named(self, folder: Path, name: str, value: float) -> None:
        write_json(folder / "generation_config.json", {name: value})
        with pytest.raises(MalformedBundle, match=name):
            build_bundle(folder, quantization="int8")

    def test_what_no_file_says_is_absent(self, folder: Path) -> None:
        bundle = build_bundle(folder, quantization="int8")
        assert bundle.defaults == GenerationDefaults()
        assert bundle.eos_ids == (2,)
        assert (bundle.bos_id, bundle.eos_id, bundle.unk_id) == (1, 2, 0)
        assert bundle.context_length == 256
        assert bundle.chat_format == ChatFormat(ChatFormatKind.NONE)

    def test_parameters_are_those_of_the_published_models(self) -> None:
        """7B and 70B, whose keys and values have 8 heads."""
        seven = {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 11008, "num_attention_heads": 32}
        seventy = {"hidden_size": 8192, "num_hidden_layers": 80, "intermediate_size": 28672, "num_attention_heads": 64}
        assert count_llama_parameters({**seven, "vocab_size": 32000}) == 6_738_415_616
        assert count_llama_parameters({**seventy, "vocab_size": 32000, "num_key_value_heads": 8}) == 68_976_648_192

    def test_a_template_that_renders_metas_format_is_llama2(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text(LLAMA2_TEMPLATE)
        assert build_bundle(folder, quantization="int8").chat_format == ChatFormat(ChatFormatKind.LLAMA2)

    @pytest.mark.parametrize("place", ["text", "named", "own-file"])
    def test_another_template_is_kept_as_it_is(self, folder: Path, place: str) -> None:
        template = "{% for message in messages %}[INST] {{ message.content }}{% endfor %}"
        if place == "own-file":
            write_json(folder / "chat_template.json", {"chat_template": template})
        else:
            named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
            write_json(folder / "tokenizer_config.json", {"chat_template": template if place == "text" else named})
        assert build_bundle(folder, quantization="int8").chat_format == ChatFormat(ChatFormatKind.JINJA, template)

    def test_the_worker_may_name_the_chat_format(self, folder: Path) -> None:
        """Chat models were published without a template."""
        chosen = ChatFormat(ChatFormatKind.LLAMA2)
        assert build_bundle(folder, quantization="int8", chat_format=chosen).chat_format == chosen

    def test_a_broken_template_is_refused(self, folder: Path) -> None:
        (folder / "chat_template.jinja").write_text("{% for message in messages %}")
        with pytest.raises(ModelFolderError, match="does not compile: line 1"):
            build_bundle(folder, quantization="int8")


class TestRefusal:
    def test_a_folder_without_vocabulary_is_refused(self, folder: Path) -> None:
        (folder / "tokenizer.model").unlink()
        with pytest.raises(ModelFolderError, match=r"neither tokenizer\.model nor tokenizer\.json"):
            build_bundle(folder, quantization="int8")

    def test_a_cut_off_tokenizer_model_is_refused(self, folder: Path) -> None:
        file = folder / "tokenizer.model"
        file.write_bytes(file.read_bytes()[:5000])
        with pytest.raises(ModelFolderError, match="is not a SentencePiece model"):
            build_bundle(folder, quantization="int8")

    def test_a_vocabulary_larger_than_the_embedding_is_refused(self, folder: Path) -> None:
        write_model_folder(folder, train_llama2_like(), vocab_size=300)
        with pytest.raises(ModelFolderError, match="the model's embedding has 300"):
            build_bundle(folder, quantization="int8")

    def test_byte_level_bpe_is_refused(self, folder: Path) -> None:
        """Llama 3's kind of vocabulary follows other rules."""
        (folder / "tokenizer.model").unlink()
        Tokenizer(BPE(vocab={"a": 0}, merges=[])).save(str(folder / "tokenizer.json"))
        with pytest.raises(ModelFolderError, match="not BPE with byte fallback"):
            build_bundle(folder, quantization="int8")

    def test_a_model_that_normalizes_text_is_refused(self, folder: Path) -> None:
        model = (folder / "tokenizer.model").read_bytes()
        # In the normalizer's fields: 4 (remove_extra_whitespaces) from 0 to 1.
        assert model.count(b"\x18\x01\x20\x00") == 1
        (folder / "tokenizer.model").write_bytes(model.replace(b"\x18\x01\x20\x00", b"\x18\x01\x20\x01"))
        with pytest.raises(ModelFolderError, match="removes spaces"):
            build_bundle(folder, quantization="int8")

    @pytest.mark.parametrize("field", ["vocab_size", "max_position_embeddings", "num_hidden_layers"])
    def test_a_configuration_without_its_sizes_is_refused(self, folder: Path, field: str) -> None:
        config = json.loads((folder / "config.json").read_text())
        del config[field]
        write_json(folder / "config.json", config)
        with pytest.raises(ModelFolderError, match=f"config.json has no {field}"):
            build_bundle(folder, quantization="int8")

    def test_a_file_that_is_not_json_is_refused(self, folder: Path) -> None:
        (folder / "generation_config.json").write_text("{")
        with pytest.raises(ModelFolderError, match="is not JSON"):
            build_bundle(folder, quantization="int8")
