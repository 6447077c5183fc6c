"""The conversation: its memory, its cache, and the terminal it is held in."""

import os
import re
import select
import signal
import subprocess
import sys
import time

import pytest
from test_cli import MLX_GLU, write_model
from tiny_checkpoint import config_of, write_checkpoint
from tiny_tokenizers import CHATML, byte_level_metadata, llama_metadata

from mlx_glu import load
from mlx_glu.cli import make_parser
from mlx_glu.commands import prompting
from mlx_glu.commands.chat import Conversation
from mlx_glu.tokenizer.gguf_tokenizer import write_tokenizer

pty = pytest.importorskip("pty")

#: ids 0 and 2 end an answer.
ENDLESS = ["--logit-bias", "0=-inf", "--logit-bias", "2=-inf", "-m", "1000000"]
HELP = "/reset forgets the conversation"
#: A template that wants turns to alternate.
STRICT = (
    "{% if messages[-1].content == 'bad' %}{{ raise_exception('no') }}{% endif %}"
    + CHATML
)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder whose model answers by chance, with ChatML's template."""
    metadata = byte_level_metadata(chat_template=STRICT)
    return write_model(tmp_path_factory.mktemp("chat"), metadata)


class Recorder:
    """A model that notes what it is fed."""

    def __init__(self, model):
        self._model, self.fed = model, []

    def __getattr__(self, name):
        return getattr(self._model, name)

    def __call__(self, inputs, cache, **options):
        self.fed.append(inputs[0].tolist())
        return self._model(inputs, cache, **options)


def converse(folder, *flags):
    args = make_parser().parse_args(["chat", "--model", str(folder), *flags])
    model, tokenizer = load(folder)
    recorder = Recorder(model)
    rules = prompting.sampling(args)
    return Conversation(recorder, tokenizer, args, rules), recorder, tokenizer


def fresh_answer(folder, messages, *flags):
    """What a conversation without memory answers to the same messages."""
    talk, _, _ = converse(folder, *flags)
    talk.messages = messages[:-1]
    talk.ask(messages[-1]["content"])
    return talk.messages[-1]["content"]


#: Letters come back from their text, so that the cache serves.
LETTERS = ["-m", "6", *(f"--logit-bias={token}=20" for token in range(70, 90))]
FLAGS = [
    pytest.param(["-m", "6"], id="greedy"),
    pytest.param(["-m", "6", "--repetition-penalty", "1.5"], id="penalty"),
    pytest.param(["-m", "6", "--temp", "1", "--seed", "3"], id="seed"),
    pytest.param(["-m", "6", "--system-prompt", "Be brief."], id="system"),
    pytest.param(["-m", "1"], id="one_token"),
    pytest.param([*LETTERS, "--repetition-penalty", "3"], id="penalty_and_cache"),
]


@pytest.mark.parametrize("flags", FLAGS)
def test_an_answer_depends_on_all_messages(model, flags, capsys):
    """Each turn, cached tokens and fed ones are the template of all messages."""
    talk, recorder, tokenizer = converse(model, *flags)
    for turn, text in enumerate(["Hello", "world", "or"], start=1):
        recorder.fed.clear()
        known = talk._read[: talk._cache[0].offset]
        before = [*talk.messages, {"role": "user", "content": text}]
        talk.ask(text)
        prompt = tokenizer.apply_chat_template(before)
        if prompt[: len(known)] == known:
            assert known + recorder.fed[0] == prompt
        else:
            assert recorder.fed[0] == prompt
        assert talk.messages[:-1] == before
        roles = [m["role"] for m in talk.messages if m["role"] != "system"]
        assert roles == ["user", "assistant"] * turn
        assert talk.messages[-1]["content"] == fresh_answer(model, before, *flags)
    capsys.readouterr()


