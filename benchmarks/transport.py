"""Transport against plain aiortc, paired in one run.

    make bench AREA=transport                              # all, about four minutes
    make bench AREA=transport ARGS="--only paths,links"    # those parts
    make bench AREA=transport ARGS=--full                  # three rounds of each echo

Prints JSON lines, the summary last; `aiortc_…` beside each figure of ours. Times are in ms unless the name says otherwise.

paths: the receiving half in virtual time (`transport_paths.py`), exact: from capture to the decoder, one way.
links: both halves with real encoders in virtual time (`transport_link.py`), exact; also at few pictures a second, where `age` is that of
the newest picture shown.
skew: sound against picture (`transport_skew.py`), in virtual time.
fanout: what one more viewer of the same output costs the server (`transport_fanout.py`): one encode for all, one for each, aiortc's relay.
echoes: a client with its relay and a server in two processes, real time (`transport_echo.py`): round trips. Load of the machine is in
these figures: read the ratio, not the time. Each variant has processes of its own, one after the other. core_pct is the server's.
browser: a real Chromium: its uplink 8 to 10 s after its start on a network without limits, and glass to glass.
What 200 connects leave, and whether a process that closes nothing ends, is told by `make bench AREA=session`; ten minutes of hostile
input are `make bench AREA=transport_fuzz ARGS="--minutes 10"`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from report import line, note, percentile

HERE = Path(__file__).parent
STALL = [
    {"at": "4s", "up": {"loss": 1.0}},
    {"at": "4.02s", "up": {"loss": 0.0}},
    {"at": "6s", "up": {"hold": True}},
    {"at": "6.5s", "up": {"hold": False}},
]
BLACKOUT = [{"at": "4s", "up": {"blackout": True}}, {"at": "5.5s", "up": {"blackout": False}}]
PATHS: dict[str, tuple[dict[str, Any], float]] = {  # network, delay of the way back in s
    "clean": ({"up": {"delay": "1ms"}}, 0.001),
    "hiccup": ({"up": {"delay": "1ms"}, "script": STALL}, 0.001),
    "lossy": ({"up": {"loss": "5%", "delay": "25ms"}}, 0.025),
    "bursty": ({"up": {"loss": "5%", "burst": 4, "delay": "25ms"}}, 0.025),
    "jittery": ({"up": {"delay": "25ms", "jitter": "60ms"}}, 0.025),
    "blackout": ({"up": {"delay": "25ms"}, "script": BLACKOUT}, 0.025),
}
PATH_S = 30.0
SEEDS = (1, 2, 3)
_BOTH = ("up", "down")
_WAY = {way: {"delay": "25ms"} for way in _BOTH}
_DARK = [
    {"at": at, "up": {"blackout": dark}, "down": {"blackout": dark}}
    for at, dark in (("4s", True), ("5.5s", False))
]
LINKS: dict[str, tuple[dict[str, Any], float]] = {  # network, seconds
    "lossy": ({way: {"loss": "5%", "delay": "25ms"} for way in _BOTH}, 14),
    "blackout": (_WAY | {"script": _DARK}, 9),
    "capped": (_WAY | {"up": {"rate": "180k", "queue": "300ms", "delay": "25ms"}}, 15),
    "drop": (
        _WAY
        | {
            "up": {"rate": "2M", "queue": "300ms", "delay": "25ms"},
            "script": [{"at": "8s", "up": {"rate": "350k"}}],
        },
        15,
    ),
}
SLOW = ((2.0, 60.0), (10.0, 30.0))  # pictures a second, seconds
SLOW_LOSS = (0, 5)  # %
ECHOES = ("clean", "audio", "ingest", "hiccup")
PARTS = ("paths", "links", "skew", "fanout", "echoes", "browser")
VARIANTS = ("aiortc", "penstock")


def paths(summary: dict[str, Any]) -> None:
    # imported here: the echo's processes must choose for themselves what they patch
    from transport_paths import measure

    for name, (network, back_s) in PATHS.items():
        for kind in ("video", "audio"):
            for variant in VARIANTS:
                runs = [measure(variant == "penstock", kind, network, PATH_S, back_s, seed) for seed in SEEDS]
                taken = [frame for run in runs for frame in run]
                delays = [delay * 1000 for _, delay in taken]
                gaps = [b[0] - a[0] for run in runs for a, b in itertools.pairwise(run)]
                # after 7.5 s a loss and a stall are a second over
                after = [delay * 1000 for at, delay in taken if at > 7.5]
                found = {
                    "frames": len(taken),
                    "p50": round(percentile(delays, 0.5), 1),
                    "p95": round(percentile(delays, 0.95), 1),
                    "p99": round(percentile(delays, 0.99), 1),
                    "max_gap_s": round(max(gaps), 2),
                    "frozen_s": round(sum(gap for gap in gaps if gap > 0.2), 2),
                    "after_p50": round(percentile(after, 0.5), 1),
                }
                seconds = PATH_S * len(SEEDS)
                line(measured="path", network=name, kind=kind, variant=variant, seconds=seconds, **found)
                prefix = f"path_{name}_{kind}" if variant == "penstock" else f"aiortc_path_{name}_{kind}"
                summary |= {f"{prefix}_ms_p50": found["p50"], f"{prefix}_ms_p95": found["p95"]}
                if name == "hiccup":
                    summary[f"{prefix}_after_ms"] = found["after_p50"]
                if kind == "video" and name in ("bursty", "blackout"):
                    summary |= {f"{prefix}_{key}": found[key] for key in ("frames", "max_gap_s", "frozen_s")}


def links(summary: dict[str, Any]) -> None:
    from transport_link import measure

    for name, (network, seconds) in LINKS.items():
        for variant, codec in (
            ("penstock", "VP8"),
            ("penstock", "H264"),
            ("aiortc", "VP8"),  # what it takes when it may choose; its x264 is four times as slow to encode
        ):
            found = measure(variant == "penstock", network, seconds, codec)
            line(measured="link", network=name, variant=variant, codec=codec, seconds=seconds, **found)
            prefix = f"{'' if variant == 'penstock' else 'aiortc_'}{name}_{codec.lower()}"
            for key in ("frames", "video_p95_ms", "max_gap_s", "frozen_s"):
                summary[f"{prefix}_{key}"] = found["ms_p95" if key == "video_p95_ms" else key]
    for fps, seconds in SLOW:
        for loss in SLOW_LOSS:
            network = {way: {"loss": f"{loss}%", "delay": "25ms"} for way in _BOTH}
            for variant in VARIANTS:
                found = measure(variant == "penstock", network, seconds, "VP8", fps)
                line(measured="slow", fps=fps, loss_pct=loss, variant=variant, seconds=seconds, **found)
                prefix = "" if variant == "penstock" else "aiortc_"
                name = f"{prefix}slow_{fps:.0f}fps_loss{loss}"
                # how old a picture is when it is shown, and how old the newest is at any moment
                summary |= {f"{name}_ms_p95": found["ms_p95"], f"{name}_age_ms_p95": found["age_ms_p95"]}


def skew(summary: dict[str, Any], seconds: float) -> None:
    from transport_skew import measure

    for variant, prefix in (("penstock", ""), ("aiortc", "aiortc_")):
        found = measure(seconds if not prefix else min(seconds, 60.0), variant == "penstock")
        line(measured="skew", variant=variant, **found)
        summary |= {prefix + key: value for key, value in found.items() if key.startswith("av_")}
    summary["av_skew_seconds"] = seconds


def echo(variant: str, scenario: str, seed: int) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "transport_echo.py"), variant, scenario, str(seed)]
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=120, text=True, env=os.environ)
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def median(rounds: Sequence[dict[str, Any]], key: str) -> Any:
    values = sorted(r[key] for r in rounds if r[key] is not None)
    return values[len(values) // 2] if values else None


KEYS = {
    "clean": [f"{kind}_rtt_ms_p{q}" for kind in ("audio", "video") for q in (50, 99)]
    + ["core_pct", "frames", "sent"],
    "audio": ["core_pct", "audio_rtt_ms_p50"],
    "ingest": ["core_pct", "sent"],
    "hiccup": [
        f"{kind}_{when}_ms" for kind in ("audio", "video") for when in ("before", "after_loss", "after_stall")
    ],
}
CHROMIUM = (
    "uplink_kbps_10s",  # sent by its encoder, which a busy machine holds back ...
    "uplink_available_kbps",  # ... and what its estimate would let it send
    "glass_ms_p50",
    "glass_ms_p99",
    "glass_fps",
)
NAMES = {"clean_core_pct": "echo_av_core_pct", "audio_core_pct": "echo_audio_core_pct"}


def echoes(summary: dict[str, Any], rounds: int) -> None:
    for scenario in ECHOES:
        found: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
        for k in range(rounds):
            for variant in VARIANTS:
                result = echo(variant, scenario, k + 1)
                load = os.getloadavg()[0] / (os.cpu_count() or 1)
                line(
                    measured="echo", network=scenario, variant=variant, load_per_cpu=round(load, 1), **result
                )
                found[variant].append(result)
        for variant, prefix in (("penstock", ""), ("aiortc", "aiortc_")):
            for key in KEYS[scenario]:
                name = f"{scenario}_{key}" if scenario != "clean" or not key.endswith(("p50", "p99")) else key
                summary[prefix + NAMES.get(name, name)] = median(found[variant], key)


def fanout(summary: dict[str, Any]) -> None:
    from transport_fanout import measure

    for variant, prefix in (("shared", ""), ("own", "own_encoders_"), ("aiortc", "aiortc_")):
        found = measure(variant)
        line(measured="fanout", variant=variant, **found)
        for key in ("one_core_pct", "all_core_pct", "more_core_pct"):
            summary[f"{prefix}fanout_{key}"] = found[key]


def browser(summary: dict[str, Any]) -> None:
    from transport_uplink import with_chromium

    for variant, prefix in (("penstock", ""), ("aiortc", "aiortc_")):
        note(f"Chromium into {variant} ...")
        found = with_chromium(variant)
        line(measured="browser", variant=variant, **found)
        summary |= {prefix + key: found.get(key) for key in CHROMIUM}
        if "reason" in found:
            summary["browser_reason"] = found["reason"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="three rounds of each echo")
    parser.add_argument("--only", default="", metavar="PARTS", help=f"some of {','.join(PARTS)}")
    parser.add_argument("--skew-s", type=float, default=0.0, help="virtual seconds of the skew's run")
    chosen = parser.parse_args()
    parts = chosen.only.split(",") if chosen.only else list(PARTS)
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no part {sorted(unknown)[0]!r}; there are {', '.join(PARTS)}")
    summary: dict[str, Any] = {"area": "transport"}
    if "paths" in parts:
        note("paths, in virtual time ...")
        paths(summary)
    if "links" in parts:
        note("links, in virtual time ...")
        links(summary)
    if "skew" in parts:
        skew(summary, chosen.skew_s or 300.0)
    if "fanout" in parts:
        note("fan-out, in real time ...")
        fanout(summary)
    if "echoes" in parts:
        note("echoes, in real time ...")
        echoes(summary, 3 if chosen.full else 1)
    if "browser" in parts:
        browser(summary)
    line(**summary)


if __name__ == "__main__":
    main()
