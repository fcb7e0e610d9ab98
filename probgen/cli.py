"""The command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="probgen", description="Deep generative models as Pyro distributions."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser(
        "demo",
        help="learn a prior from digits and infer digits from bad measurements",
        description="Learns a flow prior from the digits of scikit-learn, then infers held-out "
        "digits whose lower half is missing. Writes the model and pictures, prints a table.",
        epilog="example: probgen demo --out demo",
    )
    demo.add_argument("--out", default="demo", help="where to write (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="the seed (default: %(default)s)")
    given = parser.parse_args(arguments)

    from . import demo as demonstration

    demonstration.run(given.out, seed=given.seed)
    return 0
