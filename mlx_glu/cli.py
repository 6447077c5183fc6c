"""The ``mlx-glu`` command: results on stdout, everything else on stderr."""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__, blas
from .commands import COMMANDS

DESCRIPTION = """\
Run, convert and study models whose feed-forward layers are gated linear units.

  mlx-glu convert                                   get the default model
  mlx-glu generate --prompt "Why is the sky blue?"  ask it
  mlx-glu chat                                      talk to it
  mlx-glu convert --hf-path ORG/MODEL --mlx-path FOLDER -q
  mlx-glu generate --model FOLDER --prompt "..."
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 2 on a user's mistake, 130 on Ctrl-C."""
    _open_closed_streams()
    # Ended from outside, half-written folders go as they do on Ctrl-C.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        try:
            args = make_parser().parse_args(argv)
            blas.check()
            args.run(args)
        finally:
            # At the interpreter's end a broken pipe could not be caught.
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output left; nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError) as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        print("mlx-glu: interrupted", file=sys.stderr)
        sys.exit(130)


def make_parser() -> argparse.ArgumentParser:
    """The parser with all commands; building it imports nothing heavy."""
    parser = _Parser(
        prog="mlx-glu", description=DESCRIPTION, formatter_class=_CommandsHelp
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.HELP,
            description=command.DESCRIPTION,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_args(sub)
        sub.set_defaults(run=command.run)
    return parser


def _open_closed_streams() -> None:
    """Python has None for a closed stream, and MLX would get its number for a file."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


class _CommandsHelp(argparse.RawDescriptionHelpFormatter):
    """Leaves room for the names of all commands; argparse forgets their indent."""

    def add_argument(self, action: argparse.Action) -> None:
        """Widen the column."""
        super().add_argument(action)
        widest = 4 + max(map(len, COMMANDS))
        self._action_max_length = max(self._action_max_length, widest)


class _Parser(argparse.ArgumentParser):
    """Says a mistake in one line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Exit with 2."""
        self.exit(_fail(f"{message}; see {self.prog} --help"))


def _fail(message: str) -> int:
    print("mlx-glu: error:", "; ".join(message.splitlines()), file=sys.stderr)
    return 2
