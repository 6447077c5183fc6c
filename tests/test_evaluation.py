"""Perplexity, divergence and the sweep: true numbers, of the bits convert writes."""

import importlib.util
import io
import json
import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest
from gguf_writer import write_gguf
from mlx.utils import tree_flatten
from shared_data import SHARED, requires_shared
from test_convert import EVEN, assert_same_tensors, logits_of
from test_gguf import as_llama_cpp, gguf_config
from test_recipes import run
from tiny_checkpoint import CASES, config_of, token_ids, write_checkpoint
from tiny_tokenizers import byte_level_metadata, llama_metadata

from mlx_glu import blas, convert, hub, load, load_model
from mlx_glu.checkpoints.checkpoint import open_checkpoint
from mlx_glu.evaluation import scores as scores_module
from mlx_glu.evaluation.measures import Comparison, Mean, Perplexity
from mlx_glu.evaluation.plot import Point, draw
from mlx_glu.evaluation.scores import Scores, log_softmax, score
from mlx_glu.evaluation.subject import Subject
from mlx_glu.evaluation.sweep import default_settings, plan_settings
from mlx_glu.evaluation.windows import SAMPLE, batches, split
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer
from mlx_glu.weights import examine

WINDOWS = [row.tolist() for row in token_ids()] + [token_ids()[0, :7].tolist()]


def plain(model, windows):
    """Log-probabilities of every prediction, and what was to be predicted."""
    logs, targets = [], []
    for window in windows:
        logits = np.array(model(mx.array([window]))[0]).astype(np.float64)[:-1]
        logs.append(logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True)))
        targets += window[1:]
    return np.concatenate(logs), np.array(targets)


@pytest.fixture(scope="module", params=["gemma2", "phi3"])
def pair(request, tmp_path_factory):
    """A model with windows and soft caps, or with longrope, and the same in 3 bits."""
    folder = tmp_path_factory.mktemp("pair")
    changes = {**EVEN, "head_dim": 16} if request.param == "phi3" else EVEN
    source = write_checkpoint(folder / "hf", CASES[request.param] | changes)
    convert(source, folder / "q", quantize=True, q_bits=3)
    return load_model(source), load_model(folder / "q")


#: Logits at once: all, some positions of a batch, one, in one piece or row by row.
BUDGETS = [(1 << 25, 1 << 22), (131 * 2 * 7, 131 * 3), (1, 1)]


@pytest.mark.parametrize("budget", BUDGETS, ids=["whole", "slices", "rows"])
@pytest.mark.parametrize("batch_size", [1, 8])
def test_numbers_are_those_of_plain_numpy(budget, batch_size, pair, monkeypatch):
    monkeypatch.setattr(scores_module, "AT_ONCE", budget[0])
    monkeypatch.setattr(scores_module, "DOUBLE_AT_ONCE", budget[1])
    done = []
    found = score(pair, WINDOWS, batch_size=batch_size, progress=done.append)
    (a, targets), (b, _) = (plain(model, WINDOWS) for model in pair)
    at = np.arange(targets.size)
    assert sum(done) == targets.size == 39 + 39 + 6
    # Slices of a batch come in another order.
    for own, expected in zip(found.losses, (a, b), strict=True):
        assert np.sort(own) == pytest.approx(np.sort(-expected[at, targets]), abs=2e-5)
    kl = (np.exp(a) * (a - b)).sum(axis=-1)
    assert kl.mean() > 1e-3
    assert np.sort(found.kl) == pytest.approx(np.sort(kl), abs=2e-5)
    compared = Comparison.of(found)
    assert compared.same_top.value == (a.argmax(-1) == b.argmax(-1)).mean()
    losses = [-x[at, targets] for x in (a, b)]
    values = [np.exp(loss.mean()) for loss in losses]
    assert compared.a.value == pytest.approx(values[0], rel=1e-6)
    assert compared.difference.value == pytest.approx(values[1] - values[0], rel=1e-3)
    assert compared.kl.value == pytest.approx(kl.mean(), rel=1e-4)
    assert compared.kl_median == pytest.approx(np.median(kl), rel=1e-3)
    assert compared.kl_max == pytest.approx(kl.max(), rel=1e-3)
    spread = losses[0].std(ddof=1) / targets.size**0.5
    assert compared.a.error == pytest.approx(values[0] * spread, rel=1e-4)
    paired = values[1] * losses[1] - values[0] * losses[0]
    error = paired.std(ddof=1) / targets.size**0.5
    assert compared.difference.error == pytest.approx(error, rel=1e-3)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_large_vocabulary_needs_little_memory(tmp_path):
    """2 windows of 512 tokens and 262144 words: 3 GB of logits and their float64."""
    sizes = {"vocab_size": 262_144, "hidden_size": 32, "num_hidden_layers": 1}
    config = config_of("llama", **sizes, tie_word_embeddings=True)
    source = write_checkpoint(tmp_path / "hf", config)
    command = [sys.executable, "-c", LARGE, source]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000


