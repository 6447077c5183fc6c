"""Generated text: against recorded continuations, and by chunks, caches and stops."""

import dataclasses
import json
import math
from types import SimpleNamespace

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shared_data import SHARED, requires_shared
from tiny_checkpoint import FAMILIES, config_of, write_checkpoint
from tiny_tokenizers import llama_metadata

from mlx_glu import GenerationResponse, generate, load, load_model, stream_generate
from mlx_glu.cache import RotatingKVCache
from mlx_glu.generation import StopStrings, generate_step
from mlx_glu.sample import Sampler, Sampling
from mlx_glu.tokenizer import load_tokenizer
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

STORIES = SHARED / "stories260K"


@pytest.fixture(scope="module")
def stories():
    model, tokenizer = load(STORIES)
    reference = json.loads((STORIES / "reference.json").read_text("utf-8"))
    return SimpleNamespace(model=model, tokenizer=tokenizer, reference=reference)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A LLaMA of random weights that writes sentencepiece tokens."""
    folder, metadata = tmp_path_factory.mktemp("tiny"), llama_metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    write_checkpoint(folder, config_of("llama", vocab_size=size))
    write_tokenizer(metadata, folder)
    model, tokenizer = load(folder)
    return SimpleNamespace(model=model, tokenizer=tokenizer)


def ids_of(model, prompt, max_tokens=30, **options):
    steps = generate_step(
        prompt, model, max_tokens=max_tokens, sampler=Sampler(Sampling()), **options
    )
    return [token for token, _ in steps]


NO_HIT = ["Hello", " world", " ", "a", " ", "a", "a", "b"]
LATE = ["Hello", " world", " ", "", "a ", "", "", ""]


class Script:
    """A model whose logits are made up: it says the tokens it was given."""

    def __init__(self, tokenizer, tokens):
        self.config = SimpleNamespace(vocab_size=tokenizer.vocab_size, rope={})
        self.tokens, self.offset = tokens, 0

    def make_cache(self):
        return []

    def __call__(self, inputs, cache, *, last_only):
        row = np.zeros((1, 1, self.config.vocab_size), np.float32)
        row[..., self.tokens[min(self.offset, len(self.tokens) - 1)]] = 9
        self.offset += 1
        return mx.array(row)


def say(tokenizer, tokens, **options):
    """The responses of a model that says these tokens."""
    ids = [tokenizer.token_to_id(t) for t in tokens]
    assert None not in ids, tokens
    prompt = options.pop("prompt", [5])
    return list(stream_generate(Script(tokenizer, ids), tokenizer, prompt, **options))


def text_of(responses):
    return "".join(r.text for r in responses)


@requires_shared
@pytest.mark.parametrize("size", [2048, 7])
def test_the_recorded_continuations(stories, size):
    assert len(stories.reference["greedy"]) == 5
    for case in stories.reference["greedy"]:
        prompt = stories.tokenizer.encode(case["prompt"])
        assert case["ids"][: len(prompt)] == prompt
        rest = case["ids"][len(prompt) :][: None if size == 2048 else 20]
        steps = list(
            stream_generate(
                stories.model,
                stories.tokenizer,
                case["prompt"],
                max_tokens=len(rest),
                prefill_step_size=size,
            )
        )
        assert [s.token for s in steps] == rest
        assert case["text"].startswith(case["prompt"] + text_of(steps))
        if size == 2048:
            assert case["prompt"] + text_of(steps) == case["text"]


@requires_shared
def test_the_recorded_story(stories):
    """llama2.c's own 200 tokens."""
    prompt, story = "Once upon a time", stories.reference["expected_200"]
    text = generate(stories.model, stories.tokenizer, prompt, max_tokens=200)
    assert (prompt + text).startswith(story)


@pytest.mark.parametrize("model_type", FAMILIES)
def test_caches_and_chunks_change_no_token(model_type, tmp_path):
    """30 tokens past windows of 8 equal those of computing all anew each time."""
    model = load_model(write_checkpoint(tmp_path, config_of(model_type)))
    if FAMILIES[model_type].get("sliding_window"):
        assert any(isinstance(c, RotatingKVCache) for c in model.make_cache())
    prompt = np.random.default_rng(5).integers(3, 131, 20).tolist()
    tokens = list(prompt)
    for _ in range(30):
        logits = model(mx.array([tokens]), last_only=True)
        tokens.append(int(mx.argmax(logits[0, -1])))
    for size in (2048, 7, 8, 1):
        assert ids_of(model, prompt, prefill_step_size=size) == tokens[len(prompt) :]


@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma3_text"])
@pytest.mark.parametrize("count", [1, 6])
def test_a_prompt_cache_continues(model_type, count, tmp_path):
    """What a second call generates is what one long prompt would give."""
    model = load_model(write_checkpoint(tmp_path, config_of(model_type)))
    first, second = [5, 6, 7, 8, 9], [40, 41, 42]
    cache = model.make_cache()
    said = ids_of(model, first, count, prompt_cache=cache)
    known = (first + said)[: cache[0].offset]
    # The last token was handed out and not read.
    assert known == first + said[:-1]
    ours = ids_of(model, [said[-1], *second], prompt_cache=cache)
    assert ours == ids_of(model, [*first, *said, *second])


