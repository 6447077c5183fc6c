"""``mlx-glu variants``: the GLU family."""

import argparse

HELP = "list the gated linear units"
DESCRIPTION = "List the gated linear units, y = phi(gate) * psi(up), and their sources."


def add_args(parser: argparse.ArgumentParser) -> None:
    """It has no flags."""


def run(args: argparse.Namespace) -> None:
    """Print the table."""
    from ..tables import aligned
    from ..variants import VARIANTS

    rows = [("variant", "phi(gate)", "psi(up)", "hidden_act", "source")]
    for variant in VARIANTS.values():
        acts = ", ".join(variant.hf_acts)
        rows.append((variant.name, variant.phi, variant.psi, acts, variant.source))
    print(*aligned(rows), sep="\n")