LARGE = """
import sys
from mlx_glu import load_model
from mlx_glu.evaluation.scores import score
model = load_model(sys.argv[1])
score([model], [list(range(512))] * 2)
status = open("/proc/self/status").read()
print(int(status.split("VmHWM:")[1].split()[0]) // 1024)
"""


def test_a_model_loses_nothing_against_itself(pair):
    found = Comparison.of(score([pair[0], pair[0]], WINDOWS))
    assert found.difference == found.kl == Mean(0.0, 0.0)
    assert found.kl_max == 0
    assert found.same_top == Mean(1.0, 0.0)


def test_log_softmax_is_float64():
    """A float32 sum of 200000 terms would be off by 1e-4; huge logits by more."""
    logits = np.full((2, 200_000), 1000.0, dtype=np.float32)
    logits[1, 7] = 1020.0
    expected = -np.log(200_000)
    assert log_softmax(logits)[0] == pytest.approx(expected, abs=1e-12)
    rest = 199_999 * np.exp(-20.0)
    assert log_softmax(logits)[1, 7] == pytest.approx(-np.log1p(rest), abs=1e-12)


def test_standard_errors_are_those_of_repeated_texts():
    """Of 4000 texts drawn anew, the spread of what is reported is the error."""
    random = np.random.default_rng(1)
    losses_a = random.exponential(2.0, (4000, 400))
    losses_b = losses_a + random.normal(0.05, 0.1, losses_a.shape)
    seconds, kl = [1.0, 1.0], np.zeros(400)
    found = [
        Comparison.of(Scores([a, b], kl, kl == 0, seconds))
        for a, b in zip(losses_a, losses_b, strict=True)
    ]
    for pick in (lambda c: c.a[:2], lambda c: c.difference):
        values, errors = np.array([pick(c) for c in found]).T
        assert np.median(errors) == pytest.approx(values.std(), rel=0.1)
    assert np.mean([c.difference.error for c in found]) < found[0].a.error / 3


def test_broken_logits_are_refused(tmp_path):
    source = write_checkpoint(tmp_path / "hf", config_of("llama"))
    model = load_model(source)
    model.model.norm.weight = model.model.norm.weight * mx.nan
    with pytest.raises(ValueError, match=r"no finite numbers; look .* --check"):
        score([model], WINDOWS)


def test_windows_follow_each_other():
    ids = list(range(100))
    assert split(ids, 30) == [ids[:30], ids[30:60], ids[60:90], ids[90:]]
    assert split(ids, 33) == [ids[:33], ids[33:66], ids[66:99]]  # one is no window
    assert split(ids, 1000) == [ids]
    assert split(ids, 30, 2) == [ids[:30], ids[30:60]]
    drawn = split(ids, 10, 3, seed=5)
    assert drawn == split(ids, 10, 3, seed=5) != split(ids, 10, 3, seed=6)
    assert all(window in split(ids, 10) for window in drawn)
    found = list(batches(split(ids, 30), 2))
    assert [b.shape for b in found] == [(2, 30), (1, 30), (1, 10)]
    assert np.concatenate([b.reshape(-1) for b in found]).tolist() == ids


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([], 512), "a text of 0 tokens .* leaves 0 to predict"),
        (([1, 2], 512), "a text of 2 tokens .* leaves 1 to predict, and 2 are"),
        (([1, 2, 3], 2), "3 tokens in windows of 2 leaves 1 to predict"),
        ((range(99), 2, 1), "99 tokens in windows of 2 leaves 1 to predict"),
        (([1, 2, 3], 1), "at least 2 tokens"),
        (([1, 2, 3], 2, 0), "0 windows"),
        (([1, 2, 3], 2, -2), "-2 windows"),
    ],
)
def test_impossible_windows(arguments, words):
    with pytest.raises(ValueError, match=words):
        split(*arguments)


def test_the_sample_is_short_plain_text():
    text = SAMPLE.read_text("utf-8")
    assert text.startswith("It was on a dreary night of November")
    assert 8_000 < len(text) < 12_000


SETTINGS = ["4:64", "3:32", "mixed_2_6", "mxfp4", "4,ffn=3:32,*.1.*=float,head=8"]


