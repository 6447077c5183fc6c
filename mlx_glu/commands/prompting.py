"""What ``generate`` and ``chat`` share: flags, loading, the streamed answer."""

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from ..generation import GenerationResponse
    from ..models.llama import Cache
    from ..sample import Sampling

#: What loads a model and runs it.
ENGINES = ("mlx-glu", "mlx-lm")

#: Tokens that every machine reads in a second or two.
SHORT_PROMPT = 256


def add_args(parser: argparse.ArgumentParser) -> None:
    """Flags as in mlx_lm.generate."""
    add = parser.add_argument
    add(
        "--model",
        metavar="PATH",
        help="MLX or Hugging Face folder, .gguf file or Hub id "
        "(default: the default model, which `mlx-glu convert` makes)",
    )
    add("--system-prompt", metavar="TEXT", help="put before the conversation")
    add(
        "-m",
        "--max-tokens",
        type=int,
        default=256,
        metavar="N",
        help="end the answer after N tokens (default: 256)",
    )
    add(
        "--temp",
        type=float,
        default=0.0,
        metavar="T",
        help="temperature; 0, the default, takes the likeliest token each time",
    )
    add(
        "--top-p",
        type=float,
        default=1.0,
        metavar="P",
        help="draw from the likeliest tokens that have P of the probability "
        "(default: 1, off)",
    )
    add(
        "--top-k",
        type=int,
        default=0,
        metavar="K",
        help="draw from the K likeliest tokens (default: 0, off)",
    )
    add(
        "--min-p",
        type=float,
        default=0.0,
        metavar="P",
        help="draw from tokens at least P times as probable as the likeliest "
        "(default: 0, off)",
    )
    add(
        "--repetition-penalty",
        type=float,
        default=1.0,
        metavar="X",
        help="make tokens that occurred less likely, X above 1 (default: 1, off)",
    )
    add(
        "--repetition-context-size",
        type=int,
        metavar="N",
        help="let the penalty see the last N tokens alone (default: all)",
    )
    add(
        "--logit-bias",
        action="append",
        default=[],
        metavar="ID=X",
        help="add X to the logit of a token id, -inf to ban it; can be repeated",
    )
    add("--seed", type=int, metavar="N", help="make sampling repeatable")
    add(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end the answer before this text; can be repeated",
    )
    add(
        "--prefill-step-size",
        type=int,
        metavar="N",
        help="read long prompts N tokens at a time "
        "(default: 2048, our engine on a CPU 256)",
    )
    add(
        "--chat-template-config",
        type=_json_object,
        default={},
        metavar="JSON",
        help='arguments of the chat template, as {"enable_thinking": false}',
    )


def add_engine(parser: "argparse._ActionsContainer", default: str | None) -> None:
    """What loads and runs a model; ``default`` None tells that nobody asked."""
    parser.add_argument(
        "--engine",
        choices=ENGINES,
        default=default,
        help=f"what loads and runs the model (default: {ENGINES[0]}); mlx-lm has more "
        "families and reads no .gguf file",
    )


def sampling(args: argparse.Namespace) -> "Sampling":
    """The sampling rules of the flags."""
    from ..sample import Sampling

    if args.prefill_step_size is not None and args.prefill_step_size < 1:
        raise ValueError("--prefill-step-size must be at least 1")
    if args.max_tokens < 1:
        raise ValueError("--max-tokens must be at least 1")
    return Sampling(
        temp=args.temp,
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repetition_penalty=args.repetition_penalty,
        repetition_context_size=args.repetition_context_size,
        logit_bias=dict(_bias(item) for item in args.logit_bias),
        seed=args.seed,
    )


def load(args: argparse.Namespace) -> tuple[Any, Any]:
    """Load the model of --model, or the default one; notes go to stderr.

    Returns:
        Model and tokenizer of --engine; that of mlx-lm is not fused yet.
    """
    from ..hub import named

    path = named(args.model)
    if args.engine == "mlx-lm":
        from .. import mlx_lm_engine

        loaded = mlx_lm_engine.load(path)
        print(f"{path}: {loaded.representation}", file=sys.stderr)
        return loaded.model, loaded.tokenizer
    from .. import jit
    from ..loading import load as load_path

    model, tokenizer = load_path(path)
    print(f"{path}: {model.representation}", file=sys.stderr)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    if jit.backend() == "metal":
        from ..fusion import fuse

        fuse(model)  # has its kernels measured, once on a machine
    return model, tokenizer


def answer(
    model: Any,
    tokenizer: Any,
    prompt: str | Sequence[int],
    args: argparse.Namespace,
    rules: "Sampling",
    cache: "Cache | None" = None,
    cached: Sequence[int] = (),
    said: list[tuple[int, str]] | None = None,
) -> "GenerationResponse":
    """Stream an answer to stdout; ``said`` collects its tokens and texts."""
    from tqdm import tqdm

    bar: tqdm[NoReturn] | None = None

    def progress(done: int, total: int) -> None:
        nonlocal bar
        if bar is None:
            # A short prompt needs no bar.
            show = None if total > SHORT_PROMPT else True
            bar = tqdm(
                total=total, desc="prompt", unit="tok", leave=False, disable=show
            )
        bar.update(done - bar.n)
        if done == total:
            bar.close()

    response = None
    for response in _stream(args, cache, cached)(
        model,
        tokenizer,
        prompt,
        max_tokens=args.max_tokens,
        sampling=rules,
        stop=args.stop,
        prefill_step_size=args.prefill_step_size,
        prompt_progress_callback=progress,
    ):
        if said is not None:
            # Not the response: its logprobs would pile up.
            said.append((response.token, response.text))
        print(response.text, end="", flush=True)
    print(flush=True)
    assert response is not None
    return response


def _stream(
    args: argparse.Namespace, cache: "Cache | None", cached: Sequence[int]
) -> "Callable[..., Iterator[GenerationResponse]]":
    if args.engine == "mlx-lm":
        from ..mlx_lm_engine import stream_generate as stream

        return stream
    from ..generation import stream_generate

    return partial(stream_generate, prompt_cache=cache, cached=cached)


def encode_chat(
    tokenizer: Any, messages: list[dict[str, Any]], args: argparse.Namespace
) -> list[int]:
    """Token ids of a conversation, up to where the answer begins."""
    if args.engine == "mlx-lm":
        from .. import mlx_lm_engine

        return mlx_lm_engine.encode_chat(tokenizer, messages, args.chat_template_config)
    try:
        ids: list[int] = tokenizer.apply_chat_template(
            messages, tokenize=True, **args.chat_template_config
        )
    except TypeError as error:  # a name that is not the user's to give
        raise ValueError(f"--chat-template-config: {error}") from error
    return ids


def system_messages(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The conversation before the user's first message."""
    text = args.system_prompt
    return [{"role": "system", "content": text}] if text else []


def _json_object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is not a JSON object")
    return value


def _bias(item: str) -> tuple[int, float]:
    token, _, value = item.partition("=")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise ValueError(
            f"--logit-bias {item!r} must be ID=X, a token id and a number"
        ) from error
