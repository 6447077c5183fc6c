"""One module a command: ``HELP``, ``DESCRIPTION``, ``add_args`` and ``run``."""

from types import ModuleType

from . import chat, convert, generate, variants, verify

COMMANDS: dict[str, ModuleType] = {
    "convert": convert,
    "generate": generate,
    "chat": chat,
    "variants": variants,
    "verify": verify,
}