@pytest.mark.parametrize("stored", ["float32", "bfloat16", "packed"])
@pytest.mark.parametrize("setting", SETTINGS)
def test_the_sweep_packs_what_convert_writes(setting, stored, tmp_path):
    """Every tensor bit for bit, and the logits of the folder."""
    config = config_of("qwen3", **EVEN, tie_word_embeddings=False)
    dtype = "float32" if stored == "packed" else stored
    source = write_checkpoint(tmp_path / "hf", config, dtype=dtype)
    if stored == "packed":
        source = tmp_path / "source"
        convert(tmp_path / "hf", source, quantize=True)
    write_tokenizer(byte_level_metadata(), source)
    flags = {
        "mixed_2_6": {"quant_predicate": "mixed_2_6"},
        "mxfp4": {"q_mode": "mxfp4"},
        "3:32": {"q_bits": 3, "q_group_size": 32},
        "4:64": {},
    }.get(setting)
    if flags is None:
        flags = {"q_overrides": {"ffn": "3:32", "*.1.*": "float", "head": "8"}}
    report = convert(source, tmp_path / "mlx", quantize=True, **flags)
    (planned,) = plan_settings(Subject.open(source).weights, [setting])
    assert planned.plan.bits_per_weight == report.bits_per_weight
    (tmp_path / "swept").mkdir()
    from mlx_glu.conversion.plan import Converted

    made = Converted(planned.plan)
    arrays = {name: made.load(name) for name in made.tensors}
    mx.save_safetensors(str(tmp_path / "swept" / "model.safetensors"), arrays)
    assert_same_tensors(tmp_path / "swept", tmp_path / "mlx")
    ids = mx.array(token_ids())
    assert np.array_equal(np.array(planned.load()(ids)), logits_of(tmp_path / "mlx"))


def test_default_settings_fit_the_model(tmp_path):
    for size, expected in ((96, "4:32"), (128, "4:64")):
        config = config_of("llama", **{**EVEN, "hidden_size": size})
        source = write_checkpoint(tmp_path / str(size), config)
        write_tokenizer(byte_level_metadata(), source)
        weights = Subject.open(source).weights
        names = default_settings(weights)
        assert expected in names
        settings = plan_settings(weights, names)
        assert len(settings) == 13
        assert not any(setting.plan.kept_float for setting in settings)


# The commands.


def write_model(folder, metadata, seed=0, **changes):
    """A LLaMA of random weights with a tokenizer."""
    size = len(metadata["tokenizer.ggml.tokens"])
    changes = {**EVEN, **changes}
    config = config_of("llama", vocab_size=size, eos_token_id=0, **changes)
    write_checkpoint(folder, config)
    write_tokenizer(metadata, folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_model(tmp_path_factory.mktemp("model") / "tiny", byte_level_metadata())


@pytest.fixture(scope="module")
def packed(model):
    folder = model.parent / "packed"
    convert(model, folder, quantize=True)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    file = tmp_path_factory.mktemp("text") / "text.txt"
    file.write_text(SAMPLE.read_text("utf-8")[:600], "utf-8")
    return file


def test_perplexity_command(model, text, capsys, monkeypatch):
    words = ["perplexity", "--model", model, "--sequence-length", 128]
    code, out, err = run(capsys, *words, "--text", text)
    assert code == 0, err
    assert out.count("\n") == 1
    code, line, _ = run(capsys, *words, "--text", text, "--json", "--batch-size", 1)
    found = json.loads(line)
    loaded, tokenizer = load(model)
    windows = split(tokenizer.encode(text.read_text("utf-8")), 128)
    logs, targets = plain(loaded, windows)
    loss = -logs[np.arange(targets.size), targets].mean()
    assert found["perplexity"] == pytest.approx(np.exp(loss), rel=1e-6)
    assert found["loss"] == pytest.approx(loss, abs=1e-6)
    assert found["tokens"] == targets.size
    assert found["bits_per_weight"] == 32
    said = f"perplexity {found['perplexity']:.3f} ± {found['perplexity_error']:.3f}, "
    assert out.startswith(said)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.read_bytes())))
    code, line, _ = run(capsys, *words, "--text", "-", "--json", "--batch-size", 1)
    assert json.loads(line)["loss"] == found["loss"]
    code, line, err = run(capsys, *words, "--text", text, "--json", "--num-samples", 2)
    assert json.loads(line)["tokens"] == 2 * 127
    assert f"note: 2 of {len(windows)} windows" in err


