"""The command line: learn a distribution from a file, draw from it, score data with it."""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import models, plots
from ..core import Density, LazyDistribution, load
from ..core.contexts import index
from ..metrics import bits_per_dimension
from ..training.batches import split_rows
from ..training.fitting import fit
from ..training.levels import DiscreteDataWarning, describe_levels
from . import tables as files

__all__ = ["main"]

# Their contexts are labels, or they have no density to score rows by.
OTHERS = ("ColdDiffusion", "EnergyModel", "JointEnergyModel", "SemiSupervisedVAE")
RECIPES: dict[str, type[LazyDistribution]] = {  # those of rows of features
    name.lower(): recipe
    for name in models.__all__
    if "features" in inspect.signature((recipe := getattr(models, name)).__init__).parameters
    and name not in OTHERS
}
PANELS = 8  # columns in a picture
SHAPED = ("features", "context")  # arguments that the data decide
FAILURES = (
    ArithmeticError,
    ImportError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
# Arguments that are modules or samplers, or have the name of one of fit.
OBJECTS = ("encoder", "network", "prior", "sampler", "steps")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Arguments:
        arguments: The arguments; by default the program's own.

    Returns:
        The exit code: 0, 2 after a mistake of the user, 130 after an interrupt.
    """
    try:
        given = parser().parse_args(arguments)
        given.run(given)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except FAILURES as error:
        print(f"probgen: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="probgen", description="Deep generative models as Pyro distributions."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    learn = command(
        commands,
        "fit",
        "learn a distribution from a file of data",
        "probgen fit nsf data.csv --out run --steps 2000 --transforms 5",
    )
    recipes = learn.add_subparsers(dest="recipe", required=True, metavar="model")
    for name, recipe in RECIPES.items():
        summary = plain((inspect.getdoc(recipe) or "").split("\n")[0])
        add_fit(command(recipes, name, summary, f"probgen fit {name} data.csv --out run"), recipe)

    draw = command(
        commands,
        "sample",
        "draw from a learned distribution",
        "probgen sample run --count 1000 --out draws.npy",
    )
    draw.add_argument("folder", help="the folder that fit wrote")
    draw.add_argument("--count", type=int, default=1000, help="how many draws")
    draw.add_argument("--out", required=True, help="the .npy or .csv file to write")
    draw.add_argument("--context", help="one context, as numbers with commas")
    draw.add_argument("--picture", help="a .png or .pdf file to draw: all pairs of columns")
    draw.add_argument("--seed", type=int, default=0, help="the seed")
    draw.set_defaults(run=run_sample)

    score = command(
        commands,
        "score",
        "write the log density of data under a learned distribution",
        "probgen score run data.csv --out scores.npy",
    )
    score.add_argument("folder", help="the folder that fit wrote")
    score.add_argument("data", help="a .npy, .npz or .csv file, a row per item")
    score.add_argument("--out", required=True, help="the .npy or .csv file to write")
    score.set_defaults(run=run_score)

    demo = command(
        commands,
        "demo",
        "learn a prior from digits and infer digits from bad measurements",
        "probgen demo --out demo",
    )
    demo.add_argument("--out", default="demo", help="the folder to write")
    demo.add_argument("--seed", type=int, default=0, help="the seed")
    demo.set_defaults(run=run_demo)
    return top


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Shows those defaults that say something, and short names of values."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        silent = action.default is None or action.default is False
        return action.help if silent else super()._get_help_string(action)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        return {int: "N", float: "NUMBER"}.get(action.type, "TEXT")  # type: ignore[call-overload]


def command(commands: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:].rstrip(".") + ".",
        epilog=f"example: {example}",
        formatter_class=Help,
    )


def add_fit(options: argparse.ArgumentParser, recipe: type[LazyDistribution]) -> None:
    """Add what `fit` needs, then the recipe's own arguments, read from its signature."""
    options.add_argument("data", help="a .npy, .npz or .csv file, a row per item")
    options.add_argument("--out", required=True, help="the folder to write")
    options.add_argument("--columns", help="the columns to learn, with commas; all by default")
    options.add_argument("--context", help="the columns to condition on, with commas")
    options.add_argument("--steps", type=int, default=1000, help="the number of steps")
    options.add_argument("--batch-size", type=int, default=256, help="the data per step")
    options.add_argument("--lr", type=float, default=1e-3, help="the learning rate")
    options.add_argument("--validation", type=float, help="the fraction to hold out")
    options.add_argument("--seed", type=int, default=0, help="the seed")
    options.add_argument("--resume", action="store_true", help="go on with the run in --out")
    own = options.add_argument_group("options of the model")
    meaning = described(recipe)
    for name, parameter in inspect.signature(recipe.__init__).parameters.items():
        if name in ("self", *SHAPED, *OBJECTS):
            continue
        kind: dict[str, Any] = {
            "type": int if parameter.default is None else type(parameter.default)
        }
        if parameter.default is None:
            kind = {"type": int}
        if isinstance(parameter.default, bool):
            kind = {"action": argparse.BooleanOptionalAction}
        elif isinstance(parameter.default, tuple):
            kind = {"type": sizes, "metavar": "N,N"}
        flag = f"--{name.replace('_', '-')}"
        own.add_argument(flag, default=parameter.default, help=meaning[name], **kind)
    options.set_defaults(run=run_fit)


def described(recipe: type) -> dict[str, str]:
    """Return the meaning of each argument, from the docstring."""
    text = (inspect.getdoc(recipe) or "").partition("Arguments:\n")[2]
    block = text.partition("\n\n")[0]
    entries = re.findall(r"^    (\w+): (.*(?:\n     .*)*)", block, re.MULTILINE)
    return {name: said[0].lower() + plain(said[1:]) for name, said in entries}


def plain(text: str) -> str:
    """Text without the marks of its markup, on one line, as help is shown."""
    bare = re.sub(r":\w+:|[`~\\]", "", " ".join(text.split()))
    return bare.replace("%", "%%").rstrip(".")


def sizes(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def split(text: str | None) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()] if text else []


def run_fit(given: argparse.Namespace) -> None:
    folder = Path(given.out)
    table = read(given.data)
    conditions = split(given.context)
    columns = split(given.columns) or [n for n in table.names if n not in conditions]
    if both := [name for name in columns if name in conditions]:
        raise ValueError(
            f"Expected --columns and --context without a column in common, got {', '.join(both)}."
        )
    if not columns:
        raise ValueError(f"Expected a column to learn besides --context, got {given.context}.")
    x, context = table.select(columns), table.select(conditions) if conditions else None
    recipe = RECIPES[given.recipe]
    takes = inspect.signature(recipe.__init__).parameters
    names = [n for n in takes if n not in ("self", *SHAPED, *OBJECTS)]
    options = {name: getattr(given, name) for name in names}
    if "context" in takes:
        options["context"] = len(conditions)
    elif conditions:
        raise ValueError(f"Expected no --context, since {given.recipe} takes none.")
    if is_saved(folder) and not given.resume:
        raise ValueError(f"{folder} holds a run. Add --resume to go on with it, or change --out.")
    if given.resume and not is_saved(folder):
        raise ValueError(
            f"Expected a run to go on with in {folder}, found none. Nothing was saved there: start "
            f"without --resume."
        )
    record, kept = {"columns": columns, "context": conditions}, folder / "columns.json"
    if given.resume and kept.exists():
        before = columns_of(given.out)
        for name, now in record.items():
            if before[name] != now:
                raise ValueError(
                    f"Expected the run's --{name} in {folder}, {', '.join(before[name]) or 'none'}"
                    f", got {', '.join(now) or 'none'}."
                )
    torch.manual_seed(given.seed)
    module = recipe(features=len(columns), **options)  # type: ignore[call-arg]
    if not given.resume:
        say_levels(module, x, context, columns)
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(kept, json.dumps(record))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DiscreteDataWarning)  # which was said by name
            fit(
                module,
                x,
                context=context,
                validation=given.validation,
                steps=given.steps,
                batch_size=given.batch_size,
                lr=given.lr,
                seed=given.seed,
                checkpoint=folder,
            )
    except KeyboardInterrupt:
        if is_saved(folder):
            print(f"The run in {folder} can be resumed with --resume.", file=sys.stderr)
        else:
            print(f"Nothing was saved in {folder}: start again.", file=sys.stderr)
        raise
    finally:
        if not is_saved(folder):
            kept.unlink()
    print(f"{given.recipe} of {', '.join(columns)} from {len(x)} rows, saved in {folder}")
    if given.validation is not None:
        rows = split_rows(len(x), given.validation, given.seed)[0]
        x, context = x[rows], index(context, rows)
        print("of the rows held out:", end=" ")
    print(summary(log_density(module, x, context), module, len(columns)))


