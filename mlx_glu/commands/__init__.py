"""One module a command: ``HELP``, ``DESCRIPTION``, ``add_args`` and ``run``."""

from types import ModuleType

from . import bench, chat, convert, explain, generate, variants, verify

COMMANDS: dict[str, ModuleType] = {
    "convert": convert,
    "generate": generate,
    "chat": chat,
    "explain": explain,
    "variants": variants,
    "verify": verify,
    "bench": bench,
}
