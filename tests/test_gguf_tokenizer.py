import json
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from shared_data import TOKENIZERS, expected_encodings, requires_shared
from tiny_tokenizers import CHATML, byte_level_metadata, llama_metadata

from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.tokenizer import sentencepiece_proto as proto
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer
from mlx_glu.tokenizer.pre_tokenizers import PRE_TOKENIZERS

TEXTS = [
    "Hello world",
    "  Hello  world\n",
    " Hello",
    "<|im_start|>Hello<|im_end|> <think a>x",
    "<s> Hello</s>Hello<tool> world<|end|>",
    "naïve 🚀 42½",
    "",
]


@pytest.fixture(params=["byte_level", "llama", "gemma"])
def metadata(request):
    if request.param == "byte_level":
        return byte_level_metadata()
    prefix = request.param == "llama"
    return llama_metadata(add_space_prefix=mx.array(prefix))


def rebuild(metadata, folder):
    write_tokenizer(metadata, folder)
    return load_tokenizer(folder)


def test_round_trip(metadata, tmp_path):
    tokenizer = rebuild(metadata, tmp_path)
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokenizer.vocab_size == len(tokens)
    assert [tokenizer.token_to_id(t) for t in tokens] == list(range(len(tokens)))
    prefix = metadata.get("tokenizer.ggml.add_space_prefix", mx.array(False))
    for text in TEXTS:
        ids = tokenizer.encode(text, add_special_tokens=False)
        if "<s>" in text and prefix.item():
            # LLaMA's rule puts a space after each special token.
            text = "<s>  Hello</s> Hello<tool>  world<|end|>"
        assert tokenizer.decode(ids) == text


def test_config_follows_the_metadata(tmp_path):
    tokenizer = rebuild(byte_level_metadata(), tmp_path)
    assert (tokenizer.bos_token, tokenizer.eos_token) == (
        "<|im_start|>",
        "<|endoftext|>",
    )
    assert tokenizer.bos_token_id == 1
    # eos_token_id forgets the token that ends a turn.
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.chat_templates == {"default": CHATML}
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert "pad_token" not in config  # -1 is none
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "w"}])
    assert chat[0] == 1
    assert chat.count(1) == 2


@pytest.mark.parametrize("make", [byte_level_metadata, llama_metadata])
@pytest.mark.parametrize(("bos", "eos"), [(True, True), (True, False), (False, False)])
def test_bos_and_eos(make, bos, eos, tmp_path):
    metadata = make(add_bos_token=mx.array(bos), add_eos_token=mx.array(eos))
    tokenizer = rebuild(metadata, tmp_path)
    plain = tokenizer.encode("Hello", add_special_tokens=False)
    eos_id = metadata["tokenizer.ggml.eos_token_id"].item()
    assert tokenizer.encode("Hello") == [1] * bos + plain + [eos_id] * eos


def test_defaults_of_absent_flags(tmp_path):
    """LLaMA-3's and sentencepiece's files add BOS unless they say no."""
    for i, (metadata, bos) in enumerate(
        [
            (byte_level_metadata(add_bos_token=None), False),
            (byte_level_metadata(add_bos_token=None, pre="llama-bpe"), True),
            (llama_metadata(), True),
        ]
    ):
        folder = tmp_path / str(i)
        folder.mkdir()
        ids = rebuild(metadata, folder).encode("Hello")
        assert (ids[0] == 1) == bos


def test_numpy_and_plain_values_are_read_like_arrays(metadata, tmp_path):
    values = {
        k: v.tolist() if isinstance(v, mx.array) else v for k, v in metadata.items()
    }
    values["tokenizer.ggml.token_type"] = np.array(
        values["tokenizer.ggml.token_type"], np.int32
    )
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_tokenizer(metadata, tmp_path / "a")
    write_tokenizer(values, tmp_path / "b")
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes()


def test_both_files_of_a_llama_vocabulary_agree(tmp_path):
    write_tokenizer(llama_metadata(), tmp_path)
    fast = load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    model = load_tokenizer(tmp_path)
    for text in TEXTS:
        assert fast.encode(text) == model.encode(text), text
        assert fast.decode(fast.encode(text)) == model.decode(model.encode(text))


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
def test_every_pre_tokenizer_keeps_all_text(name, tmp_path):
    tokenizer = rebuild(byte_level_metadata(pre=name), tmp_path)
    text = "I'll  pay 12345 EUR\r\n\n  für naïveAPIs/…!\t \u00a0x½"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@pytest.mark.parametrize(
    ("name", "pieces"),
    [
        ("gpt-2", ["ab", " 12345", "!!", "\n", "\n", "'ll", " X"]),
        ("smollm", ["ab", " ", *"12345", "!!", "\n", "\n", "'ll", " X"]),
        ("llama-bpe", ["ab", " ", "123", "45", "!!\n\n", "'ll", " X"]),
        ("qwen2", ["ab", " ", *"12345", "!!\n\n", "'ll", " X"]),
    ],
)
def test_pre_tokenizers_split_where_the_models_do(name, pieces, tmp_path):
    from tokenizers import Tokenizer

    write_tokenizer(byte_level_metadata(pre=name), tmp_path)
    splitter = Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer
    text = "ab 12345!!\n\n'll X"
    spans = [span for _, span in splitter.pre_tokenize_str(text)]
    assert [text[a:b] for a, b in spans] == pieces


