"""mlx-lm's models with our feed-forwards: the command, and mlx-lm's own server."""
# ruff: noqa: F811 (a fixture that is imported)

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from shared_data import SHARED, requires_shared
from sim_programs import needs_simulator
from test_cli import MLX_GLU, assert_refused, run, write_model  # noqa: F401
from tiny_checkpoint import BASE, write_checkpoint
from tiny_tokenizers import byte_level_metadata, llama_metadata

from mlx_glu import convert, dispatch, fuse_on_load, hub, simulate
from mlx_glu.fusion.patches import block_of
from mlx_glu.mlx_lm_engine import load, stream_generate, summary
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

mlx_lm = pytest.importorskip("mlx_lm")

ENGINE = ["generate", "--engine", "mlx-lm", "--model"]
#: As README.md has it.
RECIPE = """\
import mlx_glu, mlx_lm.server
with mlx_glu.fuse_on_load(mlx_lm.server): mlx_lm.server.main()
"""
#: The recipe, where the thread that loads and generates is in the simulator.
SIMULATED = f"""\
import threading, mlx_glu, mlx_lm.server
class Thread(threading.Thread):
    def run(self):
        with mlx_glu.simulate():
            super().run()
mlx_lm.server.Thread = Thread
{RECIPE}
ran = mlx_glu.dispatch.counts()
print("fused", sum(n for (_, impl), n in ran.items() if impl == "fused"), flush=True)
"""


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A LLaMA of random weights with ChatML's template."""
    return write_model(tmp_path_factory.mktemp("chat"), byte_level_metadata())


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """One without a chat template."""
    return write_model(tmp_path_factory.mktemp("plain"), llama_metadata())


def write_theirs(folder, name, **changes):
    """A random model of a family of mlx-lm's, saved by its own names."""
    metadata = byte_level_metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    config = {**BASE, "model_type": name, "vocab_size": size, "eos_token_id": 0}
    config |= {"tie_word_embeddings": False, "hidden_size": 144, **changes}
    module = importlib.import_module(f"mlx_lm.models.{name}")
    mx.random.seed(0)
    model = module.Model(module.ModelArgs.from_dict(config))
    write_checkpoint(folder, config, dict(tree_flatten(model.parameters())))
    write_tokenizer(metadata, folder)
    return folder


def answer_of(result):
    code, out, err = result
    assert code == 0, err
    return out


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--ignore-chat-template"],
        ["--system-prompt", "Be brief.", "--prefill-step-size", "4"],
        ["--chat-template-config", '{"add_generation_prompt": false}'],
        ["--temp", "1", "--seed", "5", "--top-p", "0.9", "--top-k", "500"],
        ["--temp", "2", "--seed", "6", "--min-p", "0.01"],
        ["--repetition-penalty", "1.5"],
        ["--repetition-penalty", "1.5", "--repetition-context-size", "2"],
        ["--logit-bias", "40=9", "--logit-bias", "41=8.9", "--stop", "CC"],
    ],
    ids=" ".join,
)
def test_flags_do_what_they_do_on_our_engine(flags, chat, run):
    """The default prompt's answer is one text for both, the statistics too."""
    arguments = ["--model", chat, "-p", "Hello world", "-m", 12, *flags]
    ours, theirs = (
        run("generate", "--engine", engine, *arguments)
        for engine in ("mlx-glu", "mlx-lm")
    )
    assert answer_of(theirs) == answer_of(ours)
    assert len(theirs[1]) > 1 or "--stop" in flags
    (head, note, *stats), (_, *expected) = (
        result[2].splitlines() for result in (theirs, ours)
    )
    assert head == f"{chat}: mlx-lm {mlx_lm.__version__}, as stored"
    assert note.startswith("note: feed-forwards: 3 ")
    assert [line.split(" tokens")[0] for line in stats[:2]] == [
        line.split(" tokens")[0] for line in expected[:2]
    ]
    assert stats[1].split()[-1] == expected[1].split()[-1]
    assert stats[2].startswith("peak_memory: ")


def test_progress_and_speed(plain):
    """A prompt is read in the chunks that were asked for; one token has no speed."""
    model, tokenizer, _ = load(plain)
    seen = []
    steps = stream_generate(
        model,
        tokenizer,
        [5] * 10,
        max_tokens=2,
        prefill_step_size=4,
        prompt_progress_callback=lambda *progress: seen.append(progress),
    )
    first, second = steps
    assert seen == [(0, 10), (4, 10), (8, 10), (9, 10), (10, 10)]
    assert first.generation_tps == 0
    assert second.generation_tps > 0
    assert second.finish_reason == "length"


