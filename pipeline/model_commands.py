"""`penstock models …`: public checkpoints for the stages that take them, brought here once, offline afterwards."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table

from .stage import StageError

_ROOT = __name__.split(".")[0]

app = typer.Typer(help="Public checkpoints: list, info, pull, path, remove.", no_args_is_help=True)
out = Console()
err = Console(stderr=True)

Name = Annotated[str, typer.Argument(help="as `penstock models list` names it")]


def _registry() -> Any:
    return importlib.import_module(f"{_ROOT}.models.registry")


def _card(name: str) -> Any:
    try:
        return _registry().card(name)
    except ValueError as e:
        raise StageError(str(e)) from e


def _size(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


@app.command("list")
def list_() -> None:
    """All that can be pulled, and what is here already."""
    registry = _registry()
    table = Table(box=None, header_style="bold")
    for column in ("model", "for", "size", "here"):
        table.add_column(column, no_wrap=True)
    table.add_column("licence")  # the one that may wrap: rich narrows it before it cuts a name
    for card in registry.cards().values():
        there = "[green]yes[/]" if registry.held(card.name) else ""
        table.add_row(card.name, card.stage, f"{card.gb:g} GB", there, card.licence)
    out.print(table)


@app.command()
def info(
    name: Name,
    verify: Annotated[
        bool, typer.Option("--verify", help="read all files and compare their SHA-256")
    ] = False,
) -> None:
    """One model: where it comes from, its licence, what it needs, and what of it is here."""
    registry, card = _registry(), _card(name)
    lines = [
        f"[bold]{card.name}[/]  {card.about}",
        f"stage    {card.stage}",
        f"licence  {card.licence}",
        f"size     about {card.gb:g} GB",
        f"needs    {card.needs}",
    ]
    lines += [f"from     https://huggingface.co/{part.hub}  {', '.join(part.files)}" for part in card.parts]
    try:
        files = registry.held(name)
        state = "not here" if not files else f"{registry.path(name)}  ({_size(sum(f.size for f in files))})"
    except ValueError as e:
        raise StageError(str(e)) from e
    out.print("\n".join([*lines, f"here     {state}"]), highlight=False, soft_wrap=True)
    if not (verify and files):
        return
    with _bar() as bar:
        task = bar.add_task("checking", total=sum(f.size for f in files))
        bad = registry.damaged(name, _advance(bar, task))
    if bad:
        raise StageError(f"damaged: {', '.join(bad)}: penstock models pull {name}")
    out.print("[green]ok[/]       every file is as it was pulled")


@app.command()
def pull(name: Name) -> None:
    """Bring a model here and check it. Pull again to go on after a break, or to take a newer one."""
    card = _card(name)
    try:
        hub_side = importlib.import_module(f"{_ROOT}.models.pull")
        hub = hub_side.HuggingFace()
        files = hub_side.wanted(card, hub)
    except ModuleNotFoundError as e:
        raise StageError(f"pulling needs the package {e.name!r}: pip install 'penstock[hub]'") from e
    except (ValueError, OSError) as e:
        raise StageError(str(e)) from e
    total = sum(f.size for f in files)
    err.print(f"{card.name}  {len(files)} files, {_size(total)}; licence: {card.licence}", highlight=False)
    try:
        with _bar() as bar:
            task = bar.add_task(card.name, total=total)
            folder = hub_side.pull(card, files, hub, _advance(bar, task))
    except (ValueError, OSError) as e:
        raise StageError(str(e)) from e
    except KeyboardInterrupt:
        err.print(f"stopped; go on with: penstock models pull {name}")
        raise
    out.print(f"[green]ready[/]  {folder}", highlight=False, soft_wrap=True)


@app.command()
def path(name: Name) -> None:
    """The folder of a model that is here, for scripts."""
    _card(name)
    try:
        print(_registry().path(name))
    except ValueError as e:
        raise StageError(str(e)) from e


@app.command()
def remove(name: Name, yes: Annotated[bool, typer.Option("--yes", "-y", help="do not ask")] = False) -> None:
    """Delete a model's files."""
    _card(name)
    folder = _registry().home() / name
    if not yes:
        typer.confirm(f"delete {folder}?", abort=True)
    try:
        freed = _registry().remove(name)
    except ValueError as e:
        raise StageError(str(e)) from e
    out.print(f"removed {name}: {_size(freed)} freed", highlight=False)


def _advance(bar: Progress, task: TaskID) -> Callable[[int], None]:
    def more(count: int) -> None:
        bar.advance(task, count)

    return more


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, TimeRemainingColumn(), console=err)