def test_compare_command(model, packed, text, capsys):
    words = ["compare", model, packed, "--text", text]
    code, out, err = run(capsys, *words)
    assert code == 0, err
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][:3] == ["model", "bits", "per"]
    assert [line[0] for line in lines[1:3]] == ["A", "B"]
    assert lines[2][1] == str(packed)
    code, out, _ = run(capsys, *words, "--json")
    a, b = map(json.loads, out.splitlines())
    assert (a["model"], b["model"]) == (str(model), str(packed))
    assert a["bits_per_weight"] == 32
    assert 4 < b["bits_per_weight"] < 6
    difference = b["perplexity"] - a["perplexity"]
    assert b["difference"] == pytest.approx(difference, abs=1e-9)
    assert 0 < b["kl_median"] < b["kl_p99"] <= b["kl_max"]
    assert 0 < b["same_top"] < 1
    code, out, _ = run(capsys, "compare", model, model, "--text", text)
    assert "same top    100.0% ± 0.0% of tokens" in out
    assert "KL(A || B)  mean 0 ± 0, median 0" in out


def test_sweep_is_the_comparison_with_the_folder(model, packed, text, tmp_path, capsys):
    """Row by row what compare says of the folder that convert wrote."""
    words = ["compare", model, "--sweep", "--text", text, "--json"]
    code, out, err = run(capsys, *words, "--settings", "4", "mxfp8", "4:64,head=8")
    assert code == 0, err
    source, *rows = map(json.loads, out.splitlines())
    assert source["setting"] == "as it is"
    assert source["bits_per_weight"] == 32
    assert [row["setting"] for row in rows] == ["4", "mxfp8", "4:64,head=8"]
    code, out, _ = run(capsys, "compare", model, packed, "--text", text, "--json")
    a, b = map(json.loads, out.splitlines())
    assert source["perplexity"] == a["perplexity"]
    for key in ("kl", "kl_max", "difference", "same_top", "bits_per_weight", "nbytes"):
        assert rows[0][key] == b[key], key
    assert rows[1]["kl"] < rows[0]["kl"]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_sweep_table_and_plot(suffix, model, text, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    file = tmp_path / f"plot.{suffix}"
    words = ["compare", model, "--sweep", "--text", text, "--plot", file]
    settings = ["8:64", "4:64", "mixed_3_6", "nvfp4", "4:64,head=8"]
    code, out, err = run(capsys, *words, "--settings", *settings)
    assert code == 0, err
    names = [line[:11].strip() for line in out.splitlines()]
    assert names == ["setting", "as it is", *settings]
    assert len({len(line) for line in out.splitlines()[2:]}) == 1
    magic = {"png": b"\x89PNG", "svg": b"<?xml"}[suffix]
    content = file.read_bytes()
    assert content.startswith(magic)
    if suffix == "svg":  # every name in both panels
        for name in settings:
            assert content.count(f"<!-- {name} -->".encode()) == 2


def test_memory_counts_a_gguf_file_as_it_is_read(tmp_path):
    config = gguf_config("llama")
    file = write_gguf(tmp_path / "a.gguf", *as_llama_cpp(config, "Q8_0"))
    checkpoint = open_checkpoint(file)
    subject = Subject("a", examine(checkpoint), None)
    arrays = tree_flatten(load_model(file, as_stored=True).parameters())
    assert subject.nbytes == file.stat().st_size
    assert subject.read_nbytes == sum(array.nbytes for _, array in arrays)
    assert subject.read_nbytes != subject.nbytes


@pytest.mark.parametrize("words", ["{a} {b}", "{a} --sweep --settings 4"])
def test_too_little_memory_is_said(words, model, packed, text, capsys, monkeypatch):
    monkeypatch.setattr("mlx_glu.evaluation.subject.free_memory", lambda: 1000)
    words = words.format(a=model, b=packed).split()
    code, out, err = run(capsys, "compare", *words, "--text", text)
    assert (code, out) == (2, "")
    assert "are free; take mlx-glu perplexity of each" in err


def test_sweep_says_once_what_stays_float(text, tmp_path, capsys):
    odd = write_model(tmp_path / "odd", byte_level_metadata(), intermediate_size=176)
    words = ["compare", odd, "--sweep", "--text", text, "--num-samples", 1]
    code, _, err = run(capsys, *words, "--settings", "4:32", "3:32", "nvfp4")
    assert code == 0, err
    notes = [line for line in err.splitlines() if line.startswith("note: ")]
    assert len([line for line in notes if "stay float" in line]) == 1, err
    assert "note: 4:32, 3:32: 3 layers such as" in err


def test_plot_names_what_is_off_its_scale():
    pytest.importorskip("matplotlib")
    points = [
        Point("2:64", "affine", 2.5, (5e6, 1e5), (12.0, 0.1)),
        Point("4:64", "affine", 4.5, (12.0, 0.4), (0.1, 0.01)),
        Point("4:32", "affine", 4.5, (12.0, 0.4), (0.1, 0.01)),  # in the same place
    ]
    image = draw(points, 10.0, "title", 10**8, "svg").decode()
    assert "<!-- above the scale: 2:64: 5e+06 -->" in image
    assert image.count("<!-- 2:64 -->") == 1
    assert image.count("<!-- 4:64 -->") == image.count("<!-- 4:32 -->") == 2


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("perplexity --model {model} --text /nowhere", "/nowhere"),
        ("perplexity --model {model} --text {binary}", "is not UTF-8 at byte 0"),
        (
            "perplexity --model {model} --text {empty}",
            "0 tokens in windows of 512 leaves 0",
        ),
        ("perplexity --model /nowhere", "/nowhere does not exist"),
        ("perplexity --model=", "does not exist; give a folder"),
        ("perplexity --model {model} --text=", "--text is empty; give a file"),
        ("perplexity --sequence-length 1", "--sequence-length must be at least 2"),
        ("perplexity --num-samples 0", "--num-samples must be at least 1, or -1"),
        ("perplexity --batch-size 0", "--batch-size must be at least 1"),
        ("perplexity --seed -1", "--seed must be at least 0"),
        ("compare {model}", "two models can be compared, 1 were given; give --sweep"),
        ("compare {model} {model} --sweep", "--sweep is of one model; 2 were given"),
        ("compare {model} {model} --settings 4", "--settings has no effect without"),
        ("compare {model} {model} --plot x.png", "--plot has no effect without"),
        ("compare {model} --sweep --plot x.gif", "must end in .png or .svg"),
        ("compare {model} --sweep --plot /nowhere/x.svg", "cannot be written"),
        ("compare {model} --sweep --settings 7", "--settings '7': [quantize] affine"),
        ("compare {model} --sweep --settings float", "'float' packs nothing"),
        ("compare {model} --sweep --settings 4,zz=4", "--settings '4,zz=4': "),
        ("compare {model} --sweep --settings 4,zz", "'zz' must be PATTERN=FORMAT"),
        ("compare {model} {other}", "has 269 tokens and"),
        ("compare {model} {same}", "read the text as other tokens"),
    ],
)
def test_mistakes(words, expected, model, text, tmp_path, capsys):
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    (tmp_path / "empty").write_bytes(b"")
    other = write_model(tmp_path / "other", llama_metadata())
    with_bos = byte_level_metadata(add_bos_token=mx.array(True))
    same = write_model(tmp_path / "same", with_bos)
    if "--plot" in words and importlib.util.find_spec("matplotlib") is None:
        pytest.skip("needs matplotlib")
    paths = {name: tmp_path / name for name in ("binary", "empty")}
    paths |= {"model": model, "other": other, "same": same}
    words = [word.format(**paths) for word in words.split()]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith("mlx-glu: error: ")
    assert expected in err


