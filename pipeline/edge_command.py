"""`penstock edge`: the command line of the edge client."""

from __future__ import annotations

import importlib
import signal
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from . import stopping
from .clock import MonotonicClock
from .command_words import option
from .secret import resolve
from .units import parse_rate, parse_video

_ROOT = __name__.split(".")[0]
err = Console(stderr=True)


_FAILURES = {"restart": "was restarted", "failed": "is off"}  # events of the session, docs/protocol.md


class Codec(StrEnum):
    h264 = "h264"
    vp8 = "vp8"


class Send(StrEnum):
    regions = "regions"
    crop = "crop"


def edge(
    to: Annotated[str, typer.Option(help="the server's URL", envvar="PENSTOCK_TO")],
    camera: Annotated[
        str,
        typer.Option(help="/dev/video0, a file, a URL (rtsp, http) or synthetic", envvar="PENSTOCK_CAMERA"),
    ] = "synthetic",
    graph: Annotated[str, typer.Option(help="which graph; default: the server's first")] = "",
    token: Annotated[
        str,
        typer.Option(
            envvar="PENSTOCK_TOKEN", help="the server's token; env:NAME and file:PATH too", show_default=False
        ),
    ] = "",
    codec: Annotated[Codec, typer.Option(help="h264 gives the regions more")] = Codec.h264,
    send: Annotated[
        Send,
        typer.Option(
            help="regions: the whole picture, finer where it matters; crop: only what matters, and all else small "
            "and once a second, for half the CPU",
            envvar="PENSTOCK_SEND",
        ),
    ] = Send.regions,
    video: Annotated[
        str, typer.Option(help="size and most pictures a second; the far end may want fewer")
    ] = "640x480@30",
    rate: Annotated[str, typer.Option(help="most bits a second, as 500k; 0: what the path carries")] = "0",
    once: Annotated[
        bool, typer.Option("--once", help="end with the file instead of playing it again")
    ] = False,
    ask: Annotated[
        list[str] | None, typer.Option(help="a question for the graph, once connected; may be repeated")
    ] = None,
) -> None:
    """Send a camera to a server from a machine without a browser: bits go where the model looks.

    Connects again when the connection is lost. The answers are printed; Ctrl-C stops.
    """
    form = option("--video", parse_video, video)
    most_bps = 0 if rate == "0" else option("--rate", parse_rate, rate)
    client = importlib.import_module(f"{_ROOT}.transport.edge")
    options = client.EdgeOptions(
        url=to,
        camera=str(Path(camera).expanduser()) if camera.startswith("~") else camera,
        graph=graph,
        token=resolve(token) if token else "",
        codec=codec.value,
        form=form,
        most_bps=most_bps,
        once=once,
        ask=tuple(ask or ()),
        send=send.value,
    )
    events = client.EdgeEvents(connected=_connected, lost=_lost, message=_message, crops=_crops)
    # as a service does: SIGTERM ends it in order
    stopping.run(client.Edge(options, MonotonicClock(), events).run(), orderly=(signal.SIGTERM,))


def _connected(session: str) -> None:
    err.print(f"[bold green]connected[/]  session {session}   (Ctrl-C stops)", highlight=False)


def _lost(why: str, pause: float) -> None:
    err.print(
        f"[yellow]not connected[/]  {_plain(why)}; again in {pause:.0f} s", highlight=False, soft_wrap=True
    )


def _crops(cropping: bool) -> None:
    err.print(
        "[green]crop[/]       what matters is sent sharp, the rest small"
        if cropping
        else "[yellow]whole[/]      whole pictures are sent: nothing is known to matter now",
        highlight=False,
    )


def _message(message: Mapping[str, Any]) -> None:
    if message.get("type") == "text" and message.get("kind") != "partial" and message.get("text"):
        print(f"{message.get('from')}: {message.get('text')}", flush=True)
    elif message.get("type") == "event" and message.get("name") in _FAILURES:
        what, fields = _FAILURES[message["name"]], message.get("fields") or {}
        words = f"stage {message.get('from')} failed and {what}: {fields.get('error')}"
        err.print(f"[yellow]server:[/] {_plain(words)}", highlight=False, soft_wrap=True)
    elif message.get("type") == "error":
        err.print(
            f"[yellow]server:[/] {_plain(str(message.get('message')))}", highlight=False, soft_wrap=True
        )


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