def read(path: str) -> files.Table:
    """Read a table, and report how it was understood."""
    table = files.read(path)
    for note in table.notes:
        print(note)
    return table


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a run that can go on."""
    return (folder / "training" / "model.json").is_file()


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text)
    os.replace(new, file)


def say_levels(
    module: LazyDistribution, x: Tensor, context: Tensor | None, columns: list[str]
) -> None:
    """Says which columns hold levels, if the module is continuous."""
    with torch.no_grad():
        discrete = module(index(context, slice(0, 1))).support.is_discrete
    said = None if discrete else describe_levels(x, columns)
    if said is not None:
        print(f"probgen: {said}", file=sys.stderr)


def run_sample(given: argparse.Namespace) -> None:
    module, record = load(given.folder), columns_of(given.folder)
    if given.count < 1:
        raise ValueError(f"Expected a positive --count, got {given.count}.")
    context = None
    if given.context is not None:
        if not all(files.is_number(part) for part in split(given.context)):
            raise ValueError(f"Expected --context as numbers with commas, got {given.context}.")
        context = torch.tensor([float(part) for part in split(given.context)])
    torch.manual_seed(given.seed)
    with torch.no_grad():
        draws = module(context).sample((given.count,))
    files.write(given.out, draws, record["columns"])
    print(f"{given.count} draws of {', '.join(record['columns'])} in {given.out}")
    if given.picture is not None:
        shown = record["columns"][:PANELS]
        axs = plots.corner(draws[:, : len(shown)], names=shown)
        axs[0, 0].figure.savefig(given.picture)
        print(f"a picture of {', '.join(shown)} in {given.picture}")


def run_score(given: argparse.Namespace) -> None:
    module, record = load(given.folder), columns_of(given.folder)
    table = read(given.data)
    x = table.select(record["columns"])
    context = table.select(record["context"]) if record["context"] else None
    scores = log_density(module, x, context)
    files.write(given.out, scores, ["log_density"])
    print(summary(scores, module, x.shape[1]))
    print(f"{len(scores)} log densities in {given.out}")


def run_demo(given: argparse.Namespace) -> None:
    from . import demo

    demo.run(given.out, seed=given.seed)


def columns_of(folder: str) -> dict[str, list[str]]:
    file = Path(folder) / "columns.json"
    if not file.is_file():
        raise FileNotFoundError(f"Expected a folder that `probgen fit` wrote, got {folder}.")
    try:
        record = json.loads(file.read_text())
        return {name: [str(column) for column in record[name]] for name in ("columns", "context")}
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{file} is damaged: run `probgen fit` again.") from None


def log_density(module: LazyDistribution, x: Tensor, context: Tensor | None) -> Tensor:
    parts = []
    with torch.no_grad():
        for start in range(0, len(x), 1024):
            part = slice(start, start + 1024)
            given = context[part] if context is not None else None
            parts.append(module(given).log_prob(x[part]))
    return torch.cat(parts)


def summary(scores: Tensor, module: LazyDistribution, dimensions: int) -> str:
    kind = (
        "log density"
        if module.density is Density.EXACT
        else f"log density ({module.density.value})"
    )
    if len(scores) < 2:
        return f"{kind} {float(scores[0]):.4f} nats"
    bits = bits_per_dimension(scores, dimensions)
    nats = math.log(2) * dimensions
    return (
        f"mean {kind} {-bits.value * nats:.4f} +- {bits.se * nats:.4f} nats, "
        f"{bits.value:.4f} bits per dimension, {len(scores)} rows"
    )
