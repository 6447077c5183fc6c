"""The command line: what goes where, and one line for every mistake."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_checkpoint import config_of, shapes_of, write_checkpoint
from tiny_tokenizers import byte_level_metadata, llama_metadata

import mlx_glu
from mlx_glu import hub, load, stream_generate
from mlx_glu.cli import main, make_parser
from mlx_glu.commands import COMMANDS
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

MLX_GLU = [sys.executable, "-m", "mlx_glu"]


def write_model(folder, metadata):
    """A LLaMA of random weights with a tokenizer."""
    size = len(metadata["tokenizer.ggml.tokens"])
    write_checkpoint(folder, config_of("llama", vocab_size=size, eos_token_id=0))
    write_tokenizer(metadata, folder)
    return folder


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A model without chat template, by sentencepiece."""
    return write_model(tmp_path_factory.mktemp("plain"), llama_metadata())


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    """A model with ChatML's template, by byte-level BPE."""
    return write_model(tmp_path_factory.mktemp("chat"), byte_level_metadata())


@pytest.fixture
def run(capsys, monkeypatch):
    """Run in this process; exit code, stdout and stderr."""
    monkeypatch.setenv("COLUMNS", "80")

    def run(*argv):
        code = 0
        try:
            main([str(arg) for arg in argv])
        except SystemExit as leaving:
            code = leaving.code
        return (code or 0, *capsys.readouterr())

    return run


