"""`penstock top`: what a running daemon does now, as a picture in the terminal. The page's figures."""

from __future__ import annotations

import asyncio
import importlib
import json
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .clock import Clock
from .stage import StageError

_ROOT = __name__.split(".")[0]
TONES = {
    "running": "green",
    "restarting": "yellow",
    "starting": "yellow",
    "failed": "bold red",
    "ended": "dim",
}


def picture(snapshot: dict[str, Any]) -> RenderableType:
    """A snapshot of `transport.remote` as rich tables."""
    server = snapshot["server"]
    n = server["sessions"]
    head = Text.assemble(
        ("penstock", "bold"),
        f"  {server['url']}  {n} session{'' if n == 1 else 's'}",
        f", {_viewers(watching)}  " if (watching := server.get("viewers", 0)) else "  ",
        (f"loop lag {server['loop_lag_ms']:.0f} ms", "yellow" if server["loop_lag_ms"] > 50 else "dim"),
        (f", longest block {server['longest_block_ms']:.0f} ms", "dim"),
    )
    parts: list[RenderableType] = [head]
    if not n:
        parts.append(Text("no session runs", style="dim"))
    for graph, why in snapshot.get("broken", {}).items():
        parts.append(Text.assemble((f"{graph} cannot start: ", "bold red"), why))
    for session in snapshot["sessions"]:
        parts += [Text(), _session(session)]
    if n > len(snapshot["sessions"]):
        parts.append(Text(f"and {n - len(snapshot['sessions'])} more sessions", style="dim"))
    if snapshot["pools"]:
        parts += [Text(), _pools(snapshot["pools"])]
    return Group(*parts)


def _session(session: dict[str, Any]) -> Table:
    where = f"{session['kind']} {session['remote']}".strip()
    title = Text.assemble(
        (session["graph"], "bold"),
        (f"  {_viewers(watching)}" if (watching := session.get("viewers", 0)) else "", "cyan"),
        f"  {session['id'][:12]}  {where}  {session['state']}  up {_span(session['up_s'])}",
        (_focus(session.get("focus")), "dim"),
    )
    table = _table(title, "node", "fps", "age ms", "p95", "queue", "drops", "late", "busy %", "rung", "state")
    for node in session["nodes"]:
        state, level = node["state"], node["level"]
        table.add_row(
            node["name"],
            f"{node['fps']:.1f}",
            f"{node['age_ms']:.0f}",
            f"{node['age_p95_ms']:.0f}",
            str(node["queue"]),
            _hot(node["drops"]),
            _hot(node["late"]),
            f"{node['busy_pct']:.0f}",
            Text(f"{level}/{node['levels']}", "yellow" if level else "") if node["levels"] else "",
            Text(
                state + (f" ({node['restarts']} restarts)" if node["restarts"] else ""), TONES.get(state, "")
            ),
        )
    return table


WHY = {  # of a track's rate, as the allocator names it
    "enough": "more would not help",
    "budget": "the link's budget is spent",
    "path": "its path carries no more",
    "deadline": "its largest picture has to come in time",
    "limit": "its limit",
    "least": "its least",
}


def _focus(focus: dict[str, Any] | None) -> str:
    """What its sender was told: pictures a second, bits and why, where they go."""
    if not focus or focus["sender"] == "none":
        return ""
    where = f", {focus['dqp']:.0f} steps by {focus['source']}" if focus["dqp"] else ""
    tracks = focus.get("tracks") or []
    bits = "; ".join(
        f"{t['track']} {t['kbps']:.0f} kb/s for {t['expected']:.0%} right ({WHY.get(t['why'], t['why'])})"
        for t in tracks
    )
    return f"  sees {focus['fps']:g}/s, {bits if bits and focus['kbps'] else 'any rate'}{where}"


def _pools(pools: dict[str, Any]) -> Table:
    table = _table(
        Text("pools", "bold"),
        *(
            "pool",
            "busy\n%",
            "held\n%",
            "wait-\ning",
            "rows",
            "per\nforward",
            "ms a\nforward",
            "missed",
            "failed",
        ),
        "calls",
    )
    for name, pool in sorted(pools.items()):
        rows, calls = pool["rows"], pool["calls"]
        again = f", restarted {pool['restarts']}×" if pool["restarts"] else ""
        place = pool["device"] if pool["device"] != "auto" else ""
        table.add_row(
            Text.assemble(" ".join(filter(None, (name, pool["kind"], place))), (again, "yellow")),
            f"{pool['utilisation'] * 100:.0f}",
            f"{pool['admitted'] * 100:.0f}",
            str(pool["waiting"]),
            str(rows["done"]),
            f"{pool['rows_per_forward']:.1f}",
            f"{pool['forward_ms']:.1f}",
            _hot(rows["missed"] + calls["missed"]),
            _hot(rows["failed"] + calls["failed"]),
            str(calls["done"]),
        )
    return table


def _table(title: Text, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left", box=None, header_style="dim", pad_edge=False)
    table.add_column(first, no_wrap=True, min_width=10)
    for name in others:
        table.add_column(name, justify="left" if name == "state" else "right", no_wrap=True)
    return table


def _viewers(n: int) -> str:
    """Who only watch; not broken over two lines."""
    return f"{n}\N{NO-BREAK SPACE}viewer{'' if n == 1 else 's'}"


def _hot(n: int) -> Text:
    return Text(str(n), style="yellow" if n else "dim")


def _span(seconds: float) -> str:
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


async def watch(
    url: str, token: str, clock: Clock, console: Console, *, every: int, once: bool, as_json: bool
) -> None:
    """Show the daemon at `url` every `every` ns until cancelled; once where stdout is no terminal.

    as_json: one object a line instead of a picture. Raises: StageError in words when nothing answers.
    """
    remote = importlib.import_module(f"{_ROOT}.transport.remote")
    async with remote.Remote(url, token) as daemon:
        shown = await daemon.snapshot()
        if as_json:
            print(json.dumps(shown), flush=True)
            while not once:
                await clock.sleep(every)
                print(json.dumps(await daemon.snapshot()), flush=True)
            return
        if once or not console.is_terminal:
            console.print(picture(shown))
            return
        with Live(picture(shown), console=console, screen=True, auto_refresh=False) as live:
            while True:
                await clock.sleep(every)
                try:
                    live.update(picture(await daemon.snapshot()), refresh=True)
                except StageError as e:  # it may come back
                    live.update(Group(Text(str(e), "bold red"), Text("trying again", "dim")), refresh=True)
                    await asyncio.sleep(1)