@requires_shared
def test_a_real_model_tells_the_same_story(run):
    arguments = ["--model", SHARED / "stories260K", "-p", "Once upon a time", "-m", 40]
    ours = answer_of(run("generate", *arguments))
    theirs = answer_of(run("generate", "--engine", "mlx-lm", *arguments))
    assert "there was a little girl" in ours
    # We keep the space before a text that is continued.
    assert theirs.lstrip() == ours.lstrip()


@pytest.mark.network
def test_the_default_model_answers(run):
    if not (hub.default_folder() / "config.json").exists():
        pytest.skip("the default model is not here; `mlx-glu convert` makes it")
    prompt = ["-p", "What is the capital of France?"]
    code, out, err = run("generate", "--engine", "mlx-lm", *prompt)
    assert (code, out) == (0, "The capital of France is Paris.\n")
    assert "feed-forwards: 30 " in err


FAMILIES = {
    "glm": {},  # one projection, gate and up
    "helium": {"attention_bias": False, "mlp_bias": False},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}


@needs_simulator
@pytest.mark.parametrize("name", FAMILIES)
def test_families_that_are_not_ours_run_fused(name, run, tmp_path):
    folder = write_theirs(tmp_path, name, **FAMILIES[name])
    refused = run("generate", "--model", folder, "-p", "x")
    assert_refused(refused, name)
    arguments = [*ENGINE, folder, "-p", "Hello world", "-m", 6]
    before = dispatch.counts()
    stock = answer_of(run(*arguments))
    assert fused_since(before) == 0
    with simulate():
        fused = run(*arguments)
    assert answer_of(fused) == stock
    assert fused_since(before) >= 3 * 6
    # Between experts the activation alone is fused, at any number of rows.
    rows = "1+ rows" if name == "olmoe" else "1-5 rows, glu_mul at 6+ rows"
    assert f"note: feed-forwards: 3 fused at {rows}\n" in fused[2]


def fused_since(before):
    now = dispatch.counts()
    return sum(n - before.get(k, 0) for k, n in now.items() if k[1] == "fused")


@pytest.mark.parametrize("q_bits", [None, 4])
def test_a_cpu_gets_float32(q_bits, chat, run, tmp_path):
    if mx.default_device() == mx.gpu:
        pytest.skip("a GPU runs 16 bits as they are")
    target = tmp_path / "half"
    convert(chat, target, bool(q_bits), q_bits=q_bits, q_group_size=32, dtype="float16")
    stored = mx.load(str(next(target.glob("*.safetensors"))))
    assert mx.float16 in {a.dtype for a in stored.values()}
    loaded = load(target)
    dtypes = {a.dtype for _, a in tree_flatten(loaded.model.parameters())}
    assert dtypes == {mx.float32} | ({mx.uint32} if q_bits else set())
    err = run(*ENGINE, target, "-p", "x", "-m", 1)[2]
    assert "float32, as 16 bits are slow and imprecise on a CPU" in err.split("\n")[0]


def test_float32_that_does_not_fit(chat, tmp_path, monkeypatch):
    convert(chat, tmp_path / "half", dtype="float16")
    monkeypatch.setattr("mlx_glu.mlx_lm_engine.free_memory", lambda: 1000)
    loaded = load(tmp_path / "half")
    on_gpu = mx.default_device() == mx.gpu
    assert ("as stored: float32 needs" in loaded.representation) != on_gpu
    dtypes = {a.dtype for _, a in tree_flatten(loaded.model.parameters())}
    assert dtypes == {mx.float16}


def test_it_is_not_installed(chat, run, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlx_lm", None)
    assert_refused(run(*ENGINE, chat, "-p", "x"), "pip install 'mlx-glu[mlx-lm]'")


def damaged(folder, file, content):
    """A copy of a model with one file changed, or removed."""

    def make(target):
        target.mkdir()
        for path in folder.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        if content is None:
            (target / file).unlink()
        else:
            (target / file).write_text(content)
        return target

    return make


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("config.json", None, "FileNotFoundError: "),
        ("config.json", "{", "JSONDecodeError: "),
        ("config.json", "{}", "KeyError: 'model_type'"),
        ("config.json", '{"model_type": "no_such"}', "type no_such not supported"),
        ("model.safetensors", None, "No safetensors found in"),
        ("model.safetensors", "damaged", "cannot be loaded: RuntimeError: "),
        ("tokenizer.json", "{", "cannot be loaded: "),
    ],
)
def test_a_damaged_model_is_one_line(file, content, words, chat, run, tmp_path):
    folder = damaged(chat, file, content)(tmp_path / "model")
    result = run(*ENGINE, folder, "-p", "x")
    assert_refused(result, words)
    assert f"[mlx-lm] {folder} cannot be loaded: " in result[2]