def test_the_repetition_penalty_sees_what_is_cached(tiny):
    """With ``cached``, a call over a cache samples as one long prompt would."""
    rules = Sampling(repetition_penalty=3.0)

    def tokens(prompt, **options):
        steps = stream_generate(
            tiny.model,
            tiny.tokenizer,
            prompt,
            sampling=rules,
            max_tokens=12,
            **options,
        )
        return [step.token for step in steps]

    prompt = tiny.tokenizer.encode("Hello world")
    first = [*prompt, *tokens(prompt)]
    whole = tokens([*first, 270])
    cache = tiny.model.make_cache()
    tiny.model(mx.array([first]), cache)
    assert tokens([270], prompt_cache=cache, cached=first) == whole
    tiny.model(mx.array([first]), cache := tiny.model.make_cache())
    assert tokens([270], prompt_cache=cache) != whole


def test_fields_are_mlx_lms():
    theirs = pytest.importorskip("mlx_lm.generate").GenerationResponse
    names = [f.name for f in dataclasses.fields(theirs)]
    assert [f.name for f in dataclasses.fields(GenerationResponse)] == names


def test_fields_mean_what_they_say(tiny):
    prompt = tiny.tokenizer.encode("Hello world")
    mx.reset_peak_memory()
    steps = list(stream_generate(tiny.model, tiny.tokenizer, prompt, max_tokens=6))
    assert [s.generation_tokens for s in steps] == [1, 2, 3, 4, 5, 6]
    assert [s.finish_reason for s in steps] == [None] * 5 + ["length"]
    assert [s.token for s in steps] == ids_of(tiny.model, prompt, 6)
    for step in steps:
        assert step.prompt_tokens == len(prompt)
        assert step.from_draft is False
        assert step.prompt_tps > 0
        assert (step.generation_tps > 0) == (step.generation_tokens > 1)
        assert 0 < step.peak_memory < 4
        probs = np.exp(np.array(step.logprobs).astype(np.float64))
        assert probs.shape == (tiny.model.config.vocab_size,)
        assert math.isclose(probs.sum(), 1, abs_tol=1e-5)
        assert int(mx.argmax(step.logprobs)) == step.token


def test_text_is_continued_and_ids_start_a_text(tiny):
    """As of a chat template: sentencepiece's first space is no part of an answer."""
    words, tokenizer = ["▁world", "▁Hello"], tiny.tokenizer
    ids = tokenizer.encode("Hello")
    assert text_of(say(tokenizer, words, prompt="Hello", max_tokens=2)).startswith(" w")
    assert text_of(say(tokenizer, words, prompt=ids, max_tokens=2)) == "world Hello"
    prompt = mx.array(ids)
    assert text_of(say(tokenizer, words, prompt=prompt, max_tokens=2)) == "world Hello"


@pytest.mark.parametrize("max_tokens", [3, 9])
def test_an_end_token_ends(tiny, max_tokens):
    words = ["▁Hello", "▁world", "</s>", "▁Hello"]
    steps = say(tiny.tokenizer, words, max_tokens=max_tokens)
    assert text_of(steps) == "Hello world"
    assert [s.finish_reason for s in steps] == [None, None, "stop"]
    assert steps[-1].token in tiny.tokenizer.eos_token_ids


def test_one_token(tiny):
    steps = say(tiny.tokenizer, ["▁Hello", "▁world"], max_tokens=1)
    assert [(s.text, s.finish_reason) for s in steps] == [("Hello", "length")]


def test_half_a_character_comes_out_at_the_end(tiny):
    steps = say(tiny.tokenizer, ["<0xF0>", "<0x9F>"], max_tokens=2)
    assert [s.text for s in steps] == ["", "\ufffd"]


@pytest.mark.parametrize(
    ("stop", "segments"),
    [
        pytest.param(["wor"], ["Hello", " "], id="inside_a_token"),
        pytest.param("o w", ["Hell", ""], id="a_string_spanning_tokens"),
        pytest.param(["world a"], ["Hello", " ", "", ""], id="spanning_three"),
        pytest.param(["xyz", "w", "o"], ["Hell"], id="several"),
        pytest.param(["", "q"], NO_HIT, id="no_hit"),
        pytest.param(["aab"], LATE, id="late"),
        pytest.param(["Hello"], [""], id="at_the_start"),
    ],
)
def test_stop_strings(tiny, stop, segments):
    words = ["▁Hello", "▁world", "▁", "a", "▁", "a", "a", "b"]
    steps = say(tiny.tokenizer, words, stop=stop, max_tokens=len(words))
    assert [s.finish_reason for s in steps[:-1]] == [None] * (len(steps) - 1)
    assert steps[-1].finish_reason == ("length" if "q" in stop else "stop")
    assert [s.text for s in steps] == segments