def test_an_ascii_conversation_is_read_once(model, capsys):
    """Where the text of an answer gives its tokens back, the cache serves."""
    flags = ["-m", "4", "--logit-bias", "76=100"]
    talk, recorder, tokenizer = converse(model, *flags)
    letter = tokenizer.decode([76])
    talk.ask("Hello")
    assert talk.messages[-1]["content"] == letter * 4
    known = talk._cache[0].offset
    recorder.fed.clear()
    before = [*talk.messages, {"role": "user", "content": "world"}]
    talk.ask("world")
    prompt = tokenizer.apply_chat_template(before)
    assert recorder.fed[0] == prompt[known:]
    assert known > 20
    capsys.readouterr()


@pytest.mark.parametrize("said", [0, 3])
def test_an_interrupted_answer(model, said, monkeypatch, capsys):
    """What was said stays; of nothing, nothing. The cache is not trusted again."""
    talk, recorder, _ = converse(model, *ENDLESS)
    talk._model = Interrupted(recorder, said)
    with pytest.raises(KeyboardInterrupt):
        talk.ask("Hello")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"][: 2 * said]
    assert talk._cache[0].offset == 0
    talk._model, talk._args.max_tokens = recorder, 5
    before = [*talk.messages, {"role": "user", "content": "world"}]
    talk.ask("world")
    flags = [*ENDLESS[:-1], "5"]
    assert talk.messages[-1]["content"] == fresh_answer(model, before, *flags)
    capsys.readouterr()


class Interrupted(Recorder):
    """Ctrl-C comes while it computes."""

    def __init__(self, model, after):
        super().__init__(model)
        self._after = after

    def __call__(self, inputs, cache, **options):
        # A token is handed out while the next is being computed.
        if len(self.fed) == (self._after and self._after + 1):
            raise KeyboardInterrupt
        return super().__call__(inputs, cache, **options)


def test_a_refused_message_is_forgotten(model, capsys):
    talk, _, _ = converse(model, "-m", "2", "--system-prompt", "x")
    talk.ask("Hello")
    before = list(talk.messages)
    with pytest.raises(ValueError, match="no"):
        talk.ask("bad")
    assert talk.messages == before
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "x"}]
    assert talk._cache[0].offset == 0
    capsys.readouterr()


def test_windows(tmp_path, capsys):
    """Rotating caches serve a conversation longer than their windows."""
    metadata = byte_level_metadata()
    size = len(metadata["tokenizer.ggml.tokens"])
    write_checkpoint(tmp_path, config_of("mistral", vocab_size=size, eos_token_id=0))
    write_tokenizer(metadata, tmp_path)
    flags = ["-m", "4", "--logit-bias", "76=8"]
    talk, _, _ = converse(tmp_path, *flags)
    for text in ("Hello", "world", "or"):
        before = [*talk.messages, {"role": "user", "content": text}]
        talk.ask(text)
        assert talk.messages[-1]["content"] == fresh_answer(tmp_path, before, *flags)
    capsys.readouterr()