def test_what_is_no_folder(run, tmp_path):
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")
    assert_refused(run(*ENGINE, gguf, "-p", "x"), "model.gguf is a file; leave out")
    missing = run(*ENGINE, tmp_path / "none", "-p", "x")
    assert_refused(missing, "cannot be loaded: it is no folder here, and the Hub gives")


def test_what_only_the_model_can_refuse(chat, plain, run, tmp_path):
    template = "{{ raise_exception('no system role') }}"
    strict = write_model(tmp_path, byte_level_metadata(chat_template=template))
    for model, flags, words in (
        (plain, ["--system-prompt", "x"], "needs a model with a chat template"),
        (plain, ["--logit-bias", "294=1"], "token 294, but the model knows 0 to 293"),
        (plain, ["--logit-bias=-1=1"], "token -1, but the model knows 0 to 293"),
        (chat, ["--chat-template-config", '{"tokenize": false}'], "TypeError: "),
        (strict, [], "TemplateError: no system role"),
    ):
        code, out, err = run(*ENGINE, model, "-p", "x", *flags)
        assert (code, out) == (2, "")
        errors = [line for line in err.splitlines() if "error" in line.lower()]
        assert len(errors) == 1
        assert errors[0].startswith("mlx-glu: error: ")
        assert words in errors[0]


def test_chat_has_no_such_flag(chat, run):
    result = run("chat", "--engine", "mlx-lm", "--model", chat)
    assert_refused(result, "unrecognized arguments: --engine mlx-lm")


