"""Which tokens end generation."""

from collections.abc import Mapping

from .files import TokenizerFiles
from .sentencepiece_backend import SentencePieceBackend
from .tokenizers_backend import TokenizersBackend

# Tokens that end a turn. A chat model must stop at the one its template writes, even
# where eos_token_id forgets it.
END_OF_TURN = (
    "<end_of_turn>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|eot|>",
    "<|end_of_turn|>",
    "<turn|>",
)


def find_eos_token_ids(
    files: TokenizerFiles,
    special_tokens: Mapping[str, str],
    backend: TokenizersBackend | SentencePieceBackend,
) -> frozenset[int]:
    """Collect the ids that end generation.

    First of these that says: generation_config.json, config.json, the tokenizer's
    ``eos_token``. Besides, each of ``END_OF_TURN`` that is an added token of the
    vocabulary and stands in a chat template.

    Args:
        files: what the folder says.
        special_tokens: ``{"eos_token": "</s>", ...}``.
        backend: the vocabulary.

    Returns:
        The ids; none if the folder names no end.
    """
    ids = set(files.model_ids.get("eos_token_id", []))
    own = backend.token_to_id(special_tokens.get("eos_token", ""))
    if not ids and own is not None:
        ids.add(own)
    for token in END_OF_TURN:
        index = backend.token_to_id(token)
        if index is None or index not in backend.added_ids:
            continue
        # In gpt-oss's format <|end|> ends a message; more of the turn may follow.
        if token == "<|end|>" and backend.token_to_id("<|channel|>") is not None:
            continue
        if any(token in template for template in files.chat_templates.values()):
            ids.add(index)
    return frozenset(ids)