def piped(folder, text, *flags):
    done = subprocess.run(
        [*MLX_GLU, "chat", "--model", str(folder), *flags],
        input=text,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout, done.stderr


FORCED = ["--logit-bias", "76=100", "-m", "3"]


def test_through_pipes(model):
    """Answers on stdout, a line each; all else on stderr."""
    _, tokenizer = load(model)
    answer = tokenizer.decode([76]) * 3 + "\n"
    code, out, err = piped(model, "Hello\n\nworld\n", *FORCED)
    assert (code, out) == (0, answer * 2)
    assert err.count(HELP) == 1
    code, out, err = piped(model, "Hello\n/reset\nworld", *FORCED)
    assert (code, out) == (0, answer * 2)
    assert "(forgotten)" in err
    for leave in ("/exit", "/quit"):
        assert piped(model, f"Hello\n{leave}\nworld\n", *FORCED)[:2] == (0, answer)
    code, out, err = piped(model, "/help\n/unknown\n /help \n", *FORCED)
    assert (code, out) == (0, "")
    assert err.count(HELP) == 4
    assert piped(model, "", *FORCED)[:2] == (0, "")


def test_reset_forgets(model):
    """After /reset, the answer to a message is that to a first message."""
    flags = ["-m", "8"]
    once = piped(model, "Hello\n", *flags)[1]
    assert piped(model, "world\n/reset\nHello\n", *flags)[1].endswith(once)
    assert not piped(model, "world\nHello\n", *flags)[1].endswith(once)


def test_a_bad_message_through_a_pipe(model):
    code, _, err = piped(model, "Hello\nbad\nHello\n", *FORCED)
    assert code == 2
    assert err.splitlines()[-1].startswith("mlx-glu: error: [chat_template] line 1: no")
    assert "Traceback" not in err


def test_no_chat_template(tmp_path):
    folder = write_model(tmp_path, llama_metadata())
    code, out, err = piped(folder, "Hello\n")
    assert (code, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("mlx-glu: error: this model has no chat template")
    assert err.count("error") == 1


class Terminal:
    """``mlx-glu chat`` in a terminal of its own."""

    def __init__(self, *argv):
        self.pid, self._fd = pty.fork()
        if self.pid == 0:
            os.environ["TERM"] = "dumb"
            os.execv(sys.executable, [*MLX_GLU, "chat", *map(str, argv)])
        self.seen = ""

    def send(self, text):
        os.write(self._fd, text.encode())

    def expect(self, pattern, seconds=20):
        """Read until the pattern comes; return what came before it and forget it."""
        deadline = time.monotonic() + seconds
        while not (found := re.search(pattern, self.seen)):
            left = max(0, deadline - time.monotonic())
            ready = select.select([self._fd], [], [], left)[0]
            assert ready, (pattern, self.seen[-400:])
            try:
                data = os.read(self._fd, 65536)
            except OSError:  # Linux: the other side is closed
                data = b""
            assert data, (pattern, self.seen[-400:])
            self.seen += data.decode("utf-8", "replace")
        before, self.seen = self.seen[: found.start()], self.seen[found.end() :]
        return before

    def leave(self):
        """The exit code, once the program ends by itself."""
        try:
            while os.read(self._fd, 65536):
                pass
        except OSError:
            pass
        os.close(self._fd)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


@pytest.fixture
def terminal(model):
    started = []

    def open_terminal(*flags):
        started.append(Terminal("--model", model, *flags))
        return started[-1]

    yield open_terminal
    for each in started:
        try:
            os.kill(each.pid, signal.SIGKILL)
            os.waitpid(each.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass


def test_a_conversation_in_a_terminal(terminal):
    screen = terminal(*FORCED)
    screen.expect(HELP)
    screen.expect(">> ")
    screen.send("Hello\n")
    letter = "H"  # byte 72, after four special tokens
    screen.expect(f"Hello\r\n{letter}{{3}}\r\n")
    screen.expect(">> ")
    screen.send("/help\n")
    screen.expect(HELP)
    screen.send("bad\n")
    screen.expect(r"\[chat_template\] line 1: no")
    screen.send("/reset\n")
    screen.expect(r"\(forgotten\)")
    screen.expect(">> ")
    screen.send("/exit\n")
    assert screen.leave() == 0


def test_ctrl_c_stops_the_answer_alone(terminal):
    screen = terminal(*ENDLESS)
    screen.expect(">> ")
    for _ in range(2):
        screen.send("Hello\n")
        screen.expect("Hello\r\n")
        screen.expect("(?s).{20}")  # it is talking
        screen.send("\x03")
        screen.expect(r"\(stopped\)")
        screen.expect(">> ")
    screen.send("\x04")
    assert screen.leave() == 0


def test_ctrl_c_at_the_prompt(terminal):
    screen = terminal(*FORCED)
    screen.expect(">> ")
    for _ in range(2):
        screen.send("half a mess")
        screen.expect("half a mess")
        time.sleep(0.1)  # readline misses a signal that comes before it waits
        screen.send("\x03")
        screen.expect("/exit or Ctrl-D leaves")
        screen.expect(">> ")
    screen.send("\x04")
    assert screen.leave() == 0
