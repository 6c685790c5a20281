"""The command line: serve, run, check, graph, stages, netlab."""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import Mapping
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from . import (
    broker_command,
    edge_command,
    inspect_commands,
    library,
    logs,
    model_commands,
    notify,
    service_commands,
    stopping,
    token_commands,
)
from .command_words import Commands, option
from .errors import GraphError
from .stage import StageError
from .units import parse_duration

_ROOT = __name__.split(".")[0]

app = typer.Typer(
    cls=Commands,
    help="Live AI on audio and video: graphs of streaming stages behind WebRTC.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(service_commands.app, name="service")
inspect_commands.register(app)
app.add_typer(token_commands.app, name="token")
app.command()(broker_command.broker)
app.command()(edge_command.edge)
app.add_typer(model_commands.app, name="models")
out = Console()
err = Console(stderr=True)


class Picture(StrEnum):
    text = "text"
    mermaid = "mermaid"
    dot = "dot"


def _version(value: bool) -> None:
    if value:
        try:
            print(f"penstock {version('penstock')}")
        except PackageNotFoundError:
            print("penstock (not installed)")
        raise typer.Exit


@app.callback()
def common(
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
    log_json: Annotated[
        bool | None, typer.Option("--log-json/--log-text", help="default: JSON where stderr is no terminal")
    ] = None,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print it")] = False,
) -> None:
    try:
        logs.setup(log_level, log_json)
    except ValueError as e:
        raise typer.BadParameter(str(e), param_hint="--log-level") from e


@app.command()
def serve(
    graphs: Annotated[
        list[str] | None,
        typer.Argument(
            help="graph files or names; default: those of the service's folder, else all embedded"
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="address to listen on; other than loopback needs a token")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one")] = 8080,
    token: Annotated[
        str, typer.Option(envvar="PENSTOCK_TOKEN", help="clients must send it as Bearer", show_default=False)
    ] = "",
    tokens: Annotated[
        Path | None,
        typer.Option(envvar="PENSTOCK_TOKENS", help="file of `penstock token create`: named, scoped tokens"),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(envvar="PENSTOCK_CONFIG", help="YAML of these settings and more (docs/api.md)"),
    ] = None,
    max_sessions: Annotated[
        int | None, typer.Option(min=1, max=1000, help="more get 503; default 16")
    ] = None,
    per_client: Annotated[
        int | None, typer.Option(min=1, help="sessions, and viewers, from one address; default 8")
    ] = None,
    max_viewers: Annotated[
        int | None, typer.Option(min=0, help="who watch running sessions by WHEP; default 64")
    ] = None,
    longest: Annotated[
        str | None, typer.Option(help="that a session may last, as 2h; default: any time")
    ] = None,
    resume: Annotated[
        str | None,
        typer.Option(help="that a client which was lost may take to come back; default 30s, 0s: none"),
    ] = None,
    ice_server: Annotated[
        list[str] | None,
        typer.Option(
            envvar="PENSTOCK_ICE_SERVERS", help="stun:HOST or turn:HOST?transport=udp; may be repeated"
        ),
    ] = None,
    turn_secret: Annotated[
        str | None,
        typer.Option(
            envvar="PENSTOCK_TURN_SECRET",
            help="env:NAME, file:PATH or cred:NAME, shared with the TURN server",
        ),
    ] = None,
    public_ip: Annotated[
        list[str] | None, typer.Option(help="an address that leads here through a 1:1 NAT, as in a cloud")
    ] = None,
    allow_origin: Annotated[
        list[str] | None, typer.Option(help="pages of this origin may call, as https://app.example.org")
    ] = None,
    public_host: Annotated[
        list[str] | None, typer.Option(help="the name under which a proxy in front makes this server public")
    ] = None,
    trusted_proxy: Annotated[
        list[str] | None,
        typer.Option(help="network of proxies whose X-Forwarded-For is believed, as 10.0.0.0/8"),
    ] = None,
    traces: Annotated[
        Path | None,
        typer.Option(help="keep the flight recorder's trace of sessions where a stage fails here"),
    ] = None,
    uplink: Annotated[
        str | None, typer.Option(help="bits a second that all clients may send, as 4M; divided by worth")
    ] = None,
    downlink: Annotated[
        str | None, typer.Option(help="bits a second that all clients are sent; sound and text first")
    ] = None,
    drain: Annotated[str, typer.Option(help="what running sessions get when told to stop (SIGTERM)")] = "10s",
    start: Annotated[
        list[str] | None,
        typer.Option(help="a graph of own sources that runs all the time; may be repeated"),
    ] = None,
) -> None:
    """Serve graphs to browsers and other WebRTC clients; the page is at http://127.0.0.1:8080."""
    plans = library.load_all(graphs or library.configured())
    drain_ns = option("--drain", parse_duration, drain)
    try:
        sockets = notify.listen_sockets()
    except ValueError as e:
        raise StageError(str(e)) from e
    daemon = importlib.import_module(f"{_ROOT}.transport.daemon")
    flags: dict[str, object] = {
        "tokens": tokens,
        "max_sessions": max_sessions,
        "per_client": per_client,
        "max_viewers": max_viewers,
        "longest": longest,
        "resume": resume,
        "ice_server": ice_server,
        "turn_secret": turn_secret,
        "public_ip": public_ip,
        "allow_origin": allow_origin,
        "public_host": public_host,
        "trusted_proxy": trusted_proxy,
        "traces": traces,
        "uplink": uplink,
        "downlink": downlink,
    }

    def on_ready(url: str, broken: Mapping[str, str]) -> None:
        able = ", ".join(name for name in plans if name not in broken)
        told = f"[bold green]ready[/]  {able}" if able else "[bold red]no graph can start[/]"
        err.print(f"{told}  →  [bold]{url}[/]   (Ctrl-C stops)", highlight=False, soft_wrap=True)
        if broken:
            err.print(
                f"[bold red]cannot start[/]  {', '.join(broken)}: see the errors above; mend what they name, then "
                "send SIGHUP or open a session",
                highlight=False,
                soft_wrap=True,
            )

    stopping.run(
        daemon.serve(
            plans,
            host=host,
            port=port,
            token=token or None,
            config=config,
            flags={name: value for name, value in flags.items() if value is not None and value != []},
            drain=drain_ns,
            sockets=sockets,
            start=start or (),
            on_ready=on_ready,
        )
    )


@app.command()
def run(
    graph: Annotated[str, typer.Argument(help="a graph file or an embedded graph's name")],
    sources: Annotated[
        list[str] | None,
        typer.Option("--in", help="one file, URL (rtsp, http), device (/dev/video0) or synthetic:10s"),
    ] = None,
    sinks: Annotated[
        list[str] | None,
        typer.Option("--out", help=".mp4 .mkv .webm .wav .vtt .srt .txt .jsonl; may be repeated"),
    ] = None,
    chat: Annotated[
        str, typer.Option(help="a text file, typed while --in plays: lines as `[2.5s] what do you see`")
    ] = "",
) -> None:
    """Run a graph on files, as fast as the machine allows: the live ends become --in and --out."""
    from .file_run import run_files

    if sources and len(sources) > 1:
        raise typer.BadParameter(f"one is taken, not {len(sources)}", param_hint="--in")
    plan = library.load_all([graph]).popitem()[1]
    report = asyncio.run(run_files(plan, sources[0] if sources else None, sinks or [], err, chat))
    word = "[yellow]stopped[/]" if report.stopped else "[red]ended[/]" if report.failed else "[green]done[/]"
    took = f"in {report.wall_s:.1f} s"
    if report.media_s:  # a graph's own source is not measured
        took = f"{report.media_s:.1f} s of media {took} ({report.speed:.1f}× real time)"
    err.print(
        f"{word}  {took}" + "".join(f"\n      {sink}" for sink in report.written),
        highlight=False,
        soft_wrap=True,
    )
    for sink in report.missing:
        err.print(
            f"[bold red]error:[/] {_plain(sink)} was not written: the graph gave it nothing", soft_wrap=True
        )
    for node in report.failed:
        err.print(f"[bold red]error:[/] node {_plain(node)}", soft_wrap=True)
    if report.stopped or report.missing or report.failed:
        raise typer.Exit(130 if report.stopped else 1)


@app.command()
def check(
    graphs: Annotated[
        list[str] | None, typer.Argument(help="graph files or names; default: all embedded")
    ] = None,
) -> None:
    """Compile graphs without running them; tells every fault with file, line and column."""
    failed = False
    for name in graphs or list(library.embedded()):
        try:
            plan = library.load_all([name]).popitem()[1]
        except StageError as e:
            failed = True
            _complain(e)
        else:
            edges = sum(1 for _ in plan.edges())
            out.print(
                f"[green]ok[/]  {plan.path}: {len(plan.nodes)} nodes, {edges} edges",
                highlight=False,
                soft_wrap=True,
            )
    if failed:
        raise typer.Exit(1)


@app.command()
def graph(
    name: Annotated[str, typer.Argument(help="a graph file or an embedded graph's name")],
    form: Annotated[Picture, typer.Option("--format", help="how to draw it")] = Picture.text,
) -> None:
    """Draw a graph."""
    from .picture import PICTURES

    print(PICTURES[form.value](library.load_all([name]).popitem()[1]))


@app.command()
def explain(
    name: Annotated[str, typer.Argument(help="a graph file or an embedded graph's name")],
) -> None:
    """Tell the worst-case latency of a graph's paths, and what its slo asks."""
    from .explain import explain as text

    print(text(library.load_all([name]).popitem()[1]))


@app.command()
def netlab(
    server: Annotated[str, typer.Argument(help="the running server's URL")] = "http://127.0.0.1:8080",
    port: Annotated[int, typer.Option(min=0, max=65535, help="browsers open this one")] = 8090,
    loss: Annotated[str, typer.Option(help="share of packets lost, as 5%")] = "0%",
    burst: Annotated[float, typer.Option(min=1, help="mean length of a run of losses, packets")] = 1,
    delay: Annotated[str, typer.Option(help="one way, as 25ms")] = "0ms",
    jitter: Annotated[str, typer.Option(help="up to, as 10ms")] = "0ms",
    rate: Annotated[str, typer.Option(help="limit in bits per second, as 500k; 0: none")] = "0",
    script: Annotated[
        Path | None,
        typer.Option(help="YAML: up, down and script, each direction and step apart (docs/netlab.md)"),
    ] = None,
    seed: Annotated[int, typer.Option(help="the same seed loses the same packets")] = 0,
    shared: Annotated[bool, typer.Option("--shared", help="all sessions share one such link")] = False,
) -> None:
    """Put a bad network in front of a running server: loss, delay, jitter, limits, scripted in time."""
    lab = importlib.import_module(f"{_ROOT}.transport.netlab")
    way: dict[str, object] = {"loss": loss, "burst": burst, "delay": delay, "jitter": jitter}
    if rate != "0":
        way["rate"] = rate
    written = lab.read_file(script) if script else {"up": way, "down": way}

    def on_ready(url: str) -> None:
        err.print(
            f"[bold green]ready[/]  {server} through a bad network  →  [bold]{url}[/]",
            highlight=False,
            soft_wrap=True,
        )

    stopping.run(lab.serve(server, written, port=port, seed=seed, shared=shared, on_ready=on_ready))


@app.command()
def stages() -> None:
    """List the stages that `use:` may name, with their ports."""
    from . import registry

    for use in sorted(registry.catalog()):
        try:
            cls = registry.load(use)
        except StageError as e:
            out.print(f"[bold]{use}[/]  [red]{_plain(str(e))}[/]", highlight=False)
            continue
        ports = f"{' '.join(cls.ports.inputs)} → {' '.join(cls.ports.outputs)}".strip()
        about = (cls.__doc__ or "").strip().partition("\n\n")[0]
        out.print(f"[bold]{use}[/]  [cyan]{ports}[/]", highlight=False)
        out.print(Padding(Text(" ".join(about.split())), (0, 0, 0, 4)))


def _complain(error: Exception) -> None:
    if isinstance(error, GraphError):
        for fault in error.faults:
            place = f"{_plain(error.path)}:{fault.line}:{fault.column}:"
            err.print(
                f"[bold]{place}[/] {_plain(fault.message)}", highlight=False, soft_wrap=True, emoji=False
            )
    else:
        words = str(error)
        if isinstance(error, OSError) and error.filename is not None:
            words = f"{error.filename}: {error.strerror}"
        err.print(f"[bold red]error:[/] {_plain(words)}", highlight=False, soft_wrap=True, emoji=False)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def cli() -> None:
    """Run the command line: faults in words and exit code 1, Ctrl-C without a traceback and 130."""
    try:
        app()
    except (GraphError, StageError, OSError) as e:
        _complain(e)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
