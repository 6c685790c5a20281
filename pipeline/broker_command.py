"""`penstock broker`: a first try of MQTT without installing one."""

from __future__ import annotations

import importlib
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

_ROOT = __name__.split(".")[0]


def broker(
    port: Annotated[int, typer.Option(min=1, max=65535)] = 1883,
    quiet: Annotated[bool, typer.Option(help="do not print what is published")] = False,
) -> None:
    """Run an MQTT broker for a first try, on 127.0.0.1 only, and print what is published. Keeps nothing."""
    out, err = Console(), Console(stderr=True)

    def on_ready(url: str) -> None:
        err.print(f"[bold green]ready[/]  PENSTOCK_MQTT={url}   (Ctrl-C stops)", highlight=False)

    def on_message(topic: str, text: str) -> None:
        if not quiet:
            out.print(f"[bold]{escape(topic)}[/] {escape(text)}", highlight=False, soft_wrap=True)

    importlib.import_module(f"{_ROOT}.transport.demo_broker").main(port, on_ready, on_message)