def test_a_text_that_ends_gives_up_what_it_held(tiny):
    words = ["▁Hello", "▁wor", "</s>"]
    steps = say(tiny.tokenizer, words, stop=["world"], max_tokens=9)
    assert [s.text for s in steps] == ["Hello", " ", "wor"]
    steps = say(tiny.tokenizer, words, stop=["world"], max_tokens=2)
    assert [s.text for s in steps] == ["Hello", " wor"]


def released(pieces, stop):
    waiting, shown = StopStrings(stop), []
    for i, piece in enumerate(pieces):
        shown.append(waiting.release(piece, last=i == len(pieces) - 1))
        if waiting.hit:
            break
    return shown, waiting.hit


def first_stop(text, stop):
    """Where the text ends: at the stop string that is complete first."""
    for end in range(1, len(text) + 1):
        starts = [end - len(s) for s in stop if s and text[:end].endswith(s)]
        if starts:
            return min(starts)
    return None


PIECES = st.lists(st.text("ab", max_size=4), min_size=1, max_size=12)


@settings(max_examples=400, deadline=None)
@given(pieces=PIECES, stop=st.text("ab", min_size=1, max_size=4))
def test_one_stop_string_is_str_find(pieces, stop):
    text = "".join(pieces)
    shown, hit = released(pieces, [stop])
    assert hit == (stop in text)
    assert "".join(shown) == (text[: text.find(stop)] if hit else text)


@settings(max_examples=400, deadline=None)
@given(pieces=PIECES, stop=st.lists(st.text("ab", max_size=4), max_size=3))
def test_stop_strings_do_not_depend_on_the_pieces(pieces, stop):
    text = "".join(pieces)
    shown, hit = released(pieces, stop)
    cut = first_stop(text, stop)
    assert hit == (cut is not None)
    assert "".join(shown) == text[:cut]
    # No later than needed: text shows once no stop string can begin in it.
    for i in range(1, len(shown) if not hit else 0):
        so_far, out = "".join(pieces[:i]), "".join(shown[:i])
        held = so_far[len(out) :]
        assert not held or any(s.startswith(held) for s in stop)


def test_overlapping_beginnings():
    assert released(["a", "a", "a", "b", "c"], ["aab"])[0] == ["", "", "a", ""]


@pytest.mark.parametrize("length", [1, 7, 8, 30])
def test_progress_begins_at_0_and_ends_at_all(tiny, length):
    calls = []
    steps = stream_generate(
        tiny.model,
        tiny.tokenizer,
        [7] * length,
        max_tokens=2,
        prefill_step_size=7,
        prompt_progress_callback=lambda *call: calls.append(call),
    )
    assert not calls
    next(steps)
    assert [total for _, total in calls] == [length] * len(calls)
    done = [d for d, _ in calls]
    assert done == [*range(0, length, 7), length]
    list(steps)
    assert len(calls) == len(done)


@pytest.mark.parametrize(
    ("prompt", "options", "words"),
    [
        ([], {}, "prompt is empty"),
        ([5, 500], {}, r"the prompt has token 500, .* 0 to 293"),
        ([5, -1], {}, "the prompt has token -1,"),
        ([5], {"max_tokens": 0}, "max_tokens must be at least 1, got 0"),
        ([5], {"prefill_step_size": 0}, "prefill_step_size must be at least 1"),
        ([5], {"sampling": Sampling(logit_bias={294: 1})}, "logit_bias has token 294"),
        ([5], {"sampling": Sampling(logit_bias={-1: 1})}, "logit_bias has token -1"),
    ],
)
def test_bad_arguments(tiny, prompt, options, words):
    with pytest.raises(ValueError, match=words):
        list(stream_generate(tiny.model, tiny.tokenizer, prompt, **options))


def test_forcing_and_banning(tiny):
    rules = Sampling(logit_bias={259: 100.0})
    options = {"max_tokens": 3, "sampling": rules}
    steps = stream_generate(tiny.model, tiny.tokenizer, [5], **options)
    assert [s.token for s in steps] == [259] * 3
    first = ids_of(tiny.model, [5], 1)[0]
    rules = Sampling(logit_bias={first: -math.inf})
    banned = stream_generate(
        tiny.model, tiny.tokenizer, [5], **options | {"sampling": rules}
    )
    assert first not in [s.token for s in banned]


def test_seeds(tiny):
    def tokens(seed):
        rules = Sampling(temp=1.0, seed=seed)
        mx.random.seed(99)
        options = {"sampling": rules, "max_tokens": 12}
        steps = stream_generate(tiny.model, tiny.tokenizer, [5], **options)
        return [s.token for s in steps]

    assert tokens(1) == tokens(1) != tokens(2)


def test_a_load_without_tokenizer(tmp_path):
    """`load_model` needs none, `load` says what it misses."""
    folder = write_checkpoint(tmp_path, config_of("llama"))
    assert len(ids_of(load_model(folder), [1, 2], 3)) == 3
    with pytest.raises(FileNotFoundError, match=r"no tokenizer.json or"):
        load(folder)
    with pytest.raises(FileNotFoundError):
        load_tokenizer(folder)
