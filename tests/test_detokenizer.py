from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import byte_level_metadata, llama_metadata

from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.tokenizer.detokenizer import StreamingDetokenizer
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

ROCKET = "🚀"


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """Byte-level BPE; LLaMA's BPE in both file formats."""
    loaded = {}
    for name, metadata in (
        ("bytes", byte_level_metadata()),
        ("llama", llama_metadata()),
    ):
        folder = tmp_path_factory.mktemp(name)
        write_tokenizer(metadata, folder)
        loaded[name] = load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    loaded["sentencepiece"] = load_tokenizer(folder)
    return SimpleNamespace(**loaded, all=loaded)


def stream(tokenizer, ids, **options):
    detokenizer, segments = tokenizer.detokenizer(**options), []
    for token in ids:
        detokenizer.add_token(token)
        segments.append(detokenizer.last_segment)
    detokenizer.finalize()
    segments.append(detokenizer.last_segment)
    assert detokenizer.text == "".join(segments)
    return segments


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_segments_join_to_decode_of_random_ids(kinds, data):
    for tokenizer in kinds.all.values():
        # Past the vocabulary too: models have rows without a token.
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size + 3), max_size=30))
        whole = tokenizer.decode(ids)
        segments = stream(tokenizer, ids)
        assert "".join(segments) == whole
        assert sum(s.count("\ufffd") for s in segments) == whole.count("\ufffd")
        skipped = tokenizer.decode(ids, skip_special_tokens=True)
        assert "".join(stream(tokenizer, ids, skip_special_tokens=True)) == skipped


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=30))
def test_text_survives_encode_and_stream(kinds, text):
    for name, tokenizer in kinds.all.items():
        # sentencepiece cannot tell its own mark from a space.
        want = text if name == "bytes" else text.replace("\u2581", " ")
        ids = tokenizer.encode(text, add_special_tokens=False)
        segments = stream(tokenizer, ids)
        assert "".join(segments) == want
        if "\ufffd" not in text:
            assert not any("\ufffd" in segment for segment in segments)


@settings(max_examples=100, deadline=None)
@given(
    text=st.text(
        st.characters(exclude_characters="\ufffd", codec="utf-8"), max_size=20
    ),
    cut=st.integers(0, 40),
)
def test_a_continuation_is_what_decode_adds_to_the_prompt(kinds, text, cut):
    for tokenizer in kinds.all.values():
        ids = tokenizer.encode("Hello" + text)
        prompt, rest = ids[: cut + 2], ids[cut + 2 :]
        before = tokenizer.decode(prompt, skip_special_tokens=True)
        whole = tokenizer.decode(ids, skip_special_tokens=True)
        # A character cut in two belongs to the continuation.
        before = before.rstrip("\ufffd") if not whole.startswith(before) else before
        assert (
            "".join(stream(tokenizer, rest, prompt_ids=prompt)) == whole[len(before) :]
        )


@pytest.mark.parametrize("name", ["bytes", "llama", "sentencepiece"])
def test_a_character_comes_out_whole_and_at_once(kinds, name):
    tokenizer = kinds.all[name]
    ids = [tokenizer.token_to_id(t) for t in rocket_tokens(name)]
    assert tokenizer.decode(ids) == ROCKET
    assert stream(tokenizer, [*ids, *ids]) == ["", "", "", ROCKET] * 2 + [""]
    assert stream(tokenizer, ids[:3]) == ["", "", "", "\ufffd"]
    word = tokenizer.encode("w", add_special_tokens=False)[-1]
    assert "".join(stream(tokenizer, [*ids[:2], word])).startswith("\ufffd")


def rocket_tokens(name):
    data = ROCKET.encode()
    return ["ð", "Ł", "ļ", "Ģ"] if name == "bytes" else [f"<0x{b:02X}>" for b in data]


@pytest.mark.parametrize("name", ["llama", "sentencepiece"])
def test_only_text_of_its_own_loses_its_first_space(kinds, name):
    tokenizer = kinds.all[name]
    hello, world = (tokenizer.token_to_id(t) for t in ("▁Hello", "▁world"))
    assert stream(tokenizer, [hello, world]) == ["Hello", " world", ""]
    assert stream(tokenizer, [world], prompt_ids=[1, hello]) == [" world", ""]
    assert stream(tokenizer, [world], prompt_ids=[1]) == ["world", ""]
    assert stream(tokenizer, [1, world]) == ["<s>", " world", ""]
    assert tokenizer.decode([1, hello]) == "<s> Hello"


def test_each_token_is_looked_up_once():
    seen = []
    detokenizer = StreamingDetokenizer(lambda i: seen.append(i) or b"\xf0")
    for token in range(5000):
        detokenizer.add_token(token)
    assert seen == list(range(5000))
    assert detokenizer.last_segment == "\ufffd" * 4999
