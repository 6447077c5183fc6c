"""One module a command: ``HELP``, ``DESCRIPTION``, ``add_args`` and ``run``."""

from types import ModuleType

from . import (
    bench,
    chat,
    compare,
    convert,
    explain,
    generate,
    inspect,
    perplexity,
    science,
    variants,
    verify,
)

COMMANDS: dict[str, ModuleType] = {
    "convert": convert,
    "generate": generate,
    "chat": chat,
    "perplexity": perplexity,
    "compare": compare,
    "inspect": inspect,
    "explain": explain,
    "variants": variants,
    "verify": verify,
    "bench": bench,
    "science": science,
}