def test_it_is_imported_when_it_is_asked_for(chat):
    code = (
        "import sys, mlx_glu.mlx_lm_engine; from mlx_glu.cli import main\n"
        f"main(['generate', '--model', {str(chat)!r}, '-p', 'x', '-m', '1'])\n"
        "assert 'mlx_lm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_ctrl_c(plain):
    command = [*MLX_GLU, *ENGINE, plain, "-p", "Hello", "-m", "1000000"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, **pipes, text=True)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    err = process.communicate(timeout=20)[1]
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mlx-glu: interrupted"


def test_summary_of_what_is_not_fused():
    class MLP(nn.Module):
        def __init__(self):
            super().__init__()
            self.up_proj, self.down_proj = nn.Linear(64, 128), nn.Linear(128, 64)

        def __call__(self, x):
            return self.down_proj(nn.relu(self.up_proj(x)))

    model = nn.Sequential(MLP(), MLP())
    assert summary(model) == (
        "feed-forwards: 2 stock (not a GLU: two projections and no gate)"
    )
    assert summary(nn.Linear(3, 3)) == "feed-forwards: none found, nothing is fused"


def program(**names):
    module = ModuleType("program")
    vars(module).update(names)
    return module


def blocks_of(model):
    return sum(block_of(module) is not None for module in model.modules())


def test_fuse_on_load(chat):
    def fail(path):
        raise LookupError(path)

    theirs = program(load=mlx_lm.load, sharded_load=fail)
    with fuse_on_load(theirs):
        model, _, config = theirs.load(str(chat), return_config=True)
        assert blocks_of(model) == 3
        assert config["model_type"] == "llama"
        assert theirs.load.__name__ == "load"
        with pytest.raises(LookupError):
            theirs.sharded_load("x")
    assert (theirs.load, theirs.sharded_load) == (mlx_lm.load, fail)
    assert blocks_of(theirs.load(str(chat))[0]) == 0
    with pytest.raises(KeyError), fuse_on_load(theirs):
        raise KeyError
    assert theirs.load is mlx_lm.load


def test_fuse_on_load_with_an_adapter(chat, tmp_path):
    """It stays alive: the fused model computes what the adapted one does."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    settings = {"rank": 4, "scale": 2.0, "dropout": 0.0, "keys": ["mlp.gate_proj"]}
    model, _ = mlx_lm.load(str(chat))
    linear_to_lora_layers(model, 3, settings)
    adapter = {
        name: mx.random.normal(a.shape, key=mx.random.key(0))
        for name, a in tree_flatten(model.trainable_parameters())
        if "lora" in name
    }
    mx.save_safetensors(str(tmp_path / "adapters.safetensors"), adapter)
    config = {"fine_tune_type": "lora", "num_layers": 3, "lora_parameters": settings}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    theirs, tokens = program(load=mlx_lm.load), mx.array([[5, 6, 7]])
    expected = theirs.load(str(chat), adapter_path=str(tmp_path))[0](tokens)
    with fuse_on_load(theirs):
        fused = theirs.load(str(chat), adapter_path=str(tmp_path))[0]
    assert blocks_of(fused) == 3
    assert mx.allclose(fused(tokens), expected, rtol=1e-4, atol=1e-4)
    assert not mx.allclose(mlx_lm.load(str(chat))[0](tokens), expected, atol=1e-2)


@pytest.mark.parametrize("names", [{}, {"load": None}])
def test_a_program_that_loads_otherwise(names):
    expected = r"^\[fuse_on_load\] expected a module with .* but .*program.* has none"
    with pytest.raises(ValueError, match=expected), fuse_on_load(program(**names)):
        pass


@pytest.mark.parametrize("name", ["server", "chat", "generate"])
def test_programs_of_mlx_lm_load_as_we_think(name):
    assert importlib.import_module(f"mlx_lm.{name}").load is mlx_lm.load


@contextmanager
def serving(script, folder, tmp_path):
    """mlx-lm's server in a process of its own: how to ask it, and what it logged."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", script, "--model", folder, "--port", str(port)]
    server = SimpleNamespace(log="", out="", ask=None)
    with open(tmp_path / "log", "w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )

        def ask(path, **body):
            url = f"http://127.0.0.1:{port}{path}"
            data = json.dumps(body).encode() if body else None
            with urllib.request.urlopen(url, data, timeout=30) as response:
                return json.load(response)

        try:
            deadline = time.monotonic() + 30
            while time.monotonic() < deadline and process.poll() is None:
                try:
                    ask("/health")
                    break
                except OSError:
                    time.sleep(0.05)
            server.ask = ask
            yield server
            process.send_signal(signal.SIGINT)
            # Its code may be that of an abort: MLX's own threads, at the very end.
            process.wait(timeout=20)
        finally:
            process.kill()
            server.out = process.communicate()[0]
            log.seek(0)
            server.log = log.read()


def answers(server):
    """What it makes of two requests: texts, tokens and their log-probabilities."""
    settings = {"max_tokens": 8, "temperature": 0.0, "logprobs": True}
    text = server.ask("/v1/completions", prompt="Hello world", **settings)
    messages = [{"role": "user", "content": "Hello"}]
    chat = server.ask("/v1/chat/completions", messages=messages, **settings)
    (first,), (second,) = text["choices"], chat["choices"]
    rows = [*first["logprobs"]["content"], *second["logprobs"]["content"]]
    said = [first["text"], second["message"]["content"], *(row["id"] for row in rows)]
    return said, [row["logprob"] for row in rows]


@pytest.fixture(scope="module")
def stock_answers(chat, tmp_path_factory):
    script = "import mlx_lm.server; mlx_lm.server.main()"
    with serving(script, chat, tmp_path_factory.mktemp("stock")) as server:
        found = answers(server)
    assert "feed-forwards" not in server.log
    return found


def test_a_served_model_is_fused(chat, stock_answers, tmp_path):
    with serving(RECIPE, chat, tmp_path) as server:
        assert answers(server)[0] == stock_answers[0]
    assert f"{chat}: feed-forwards: 3 " in server.log


@needs_simulator
def test_a_server_runs_our_kernels(chat, stock_answers, tmp_path):
    with serving(SIMULATED, chat, tmp_path) as server:
        said, logprobs = answers(server)
    assert said == stock_answers[0]
    assert logprobs == pytest.approx(stock_answers[1], abs=1e-4)
    assert f"{chat}: feed-forwards: 3 fused at 1-5 rows, glu_mul at 6+" in server.log
    word, fused = server.out.split()
    # 2 requests, 3 layers, 7 tokens after the first, 2 products each.
    assert word == "fused"
    assert int(fused) >= 2 * 3 * 7 * 2
