"""``mlx-glu chat``: a conversation in the terminal."""

import argparse
import contextlib
import sys
from typing import TYPE_CHECKING, Any

from . import prompting

if TYPE_CHECKING:
    from ..generation import GenerationResponse
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


def run(args: argparse.Namespace) -> None:
    """Read messages from stdin until /exit or its end."""
    rules = prompting.sampling(args)
    model, tokenizer = prompting.load(args)
    if not tokenizer.has_chat_template:
        raise ValueError(
            f"{args.model} has no chat template; use `mlx-glu generate`, which "
            "continues plain text"
        )
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
            conversation.ask(text)


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
        """Stream the answer to ``text``; Ctrl-C keeps what was said so far."""
        self.messages.append({"role": "user", "content": text})
        try:
            ids = prompting.encode_chat(self._tokenizer, self.messages, self._args)
        except ValueError:
            self.messages.pop()
            raise
        # The cache serves if the conversation goes on exactly as it was read.
        known = self._read[: self._cache[0].offset]
        if not known or ids[: len(known)] != known or len(ids) == len(known):
            self._cache, known = self._model.make_cache(), []
        said: list[GenerationResponse] = []
        try:
            prompting.answer(
                self._model,
                self._tokenizer,
                ids[len(known) :],
                self._args,
                self._rules,
                self._cache,
                said,
            )
            self._read = ids + [step.token for step in said]
        except KeyboardInterrupt:
            # It may have come between two layers: what the cache holds is unknown.
            self._cache, self._read = self._model.make_cache(), []
            print("\n(stopped)", file=sys.stderr)
        answer = "".join(step.text for step in said)
        self.messages.append({"role": "assistant", "content": answer})


def _read() -> str | None:
    """The next message, or None at the end."""
    while True:
        try:
            return input(">> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)", file=sys.stderr)