def start(*argv, **env):
    """Run in a process of its own."""
    return subprocess.Popen(
        [*MLX_GLU, *map(str, argv)],
        env={**os.environ, **env},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def assert_refused(result, words):
    """Exit code 2, nothing on stdout, one line on stderr that has the words."""
    code, out, err = result
    assert (code, out) == (2, "")
    assert err.startswith("mlx-glu: error: ")
    assert err.count("\n") == 1, err
    assert words in err


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help(command, run):
    code, out, err = run(*command.split(), "--help")
    assert (code, err) == (0, "")
    assert max(map(len, out.splitlines())) <= 80
    assert out.startswith(f"usage: mlx-glu {command}".rstrip())
    if command:
        assert COMMANDS[command].DESCRIPTION.strip() in out
    else:
        for name, module in COMMANDS.items():
            assert re.search(rf"^    {name} +{re.escape(module.HELP)}$", out, re.M)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(command):
    subparsers = make_parser()._subparsers._group_actions[0]
    for action in subparsers.choices[command]._actions:
        assert len(action.help or "") > 8, action.option_strings
        for flag in action.option_strings:
            assert flag in subparsers.choices[command].format_help()


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"]])
def test_help_imports_no_mlx(arguments):
    code = (
        "import sys; from mlx_glu.cli import main\n"
        f"try: main({arguments})\n"
        "except SystemExit: pass\n"
        "heavy = {'mlx', 'numpy', 'jinja2', 'tqdm', 'tokenizers', 'huggingface_hub'}\n"
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr == "[]\n"


def test_version(run):
    assert run("--version") == (0, f"{mlx_glu.__version__}\n", "")


def test_a_process_of_its_own():
    out, err = start("--version").communicate()
    assert (out, err) == (f"{mlx_glu.__version__}\n", "")
    process = start("generat")
    out, err = process.communicate()
    assert_refused((process.returncode, out, err), "invalid choice: 'generat'")


def test_variants(run):
    code, out, err = run("variants")
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == [
        "variant",
        *mlx_glu.VARIANTS,
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("", "required: COMMAND; see mlx-glu --help"),
        ("foo", "invalid choice: 'foo' (choose from"),
        ("--foo", "required: COMMAND"),
        ("generate", "-p/--prompt; see mlx-glu generate --help"),
        ("generate -p x --foo", "unrecognized arguments: --foo"),
        ("generate -p x --temp -1", "temp must be at least 0, got -1"),
        ("generate -p x --temp nan", "temp must be at least 0, got nan"),
        ("generate -p x --temp warm", "argument --temp: invalid float value"),
        ("generate -p x --top-p 5", "top_p must be above 0 and at most 1, got 5"),
        ("generate -p x --top-k -3", "top_k must be at least 0, got -3"),
        ("generate -p x --min-p 2", "min_p must be between 0 and 1, got 2"),
        ("generate -p x --repetition-penalty 0", "repetition_penalty must be above 0"),
        ("generate -p x --repetition-context-size 0", "must be at least 1, got 0"),
        ("generate -p x --logit-bias x", "--logit-bias 'x' must be ID=X"),
        ("generate -p x --logit-bias 5=", "--logit-bias '5=' must be ID=X"),
        ("generate -p x --logit-bias 5=nan", "logit_bias must be of numbers"),
        ("generate -p x --max-tokens 0", "--max-tokens must be at least 1"),
        ("generate -p x --max-tokens 1e3", "invalid int value: '1e3'"),
        ("generate -p x --prefill-step-size 0", "--prefill-step-size must be at"),
        ("generate -p x --seed -1", "seed must be between 0 and 2**64 - 1, got -1"),
        ("generate -p x --chat-template-config {", "'{' is not JSON"),
        ("generate -p x --chat-template-config [1]", "'[1]' is not a JSON object"),
        ("generate -p x --model /nowhere", "/nowhere does not exist"),
        ("chat --model /nowhere", "/nowhere does not exist"),
        ("chat --temp -1", "temp must be at least 0"),
        ("convert --q-bits 4", "--q-bits has no effect without -q"),
        ("convert --q-group-size 32", "--q-group-size has no effect without -q"),
        ("convert --q-mode mxfp4", "--q-mode has no effect without -q"),
        ("convert --hf-path /nowhere", "/nowhere does not exist"),
        ("convert --dtype int8", "invalid choice: 'int8'"),
        ("variants --foo", "unrecognized arguments: --foo"),
    ],
)
def test_bad_arguments(arguments, words, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert_refused(run(*arguments.split()), words)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("command", [["generate", "-p", "x"], ["chat"]])
def test_the_default_model_is_not_there(command, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    result = run(*command)
    assert_refused(result, "make it once with `mlx-glu convert`")
    assert str(tmp_path / "mlx_glu") in result[2]


def test_the_default_model_is_found(plain, run, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from mlx_glu.hub import default_folder

    default_folder().parent.mkdir()
    default_folder().symlink_to(plain)
    code, out, err = run("generate", "-p", "Hello", "-m", 2)
    assert (code, bool(out)) == (0, True)
    assert str(default_folder()) in err


def test_an_error_of_several_lines_becomes_one(run, monkeypatch):
    def fail(args):
        raise ValueError("first\nsecond")

    monkeypatch.setattr(COMMANDS["variants"], "run", fail)
    assert_refused(run("variants"), "first; second")


@pytest.mark.skipif(sys.platform != "linux", reason="MLX_GLU_BLAS is for Linux")
@pytest.mark.parametrize("command", ["variants", "chat", "convert --hf-path x"])
def test_a_wrong_blas(command):
    process = start(*command.split(), MLX_GLU_BLAS="libnowhere.so")
    out, err = process.communicate()
    assert_refused((process.returncode, out, err), "MLX_GLU_BLAS: libnowhere.so: ")


def test_generate(plain, run):
    """The text alone on stdout: what the API says, then a newline."""
    model, tokenizer = load(plain)
    steps = list(stream_generate(model, tokenizer, "Hello world", max_tokens=9))
    code, out, err = run(
        "generate", "--model", plain, "-p", "Hello world", "--max-tokens", 9
    )
    assert code == 0
    assert out == "".join(s.text for s in steps) + "\n"
    assert re.search(r"^prompt: 3 tokens, prompt_tps [\d.]+$", err, re.M)
    stats = r"^generation: 9 tokens, generation_tps [\d.]+, finish_reason length$"
    assert re.search(stats, err, re.M)
    assert re.search(r"^peak_memory: \d+\.\d{3} GB$", err, re.M)


def test_a_chat_model_gets_a_message(chat, run):
    def answer(*flags):
        code, out, err = run(
            "generate", "--model", chat, "-p", "Hello", "-m", 5, *flags
        )
        assert code == 0
        return out, int(re.search(r"prompt: (\d+) tokens", err)[1])

    model, tokenizer = load(chat)

    def expect(prompt):
        steps = [*stream_generate(model, tokenizer, prompt, max_tokens=5)]
        return "".join(s.text for s in steps) + "\n", steps[-1].prompt_tokens

    message = {"role": "user", "content": "Hello"}
    system = {"role": "system", "content": "Be brief."}
    assert answer() == expect(tokenizer.apply_chat_template([message]))
    both = tokenizer.apply_chat_template([system, message])
    assert answer("--system-prompt", "Be brief.") == expect(both)
    assert answer("--ignore-chat-template") == expect("Hello")
    config = '{"add_generation_prompt": false}'
    ids = tokenizer.apply_chat_template([message], add_generation_prompt=False)
    assert answer("--chat-template-config", config) == expect(ids)


@pytest.mark.parametrize("name", ["messages", "tokenize", "self", "template"])
def test_names_that_are_not_a_templates(name, chat, run):
    config = json.dumps({name: 1})
    result = run(
        "generate", "--model", chat, "-p", "x", "--chat-template-config", config
    )
    assert (result[0], result[1]) == (2, "")
    assert "mlx-glu: error: --chat-template-config: " in result[2]


def test_what_only_the_model_can_refuse(plain, run):
    for flags, words in (
        (["--system-prompt", "x"], "--system-prompt needs a model with a chat templ"),
        (["--logit-bias", "294=1"], "logit_bias has token 294, but the model knows"),
        (["--logit-bias=-1=1"], "logit_bias has token -1, but the model knows 0 t"),
    ):
        code, out, err = run("generate", "--model", plain, "-p", "x", *flags)
        assert (code, out) == (2, "")
        errors = [line for line in err.splitlines() if "error" in line]
        assert len(errors) == 1
        assert errors[0].startswith("mlx-glu: error: ")
        assert words in errors[0]


def test_stdin_is_a_prompt(plain, run, monkeypatch, tmp_path):
    direct = run("generate", "--model", plain, "-p", "Hello\nworld", "-m", 4)[1]
    (tmp_path / "prompt.txt").write_text("Hello\nworld")
    with open(tmp_path / "prompt.txt") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert run("generate", "--model", plain, "-p", "-", "-m", 4)[1] == direct


def test_empty_prompts(plain, run, monkeypatch):
    assert_refused(run("generate", "--model", plain, "-p", ""), "the prompt is empty")
    with open(os.devnull) as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert_refused(run("generate", "--model", plain, "-p", "-"), "prompt is empty")


def test_sampling_flags(plain, run):
    def text(*flags):
        return run("generate", "--model", plain, "-p", "Hello", "-m", 12, *flags)[1]

    hot = ["--temp", "1.5"]
    assert text(*hot, "--seed", 1) == text(*hot, "--seed", 1)
    assert text(*hot, "--seed", 1) != text(*hot, "--seed", 2)
    assert text(*hot, "--seed", 1, "--top-k", 1) == text()
    assert text(*hot, "--min-p", 1, "--top-p", 0.01) == text()
    # 259 is the piece of a space, 260 the letter H.
    assert text("--logit-bias", "260=100") == "H" * 12 + "\n"
    forced = ["--logit-bias", "260=100", "--logit-bias", "261=60"]
    assert text(*forced) == "H" * 12 + "\n"
    penalised = text(*forced, "--repetition-penalty", 2)
    assert set(penalised) == {"H", "e", "\n"}
    assert text(*forced, "--stop", "zz", "--stop", "HHH") == "\n"


def test_convert(plain, run, tmp_path):
    """stdout is the folder, exactly."""
    target = tmp_path / "out put"
    code, out, err = run("convert", "--hf-path", plain, "--mlx-path", target)
    assert (code, out) == (0, f"{target}\n")
    assert "32.000 bits per weight" in err
    packed = tmp_path / "packed"
    flags = ["-q", "--q-bits", 8, "--q-group-size", 32, "--dtype", "float16"]
    code, out, err = run("convert", "--hf-path", plain, "--mlx-path", packed, *flags)
    assert (code, out) == (0, f"{packed}\n")
    bits = float(re.search(r"^(\d+\.\d{3}) bits per weight$", err, re.M)[1])
    assert 9 < bits < 16
    assert run("generate", "--model", packed, "-p", "Hello", "-m", 2)[0] == 0
    again = run("convert", "--hf-path", plain, "--mlx-path", packed)
    assert_refused(again, "exists; choose another --mlx-path")


def test_convert_says_what_it_did_not_pack(plain, run, tmp_path):
    flags = ["-q", "--q-group-size", 64]
    code, _, err = run(
        "convert", "--hf-path", plain, "--mlx-path", tmp_path / "x", *flags
    )
    assert code == 0
    assert re.search(r"^not packed: \d+ layers such as model\.", err, re.M)


@pytest.mark.parametrize("arguments", [["--help"], ["variants"], ["--version"]])
def test_a_reader_that_left(arguments):
    """Nothing but an exit code tells of a closed pipe."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*MLX_GLU, *arguments],
        env={k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_reader_that_leaves_early(plain):
    process = start("generate", "--model", plain, "-p", "Hello", "-m", 100000)
    process.stdout.read(1)
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 1
    assert len(err.splitlines()) == 1
    assert "BLAS" in err or "as stored" in err


def test_ctrl_c_stops_generate(plain):
    process = start("generate", "--model", plain, "-p", "Hello", "-m", 1000000)
    assert process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "mlx-glu: interrupted"
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_a_signal_leaves_no_half_a_folder(number, code, tmp_path):
    large = config_of("llama", hidden_size=1024, vocab_size=30000, num_hidden_layers=6)
    weights = {name: np.zeros(shape) for name, shape in shapes_of(large).items()}
    source = write_checkpoint(tmp_path / "hf", large, weights)
    write_tokenizer(llama_metadata(), source)
    target = tmp_path / "to" / "mlx"
    process = start("convert", "--hf-path", source, "--mlx-path", target, "-q")
    deadline = time.monotonic() + 20
    while (
        not [*tmp_path.glob("to/.mlx.partial/new/*.safetensors")]
        and time.monotonic() < deadline
    ):
        time.sleep(0.001)
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (code, "")
    assert "Traceback" not in err
    assert (err.splitlines()[-1] == "mlx-glu: interrupted") == (code == 130)
    assert not target.parent.exists()


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&-"])
def test_closed_streams(redirection):
    """A service may start programs without them."""
    command = f"{sys.executable} -m mlx_glu variants {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("swiglu" in done.stdout) == (redirection != ">&-")


def test_default_model_that_is_there_already(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = write_checkpoint(hub.default_folder(), config_of("llama"))
    main(["convert"])
    out, err = capsys.readouterr()
    assert out == f"{folder}\n"
    assert "already" in err


def test_no_home(monkeypatch):
    def nobody():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pathlib.Path.home", nobody)
    with pytest.raises(ValueError, match="XDG_CACHE_HOME"):
        hub.find_default()
