"""``mlx-glu chat``: a conversation in the terminal."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from . import prompting

if TYPE_CHECKING:
    from ..models.llama import Model
    from ..sample import Sampling
    from ..tokenizer import Tokenizer

HELP = "talk to a model"
DESCRIPTION = """\
Talk to a model. It remembers the conversation. /reset forgets it, /exit or
Ctrl-D leaves, Ctrl-C stops the answer.

  mlx-glu chat
  mlx-glu chat --model FOLDER --temp 0.7 --system-prompt "Answer in French."
"""

_HELP = "/reset forgets the conversation, /exit leaves, Ctrl-C stops an answer"


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in generate."""
    prompting.add_args(parser)
    # The conversation keeps a cache of our own model; mlx_lm.chat has mlx-lm's.
    parser.set_defaults(engine="mlx-glu")


def run(args: argparse.Namespace) -> None:
    """Read messages from stdin until /exit or its end."""
    rules = prompting.sampling(args)
    model, tokenizer = prompting.load(args)
    if not tokenizer.has_chat_template:
        raise ValueError(
            "this model has no chat template; use `mlx-glu generate`, which continues "
            "plain text"
        )
    if sys.stdin.isatty():
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history in input())
    conversation = Conversation(model, tokenizer, args, rules)
    print(_HELP, file=sys.stderr)
    while (text := _read()) is not None:
        if text in ("/exit", "/quit"):
            return
        if text == "/reset":
            conversation.reset()
            print("(forgotten)", file=sys.stderr)
        elif text.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif text:
            try:
                conversation.ask(text)
            except KeyboardInterrupt:
                print("\n(stopped)", file=sys.stderr)
            except ValueError as error:
                if not sys.stdin.isatty():
                    raise
                print(error, file=sys.stderr)


class Conversation:
    """The messages so far, and a cache of what the model has read of them."""

    def __init__(
        self,
        model: "Model",
        tokenizer: "Tokenizer",
        args: argparse.Namespace,
        rules: "Sampling",
    ) -> None:
        self._model, self._tokenizer = model, tokenizer
        self._args, self._rules = args, rules
        self.reset()

    def reset(self) -> None:
        """Forget everything but the system prompt."""
        self.messages: list[dict[str, Any]] = prompting.system_messages(self._args)
        self._cache = self._model.make_cache()
        self._read: list[int] = []

    def ask(self, text: str) -> None:
        """Stream the answer to ``text``.

        After Ctrl-C or an error, what was said so far is kept; if nothing was, the
        question is forgotten too.
        """
        messages = [*self.messages, {"role": "user", "content": text}]
        ids = prompting.encode_chat(self._tokenizer, messages, self._args)
        # The cache serves if the conversation goes on exactly as it was read.
        cache, known = self._cache, self._read[: self._cache[0].offset]
        if ids[: len(known)] != known or len(ids) == len(known):
            cache, known = self._model.make_cache(), []
        # Ctrl-C may come between two layers, which leaves an unknown cache behind.
        self._cache, self._read = self._model.make_cache(), []
        said: list[tuple[int, str]] = []
        try:
            prompting.answer(
                self._model,
                self._tokenizer,
                ids[len(known) :],
                self._args,
                self._rules,
                cache,
                known,
                said,
            )
            self._cache, self._read = cache, ids + [token for token, _ in said]
        finally:
            if said:
                answer = "".join(text for _, text in said)
                self.messages = [*messages, {"role": "assistant", "content": answer}]


def _read() -> str | None:
    """The next message, or None at the end."""
    while True:
        try:
            return input(">> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)", file=sys.stderr)
