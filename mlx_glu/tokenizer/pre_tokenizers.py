"""How byte-level BPE vocabularies split text, by the names that GGUF files use.

A name stands for the regular expressions of the model's own tokenizer.json, applied
one after the other: each cuts the pieces of the one before. Source of the names and
flags: llama.cpp, src/llama-vocab.cpp at 00ad355; of the expressions: the models'
tokenizer.json files on the hub, which that file quotes.
"""

from typing import NamedTuple


class PreTokenizer(NamedTuple):
    """A way to split text.

    Attributes:
        regexes: Oniguruma expressions, in order.
        ignore_merges: a piece that is a token stays whole, whatever the merges say.
        add_bos: a file without ``add_bos_token`` means yes.
        nfc: the model's tokenizer.json composes characters first (llama.cpp does not).
    """

    regexes: tuple[str, ...]
    ignore_merges: bool = False
    add_bos: bool = False
    nfc: bool = False


_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The expression of OpenAI's cl100k; models differ in how many digits go together.
_CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_THREE_DIGITS = _CL100K.replace("DIGITS", "{1,3}")
_ONE_DIGIT = _CL100K.replace("DIGITS", "")

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# Of OpenAI's o200k: words end before an inner capital.
_O200K = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+SUFFIX"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*SUFFIX"
    r"|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TEKKEN = _O200K.replace("SUFFIX", "").replace("DIGITS", "")
_GPT4O = _O200K.replace("SUFFIX", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?").replace(
    "DIGITS", "{1,3}"
)
# llama.cpp's choice for files that name none.
_DEFAULT = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")

_GROUPS = {
    "default": PreTokenizer(_DEFAULT),
    "falcon": PreTokenizer((r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]")),
    "gpt-2 phi-2 mpt olmo jais trillion exaone4 modern-bert": PreTokenizer((_GPT2,)),
    "smollm starcoder refact command-r codeshell exaone minerva-7b": PreTokenizer(
        (r"\p{N}", _GPT2)
    ),
    "llama-bpe llama3 llama-v3 falcon3 lfm2": PreTokenizer(
        (_THREE_DIGITS,), ignore_merges=True, add_bos=True
    ),
    "dbrx smaug-bpe glm4 chatglm-bpe": PreTokenizer((_THREE_DIGITS,)),
    "qwen2": PreTokenizer((_ONE_DIGIT,), nfc=True),
    "deepseek-r1-qwen stablelm2 megrez": PreTokenizer((_ONE_DIGIT,)),
    "tekken": PreTokenizer((_TEKKEN,), ignore_merges=True, add_bos=True),
    "gpt-4o llama4": PreTokenizer((_GPT4O,)),
}

PRE_TOKENIZERS = {name: pre for names, pre in _GROUPS.items() for name in names.split()}