@pytest.mark.parametrize(("name", "composed"), [("qwen2", True), ("llama-bpe", False)])
def test_qwen_composes_characters(name, composed, tmp_path):
    tokenizer = rebuild(byte_level_metadata(pre=name), tmp_path)
    ids = tokenizer.encode("e\u0301", add_special_tokens=False)
    assert tokenizer.decode(ids) == ("\u00e9" if composed else "e\u0301")


LLAMA_SIZE = len(llama_metadata()["tokenizer.ggml.tokens"])
LLAMA_KEYS = ["model", "tokens", "scores", "token_type"]
BYTE_LEVEL_KEYS = ["model", "tokens", "merges", "token_type"]


@pytest.mark.parametrize(
    ("make", "key"),
    [(llama_metadata, k) for k in LLAMA_KEYS]
    + [(byte_level_metadata, k) for k in BYTE_LEVEL_KEYS],
)
def test_a_missing_key_is_named(make, key, tmp_path):
    with pytest.raises(ValueError, match=rf"has no tokenizer\.ggml\.{key}, .*GGUF"):
        write_tokenizer(make(**{key: None}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("make", "changes", "error"),
    [
        (byte_level_metadata, {"model": "bert"}, "model is 'bert'; read are 'gpt2'"),
        (byte_level_metadata, {"pre": "new"}, "pre is 'new'.*known are .*qwen2"),
        (byte_level_metadata, {"merges": ["l zz"]}, "'l zz', not two tokens"),
        (byte_level_metadata, {"merges": "l l"}, "merges is a list of strings"),
        (byte_level_metadata, {"tokens": ["a", 1]}, "tokens is a list of strings"),
        (byte_level_metadata, {"tokens": []}, "tokens is a list of strings"),
        (byte_level_metadata, {"tokens": ["a", "a"]}, "'a' twice"),
        (byte_level_metadata, {"token_type": mx.array([1, 2])}, "each of the .*not 2;"),
        (byte_level_metadata, {"eos_token_id": mx.array(9999)}, "is 9999, but the voc"),
        (byte_level_metadata, {"eos_token_id": "x"}, "is 'x', but the vocabulary"),
        (
            byte_level_metadata,
            {"chat_template": mx.array(3)},
            "chat_template is a string",
        ),
        (llama_metadata, {"scores": mx.array([1.0])}, "scores has one number"),
        (llama_metadata, {"unknown_token_id": mx.array(300000)}, "is 300000, but"),
        (
            llama_metadata,
            {"token_type": mx.full((LLAMA_SIZE,), 7)},
            "token_type has 7; types",
        ),
        (
            llama_metadata,
            {"token_type": mx.full((LLAMA_SIZE,), 6)},
            "not a sentencepiece model",
        ),
        (
            llama_metadata,
            {"scores": mx.full((LLAMA_SIZE,), float("nan"))},
            "no finite number",
        ),
    ],
)
def test_broken_metadata_is_refused(make, changes, error, tmp_path):
    with pytest.raises(ValueError, match=rf"^\[(gguf|load_tokenizer)\] .*{error}"):
        write_tokenizer(make(**changes), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model_type", [None, "llama"])
def test_transformers_reads_the_files_alike(metadata, model_type, tmp_path):
    transformers = pytest.importorskip("transformers")
    ours = rebuild(metadata, tmp_path)
    if model_type:
        config = json.dumps({"model_type": model_type})
        (tmp_path / "config.json").write_text(config)
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    for text in TEXTS:
        assert ours.encode(text) == theirs.encode(text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(theirs.encode(text))
    if ours.has_chat_template:
        chat = [{"role": "user", "content": "Hello world"}]
        want = theirs.apply_chat_template(chat, add_generation_prompt=True)
        assert ours.apply_chat_template(chat) == want["input_ids"]


def metadata_of_model(path):
    """What a GGUF file of a sentencepiece model says."""
    from sentencepiece import SentencePieceProcessor

    model = SentencePieceProcessor(model_file=str(path))
    pieces, prefix = proto.read_model(Path(path).read_bytes())
    count = model.vocab_size()
    types = [
        pieces[i][1]
        if i in pieces
        else proto.BYTE
        if model.is_byte(i)
        else proto.NORMAL
        for i in range(count)
    ]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [model.id_to_piece(i) for i in range(count)],
        "tokenizer.ggml.scores": mx.array([model.get_score(i) for i in range(count)]),
        "tokenizer.ggml.token_type": mx.array(types),
        "tokenizer.ggml.bos_token_id": mx.array(model.piece_to_id("<s>")),
        "tokenizer.ggml.add_space_prefix": mx.array(prefix),
    }


@requires_shared
@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("llama3", "ggml-vocab/ggml-vocab-llama-bpe.gguf"),
        ("llama2", "ggml-vocab/ggml-vocab-llama-spm.gguf"),
        ("gemma3", "gemma/gemma3.tokenizer.model"),
        ("mistral_v3", "mistral/mistral_instruct_tokenizer_240323.model.v3"),
    ],
)
def test_rebuilt_vocabularies_encode_as_expected(name, file, tmp_path):
    path = TOKENIZERS / file
    if path.suffix == ".gguf":
        metadata = mx.load(str(path), return_metadata=True)[1]
    else:
        metadata = metadata_of_model(path)
    tokenizer = rebuild(metadata, tmp_path)
    expected = expected_encodings()
    for text, ids in zip(expected["texts"], expected[name]["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text
        assert tokenizer.decode(ids) == text
