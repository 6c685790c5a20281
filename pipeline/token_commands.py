"""`penstock token …`: the access tokens of a server."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, cast, get_args

import typer
from rich.console import Console
from rich.table import Table

from .clock import SECOND, MonotonicClock
from .tokens import Scope, TokenFile
from .units import parse_duration

app = typer.Typer(help="Make, list and revoke the access tokens of a server.", no_args_is_help=True)
File = Annotated[
    Path | None,
    typer.Option(
        "--tokens",
        "--file",
        envvar="PENSTOCK_TOKENS",
        help="the token file, as `penstock serve` takes it; default ~/.config/penstock/tokens.json",
    ),
]
Scopes = get_args(Scope)


def default_file() -> Path:
    """As the XDG base directories have it."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "penstock/tokens.json"


def _file(path: Path | None) -> TokenFile:
    return TokenFile(path or default_file(), MonotonicClock().wall)


def _seconds(text: str, name: str) -> int:
    days = text.removesuffix("d")
    if text.endswith("d") and days.isdecimal():
        return int(days) * 86_400
    try:
        return parse_duration(text) // SECOND
    except ValueError as e:
        raise typer.BadParameter(
            f"{text!r} is no time; write it as 30d, 12h or 90min", param_hint=name
        ) from e


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="whose it is, as kitchen-tablet")],
    scope: Annotated[
        list[str] | None,
        typer.Option(help="view, talk, control or admin; may be repeated; default: talk"),
    ] = None,
    expires: Annotated[str, typer.Option(help="how long it lasts, as 30d or 12h; 'never'")] = "90d",
    sessions: Annotated[int, typer.Option(min=0, help="at a time with it; 0: the server's limit")] = 0,
    longest: Annotated[
        str, typer.Option(help="that a session of it may last, as 2h; 0s: the server's limit")
    ] = "0s",
    rate: Annotated[int, typer.Option(min=0, help="requests a second; 0: the server's limit")] = 0,
    file: File = None,
) -> None:
    """Make a token and print it, for the only time: the file keeps a digest."""
    scopes = tuple(scope or ["talk"])
    for given in scopes:
        if given not in Scopes:
            raise typer.BadParameter(
                f"{given!r} is no scope; there are: {', '.join(Scopes)}", param_hint="--scope"
            )
    lasts = 0 if expires == "never" else _seconds(expires, "--expires")
    if expires != "never" and lasts <= 0:
        raise typer.BadParameter("write a time, as 30d or 12h, or never", param_hint="--expires")
    tokens = _file(file)
    secret = tokens.create(
        name,
        cast("tuple[Scope, ...]", tuple(dict.fromkeys(scopes))),
        lasts,
        sessions=sessions,
        longest_s=_seconds(longest, "--longest"),
        rate=rate,
    )
    typer.echo(secret)
    typer.echo(f"kept in {tokens.path}; serve with:  penstock serve --tokens {tokens.path}", err=True)


@app.command(name="list")
def list_tokens(file: File = None) -> None:
    """All tokens of the file, without the secrets."""
    tokens = _file(file)
    found = tokens.tokens()
    if not found:
        here = "has no tokens" if tokens.path.exists() else "is not there; `penstock token create` makes it"
        typer.echo(f"{tokens.path} {here}", err=True)
        return
    now = MonotonicClock().wall() // SECOND
    table = Table("name", "scopes", "created", "expires", "limits", box=None, header_style="bold")
    for token in found:
        limits = [
            f"{token.sessions} sessions" if token.sessions else "",
            f"{token.longest_s} s each" if token.longest_s else "",
            f"{token.rate}/s" if token.rate else "",
        ]
        until = _day(token.expires) if token.expires else "never"
        if not token.is_valid(now):
            until = f"[red]{until}: expired[/]"
        table.add_row(
            token.name, " ".join(token.scopes), _day(token.created), until, ", ".join(filter(None, limits))
        )
    Console().print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="as `penstock token list` has it")], file: File = None
) -> None:
    """Void a token; a running server ends its sessions within seconds."""
    _file(file).revoke(name)
    typer.echo(f"revoked {name}", err=True)


def _day(at_s: int) -> str:
    try:
        return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M")
    except (OverflowError, ValueError, OSError):
        return str(at_s)
