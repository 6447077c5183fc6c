"""``mlx-glu generate``: one prompt, one answer."""

import argparse
import sys

from . import prompting

HELP = "answer a prompt"
DESCRIPTION = """\
Answer a prompt with a model. The text streams to stdout, statistics go to
stderr. A chat model gets the prompt as a user's message; any other continues
it.

  mlx-glu generate --prompt "What is the capital of France?"
  mlx-glu generate --model FOLDER -p "Once upon a time" --temp 0.8 --seed 1
  cat question.txt | mlx-glu generate --prompt -
  mlx-glu generate --engine mlx-lm --model FOLDER -p "..."

With --engine mlx-lm, mlx-lm loads and runs the model, of any family it knows,
with its feed-forwards fused: pip install 'mlx-glu[mlx-lm]'.
"""


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.generate."""
    parser.add_argument(
        "-p", "--prompt", required=True, metavar="TEXT", help="the prompt; - is stdin"
    )
    parser.add_argument(
        "--ignore-chat-template",
        action="store_true",
        help="continue the prompt as plain text",
    )
    prompting.add_engine(parser, prompting.ENGINES[0])
    prompting.add_args(parser)


def run(args: argparse.Namespace) -> None:
    """Load, answer, print statistics."""
    rules = prompting.sampling(args)
    prompt: str | list[int] = sys.stdin.read() if args.prompt == "-" else args.prompt
    if not prompt:
        raise ValueError("the prompt is empty; give a text after --prompt")
    model, tokenizer = prompting.load(args)
    if tokenizer.has_chat_template and not args.ignore_chat_template:
        messages = prompting.system_messages(args)
        messages.append({"role": "user", "content": prompt})
        prompt = prompting.encode_chat(tokenizer, messages, args)
    elif args.system_prompt:
        raise ValueError("--system-prompt needs a model with a chat template")
    if args.engine == "mlx-lm":
        from .. import mlx_lm_engine
        from ..fusion import fuse

        print(f"note: {mlx_lm_engine.summary(fuse(model))}", file=sys.stderr)
    last = prompting.answer(model, tokenizer, prompt, args, rules)
    print(
        f"prompt: {last.prompt_tokens} tokens, prompt_tps {last.prompt_tps:.1f}\n"
        f"generation: {last.generation_tokens} tokens, "
        f"generation_tps {last.generation_tps:.1f}, "
        f"finish_reason {last.finish_reason}\n"
        f"peak_memory: {last.peak_memory:.3f} GB",
        file=sys.stderr,
    )
