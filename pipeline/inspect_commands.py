"""Commands that look into running and recorded sessions: top, trace, replay, test."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.table import Table

from . import stopping
from .clock import MS, MonotonicClock
from .command_words import option
from .stage import StageError
from .units import parse_duration

_ROOT = __name__.split(".")[0]
out = Console()
err = Console(stderr=True)

Url = Annotated[str, typer.Option(help="the running server")]
Token = Annotated[str, typer.Option(envvar="PENSTOCK_TOKEN", help="as the server asks", show_default=False)]
HERE = "http://127.0.0.1:8080"


def register(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    for command in (top, trace, replay):
        app.command()(command)
    app.command("test")(compare_graph)


def top(
    url: Url = HERE,
    token: Token = "",
    every: Annotated[str, typer.Option(help="time between two readings")] = "1s",
    once: Annotated[bool, typer.Option("--once", help="one reading, then end")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object a reading")] = False,
) -> None:
    """Watch a running server: each session's nodes, the pools, the loop. Ctrl-C ends."""
    from .top import watch

    period = option("--every", parse_duration, every)
    if period < 100 * MS:
        raise typer.BadParameter(f"{every} is too short; at least 100ms", param_hint="--every")
    stopping.run(watch(url, token, MonotonicClock(), out, every=period, once=once, as_json=as_json))


def trace(
    session: Annotated[
        str, typer.Argument(help="its id, or the beginning of it; default: the only one", show_default=False)
    ] = "",
    to: Annotated[Path | None, typer.Option("--out", help="file to write; default: SESSION.json")] = None,
    url: Url = HERE,
    token: Token = "",
) -> None:
    """Fetch the last 30 s of a running session's flight recorder; open it in ui.perfetto.dev."""
    name, content = stopping.result(fetch(url, token, session))
    path = to or Path(f"{name}.json")
    path.write_bytes(content)
    err.print(
        f"[green]written[/]  {path} ({len(content) / 1e6:.1f} MB): open it in https://ui.perfetto.dev, "
        f"or run it again: penstock replay {path}",
        highlight=False,
        soft_wrap=True,
    )


async def fetch(url: str, token: str, wanted: str) -> tuple[str, bytes]:
    """The session whose id begins so ("" where only one runs), and its trace. Raises: StageError."""
    remote = importlib.import_module(f"{_ROOT}.transport.remote")
    async with remote.Remote(url, token) as daemon:
        rows: list[dict[str, Any]] = (await daemon.get("/sessions"))["sessions"]
        if not rows:
            raise StageError(f"no session runs at {url}: open one, and ask again while it runs")
        found = [row["id"] for row in rows if row["id"].startswith(wanted)]
        if len(found) != 1:
            running = ", ".join(f"{row['id']} ({row['graph']})" for row in rows[:10])
            what = f"{len(found)} sessions begin with {wanted!r}" if wanted else f"{len(found)} sessions run"
            raise StageError(f"{what}: name one of: {running}")
        return found[0], await daemon.request("POST", f"/sessions/{quote(found[0])}/trace")


def replay(
    file: Annotated[Path, typer.Argument(help="a trace: of `penstock trace`, or of `serve --traces`")],
    to: Annotated[Path | None, typer.Option("--out", help="write the replay's own trace here")] = None,
) -> None:
    """Run a recorded trace again on the virtual clock, without its models: the same frames at the same times.

    Ends with 1 where the engine decided otherwise than it did then.
    """
    from . import trace as traces
    from .replay import replay as again

    recorded = traces.load(file)
    result = again(recorded)
    table = Table(
        "edge",
        *("taken", "again", "lost", "again"),
        box=None,
        header_style="bold",
        title=f"{recorded.shape.graph} {recorded.session}: {result.seconds:.1f} s, {recorded.reason}",
        title_justify="left",
    )
    for name, (before, after) in result.edges.items():
        tone = "" if before == after else "yellow"
        cells = (str(before.taken), str(after.taken), _losses(before.lost), _losses(after.lost))
        table.add_row(name, *cells, style=tone)
    out.print(table)
    if to is not None:
        traces.save(result.again, to)
    if not result.same:
        err.print(
            "[yellow]differs[/]: the recording began amid a session, was taken on a busy machine, or the engine "
            "has changed since",
            soft_wrap=True,
        )
        raise typer.Exit(1)


def _losses(lost: Any) -> str:
    return ", ".join(f"{n} {reason}" for reason, n in sorted(lost.items())) or "0"


def compare_graph(
    graph: Annotated[str, typer.Argument(help="a graph file or an embedded graph's name")],
    cases: Annotated[
        Path | None,
        typer.Option(help="the test file; default: GRAPH.test.yaml beside the graph", show_default=False),
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--case", help="run this case; may be repeated")] = None,
) -> None:
    """Run a graph on recorded input and compare with what its test expects; ends with 1 where that differs."""
    from . import library
    from .case_run import cases_beside, run_case
    from .expectations import read_cases

    path = library.find(graph)
    plan = library.load_all([graph]).popitem()[1]
    found = {case.name: case for case in read_cases(cases or cases_beside(path), plan)}
    for name in only or ():
        if name not in found:
            raise StageError(f"there is no case {name!r}; there are: {', '.join(found)}")
    failed = 0
    for case in [found[name] for name in only] if only else found.values():
        with err.status(f"{plan.name}: {case.name}"):
            try:
                outcome = stopping.result(run_case(plan, case, MonotonicClock()))
            except StageError as e:
                failed += 1
                out.print(
                    f"[bold red]fail[/]  {_plain(case.name)}: {_plain(str(e))}",
                    highlight=False,
                    soft_wrap=True,
                )
                continue
        word = "[bold red]fail[/]" if outcome.differences else "[green]ok[/]  "
        took = f"{outcome.media_s:.1f} s of media in {outcome.wall_s:.1f} s"
        out.print(f"{word}  {_plain(case.name)}  [dim]{took}[/]", highlight=False, soft_wrap=True)
        for line in outcome.differences:
            tone = {"+": "red", "-": "green"}.get(line.strip()[:1], "")
            out.print(f"      {_plain(line)}", style=tone, highlight=False, soft_wrap=True)
        failed += bool(outcome.differences)
    if failed:
        raise typer.Exit(1)


def _plain(text: str) -> str:
    return text.replace("[", r"\[")
