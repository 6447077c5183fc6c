"""Read the tokenizer files of a checkpoint folder, all but the vocabulary itself."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..untrusted import parse_json, read_file, read_text
from .chat_template import named_templates
from .tokenizers_backend import AddedToken

# What other tokenizers leave in a folder; named when ours are missing.
_OTHERS = ("*.tiktoken", "tekken.json", "vocab.*", "merges.txt", "*token*", "*.gguf")


#: Ids are 32-bit numbers to the libraries and to MLX.
MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class TokenizerFiles:
    """What a folder says about its tokenizer.

    Attributes:
        vocabulary: ``tokenizer.json`` or ``tokenizer.model``.
        config: tokenizer_config.json.
        special_tokens: ``{"bos_token": "<s>", ...}``.
        extra_special: special tokens without a role.
        added: tokens by id, from tokenizer_config.json or added_tokens.json.
        chat_templates: templates by name.
        model_ids: ``bos_token_id`` and ``eos_token_id`` of generation_config.json,
            else of config.json; lists, empty if neither says.
    """

    vocabulary: Path
    config: dict[str, Any]
    special_tokens: dict[str, str]
    extra_special: list[str]
    added: dict[int, AddedToken]
    chat_templates: dict[str, str]
    model_ids: dict[str, list[int]]


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder.

    Args:
        folder: a checkpoint folder; only the vocabulary must be there.

    Returns:
        Its files' content.

    Raises:
        FileNotFoundError: no folder, or no vocabulary of a known kind in it.
        ValueError: a file is broken; says which.
    """
    vocabulary = _find_vocabulary(folder)
    config_path = folder / "tokenizer_config.json"
    config = _read_object(config_path)
    tokens_map = _read_object(folder / "special_tokens_map.json")
    # A key in tokenizer_config.json counts even when null: Qwen has no BOS.
    declared = {**tokens_map, **config}
    for source in (declared, config.get("extra_special_tokens")):
        if isinstance(source, dict):
            declared = {**source, **declared}
    special = {
        key: content
        for key, value in declared.items()
        if key.endswith("_token") and (content := _content(value)) is not None
    }
    extra = [
        content
        for key in ("additional_special_tokens", "extra_special_tokens")
        for value in _listed(declared.get(key))
        if (content := _content(value)) is not None
    ]
    return TokenizerFiles(
        vocabulary=vocabulary,
        config=config,
        special_tokens=special,
        extra_special=extra,
        added=_read_added(vocabulary, config, {*special.values(), *extra}),
        chat_templates=_read_chat_templates(folder, config),
        model_ids=_read_model_ids(folder),
    )


def _find_vocabulary(folder: Path) -> Path:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"[load_tokenizer] {folder} is not a folder; give the checkpoint folder "
            "that holds tokenizer.json or tokenizer.model"
        )
    for name in ("tokenizer.json", "tokenizer.model"):
        if (folder / name).is_file():
            return folder / name
    found = sorted({path.name for pattern in _OTHERS for path in folder.glob(pattern)})
    raise FileNotFoundError(
        f"[load_tokenizer] {folder} has no tokenizer.json or tokenizer.model; "
        + (
            f"found {', '.join(found[:8])}, which are not read"
            if found
            else "copy them from the original checkpoint"
        )
    )


def _read_object(path: Path) -> dict[str, Any]:
    """A JSON object; empty if there is no such file."""
    if not path.is_file():
        return {}
    data = read_file(path)
    try:
        value = parse_json(data)
    except ValueError as error:  # not JSON or not UTF-8
        raise ValueError(
            f"[load_tokenizer] {path} is not JSON: {error}; was the download complete?"
        ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"[load_tokenizer] {path} holds a JSON object, not a {type(value).__name__}"
        )
    return value


def _listed(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(value: object) -> str | None:
    """The text of a token, which may be a string or an AddedToken object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) and value else None


def _read_added(
    vocabulary: Path, config: dict[str, Any], special: set[str]
) -> dict[int, AddedToken]:
    fields = AddedToken.__dataclass_fields__
    source, added = vocabulary.parent / "tokenizer_config.json", {}
    try:
        if config.get("added_tokens_decoder"):
            for index, token in config["added_tokens_decoder"].items():
                known = {name: token[name] for name in fields if name in token}
                added[int(index)] = AddedToken(**known)
        elif vocabulary.name == "tokenizer.model":  # tokenizer.json has them inside
            source = vocabulary.parent / "added_tokens.json"
            for content, index in _read_object(source).items():
                is_special = content in special
                added[int(index)] = AddedToken(
                    content, normalized=not is_special, special=is_special
                )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ValueError(f"[load_tokenizer] {source}: added tokens: {error}") from None
    for index, token in added.items():
        flags = [getattr(token, name) for name in fields if name != "content"]
        if not 0 <= index <= MAX_ID or not isinstance(token.content, str):
            raise ValueError(f"[load_tokenizer] {source}: added tokens: id {index}")
        if not all(isinstance(flag, bool) for flag in flags):
            raise ValueError(
                f"[load_tokenizer] {source}: added tokens: a flag of id {index} is "
                "neither true nor false"
            )
    return added


def _read_chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Files come before tokenizer_config.json, as in HF."""
    templates = {
        path.stem: read_text(path)
        for path in sorted((folder / "additional_chat_templates").glob("*.jinja"))
    }
    if (path := folder / "chat_template.jinja").is_file():
        return {**templates, "default": read_text(path)}
    path = folder / "chat_template.json"
    value = _read_object(path).get("chat_template")
    if value is None:
        path = folder / "tokenizer_config.json"
        value = config.get("chat_template")
    return {**templates, **named_templates(value, str(path))}


def _read_model_ids(folder: Path) -> dict[str, list[int]]:
    ids: dict[str, list[int]] = {}
    for name in ("generation_config.json", "config.json"):
        path = folder / name
        config = _read_object(path)
        text_config = config.get("text_config")
        if isinstance(text_config, dict):
            config = {**text_config, **config}
        for key in ("bos_token_id", "eos_token_id"):
            value = config.get(key)
            values: list[Any] = value if isinstance(value, list) else [value]
            if value is None or ids.get(key):
                continue
            if not all(type(item) is int and item >= 0 for item in values):
                raise ValueError(
                    f"[load_tokenizer] {path}: {key} is an id or a list of ids, not "
                    f"{str(value)[:80]!r}"
                )
            ids[key] = values
    return ids
