"""Text to token ids and back, from the tokenizer files of a checkpoint folder.

``Tokenizer`` is one class over two vocabularies: ``tokenizer.json`` (LLaMA-3, Qwen,
SmolLM2) and sentencepiece's ``tokenizer.model`` (LLaMA-2, Gemma, Mistral). The
libraries behind them load when a file needs them.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

from .chat_template import choose_template, render
from .detokenizer import StreamingDetokenizer
from .files import read_tokenizer_files
from .sentencepiece_backend import SentencePieceBackend
from .stop_tokens import find_eos_token_ids
from .tokenizers_backend import TokenizersBackend


def load_tokenizer(path: str | Path) -> "Tokenizer":
    """Load the tokenizer of a checkpoint folder.

    ``tokenizer.json`` is preferred over ``tokenizer.model``. BOS: a tokenizer.json
    decides by its post-processor, unless it is a Llama or Gemma tokenizer whose
    config sets ``add_bos_token``; a tokenizer.model adds BOS unless the config says
    no. (transformers 4; version 5 ignores ``add_bos_token`` beside a tokenizer.json
    and defaults to no BOS for a tokenizer.model.)

    ``eos_token_ids``: see ``stop_tokens.find_eos_token_ids``.

    Args:
        path: the folder; see ``files.py`` for what is read.

    Returns:
        The tokenizer.

    Raises:
        FileNotFoundError: no folder, or no vocabulary of a known kind in it.
        ValueError: a file is broken or two contradict; says which.
    """
    files = read_tokenizer_files(Path(path))
    config, special = files.config, dict(files.special_tokens)
    named = [*special.values(), *files.extra_special]
    add_bos = config.get("add_bos_token")
    backend: TokenizersBackend | SentencePieceBackend
    if files.vocabulary.name == "tokenizer.json":
        backend = TokenizersBackend(files.vocabulary, files.added, named)
        kind = str(config.get("tokenizer_class")).removesuffix("Fast")
        if kind not in ("LlamaTokenizer", "GemmaTokenizer"):
            add_bos = None
    else:
        backend = SentencePieceBackend(
            files.vocabulary,
            files.added,
            named,
            legacy=bool(config.get("legacy")),
            add_prefix_space=config.get("add_prefix_space") is not False,
        )
        add_bos = add_bos is not False
    for key in ("bos_token", "eos_token"):
        if key not in config and key not in special:
            ids = files.model_ids.get(f"{key}_id")
            token = backend.id_to_token(ids[0]) if ids else backend.own_token(key)
            special |= {key: token} if token is not None else {}
    return Tokenizer(
        backend,
        special_tokens=special,
        eos_token_ids=find_eos_token_ids(files, special, backend),
        chat_templates=files.chat_templates,
        add_bos=add_bos,
        add_eos=bool(config.get("add_eos_token")),
    )


class Tokenizer:
    """A vocabulary with its special tokens and chat template.

    Make one with :func:`load_tokenizer`.

    Attributes:
        eos_token_ids: every id that ends generation.
        vocab_size: one more than the largest id; a model may have more rows.
        special_tokens: ``{"bos_token": "<s>", ...}``, also seen by chat templates.
        chat_templates: templates by name.
    """

    def __init__(
        self,
        backend: TokenizersBackend | SentencePieceBackend,
        *,
        special_tokens: Mapping[str, str],
        eos_token_ids: Iterable[int],
        chat_templates: Mapping[str, str],
        add_bos: bool | None = None,
        add_eos: bool = False,
    ) -> None:
        self._backend = backend
        self._add_bos = add_bos
        self._add_eos = add_eos
        self.special_tokens = dict(special_tokens)
        self.eos_token_ids = frozenset(eos_token_ids)
        self.chat_templates = dict(chat_templates)
        self.vocab_size = backend.vocab_size

    @property
    def bos_token(self) -> str | None:
        """The token that starts a text."""
        return self.special_tokens.get("bos_token")

    @property
    def eos_token(self) -> str | None:
        """The tokenizer's own end token; generation stops at ``eos_token_ids``."""
        return self.special_tokens.get("eos_token")

    @property
    def bos_token_id(self) -> int | None:
        """The id that starts a text."""
        return None if self.bos_token is None else self.token_to_id(self.bos_token)

    @property
    def has_chat_template(self) -> bool:
        """Whether ``apply_chat_template`` works without an own template."""
        return bool(self.chat_templates)

    def token_to_id(self, token: str) -> int | None:
        """The id of a token, None if the vocabulary has no such token."""
        return self._backend.token_to_id(token)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Encode text; special tokens written in it become their ids, as in HF.

        Args:
            text: any text.
            add_special_tokens: put BOS and EOS around it where the model wants them.

        Raises:
            ValueError: the text holds half of a surrogate pair, so no UTF-8.
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"[encode] the text has a lone surrogate at character {error.start}; "
                "read the input as UTF-8"
            ) from None
        if self._add_bos is None:
            return self._backend.encode(text, post_process=add_special_tokens)
        ids = self._backend.encode(text)
        if add_special_tokens:
            bos, eos = self.bos_token_id, self.token_to_id(self.eos_token or "")
            ids = [bos, *ids] if self._add_bos and bos is not None else ids
            ids = [*ids, eos] if self._add_eos and eos is not None else ids
        return ids

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Decode ids to text.

        As HF does with ``clean_up_tokenization_spaces=False``, except that bytes
        which form no character become U+FFFD one by one, where HF gives up a whole
        run of byte tokens. Ids outside the vocabulary give nothing.

        Args:
            ids: token ids.
            skip_special_tokens: leave special tokens out of the text.
        """
        skip = self._backend.special_ids if skip_special_tokens else frozenset()
        data = b"".join(self._backend.token_bytes(int(i)) for i in ids if i not in skip)
        text = data.decode("utf-8", "replace")
        return text[1:] if self._backend.strip_left and text[:1] == " " else text

    def detokenizer(
        self, prompt_ids: Sequence[int] = (), *, skip_special_tokens: bool = False
    ) -> StreamingDetokenizer:
        """Start decoding a stream of ids.

        Args:
            prompt_ids: what the stream continues, so that its first word keeps its
                space; leave out for text of its own, such as a chat reply.
            skip_special_tokens: leave special tokens out of the text.
        """
        return StreamingDetokenizer(
            self._backend.token_bytes,
            strip_left=self._backend.strip_left,
            prompt_ids=prompt_ids,
            special_ids=self._backend.special_ids,
            skip_special_tokens=skip_special_tokens,
        )

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: Literal[True] = True,
        **kwargs: Any,
    ) -> list[int]: ...

    @overload
    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tokenize: Literal[False],
        **kwargs: Any,
    ) -> str: ...

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        tokenize: bool = True,
        **kwargs: Any,
    ) -> list[int] | str:
        """Turn a chat into a prompt.

        Templates write the special tokens themselves, BOS too, so none are added.

        Args:
            messages: ``{"role": ..., "content": ...}``, oldest first.
            add_generation_prompt: end with the start of the assistant's turn.
            tools: JSON schemas of functions the model may call.
            chat_template: a name or the text of a template instead of the default.
            tokenize: return ids; otherwise text.
            **kwargs: seen by the template, e.g. ``enable_thinking``, ``date_string``.

        Returns:
            Token ids or text.

        Raises:
            ValueError: no template, or the template fails; see ``chat_template.py``.
        """
        text = render(
            choose_template(self.chat_templates, chat_template, bool(tools)),
            messages,
            **{
                **self.special_tokens,
                "add_generation_prompt": add_generation_prompt,
                "tools": tools,
                "documents": None,
                **kwargs,
            },
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text