# Real models.


@requires_shared
@pytest.mark.slow
def test_perplexity_of_stories_is_hugging_faces():
    """200 documents, each with its BOS and cut at 512 tokens."""
    model, tokenizer = load(SHARED / "stories260K")
    corpus = SHARED / "corpora" / "tinystories_sample_2M.txt"
    documents = corpus.read_text("utf-8", errors="replace").split("<|endoftext|>")[:200]
    windows = [tokenizer.encode(document.strip())[:512] for document in documents]
    found = score([model], sorted(windows, key=len))
    perplexity = Perplexity.of(found.losses[0], found.seconds[0])
    assert perplexity.value == pytest.approx(4.3838, abs=5e-5)


@requires_shared
def test_perplexity_of_smollm2_is_hugging_faces(capsys):
    """Hugging Face in float32, 511 predictions, on the weights of the GGUF file."""
    folder = hub.default_folder()
    if not (hub.cache_folder() / hub.GGUF).exists() or not folder.exists():
        pytest.skip("the default model is not in the cache, or of other weights")
    if not blas.is_fast():
        pytest.skip("takes minutes with MLX's own BLAS; install an OpenBLAS")
    text = SHARED / "corpora" / "wikitext2-test.tokens.txt"
    words = ["perplexity", "--model", folder, "--text", text]
    code, out, err = run(capsys, *words, "--num-samples", 1, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["tokens"] == 511
    assert found["perplexity"] == pytest.approx(16.980, abs=1e-3)
