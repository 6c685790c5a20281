"""Transport against plain aiortc, paired in one run.

    make bench AREA=transport                # about three minutes
    make bench AREA=transport ARGS=--full    # also a real Chromium's uplink; more rounds

Prints JSON lines, the summary last; `aiortc_…` beside each figure of ours. Times are in ms unless the name says otherwise.

paths: the receiving half in virtual time (`transport_paths.py`), exact: from capture to the decoder, one way.
echo: a client and a server in one process, real codecs, through a relay (`transport_echo.py`): round trips. Load of the machine is in
these figures: read the ratio, not the time. Each variant has a process of its own, one after the other.
uplink (--full): what Chromium sends 8 to 10 s after its start, on a network without limits.
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
ECHOES = ("clean", "hiccup", "lossy", "blackout", "capped")
VARIANTS = ("aiortc", "penstock")


def paths(summary: dict[str, Any]) -> None:
    # imported here: the echo's processes must choose for themselves what they patch
    from transport_paths import measure

    for name, (network, back_s) in PATHS.items():
        for kind in ("video", "audio"):
            for variant in VARIANTS:
                taken = measure(variant == "penstock", kind, network, PATH_S, back_s)
                delays = [delay * 1000 for _, delay in taken]
                gaps = [b[0] - a[0] for a, b in itertools.pairwise(taken)]
                # after 7.5 s a loss and a stall are a second over
                after = [delay * 1000 for at, delay in taken if at > 7.5]
                found = {
                    "frames": len(taken),
                    "p50": round(percentile(delays, 0.5), 1),
                    "p95": round(percentile(delays, 0.95), 1),
                    "p99": round(percentile(delays, 0.99), 1),
                    "max_gap_s": round(max(gaps), 2),
                    "after_p50": round(percentile(after, 0.5), 1),
                }
                line(measured="path", network=name, kind=kind, variant=variant, seconds=PATH_S, **found)
                prefix = f"path_{name}_{kind}" if variant == "penstock" else f"aiortc_path_{name}_{kind}"
                summary |= {f"{prefix}_ms_p50": found["p50"], f"{prefix}_ms_p95": found["p95"]}
                if name == "hiccup":
                    summary[f"{prefix}_after_ms"] = found["after_p50"]
                if name == "blackout":
                    summary[f"{prefix}_max_gap_s"] = found["max_gap_s"]


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
    "clean": [f"{kind}_rtt_ms_p{q}" for kind in ("audio", "video") for q in (50, 99)] + ["core_pct"],
    "hiccup": [f"audio_{when}_ms" for when in ("before", "after_loss", "after_stall")],
    "lossy": ["video_rtt_ms_p95", "frozen_s", "frames"],
    "blackout": ["max_gap_s"],
    "capped": ["frames", "sent", "max_gap_s"],
}


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
                summary[f"{prefix}{scenario}_{key}"] = median(found[variant], key)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--full", action="store_true", help="three rounds of each echo, and Chromium's uplink"
    )
    parser.add_argument("--paths", action="store_true", help="only the virtual-time part, some seconds")
    chosen = parser.parse_args()
    summary: dict[str, Any] = {"area": "transport"}
    note("paths, in virtual time ...")
    paths(summary)
    if not chosen.paths:
        note("echoes, in real time ...")
        echoes(summary, 3 if chosen.full else 1)
    if chosen.full:
        from transport_uplink import uplink_kbps

        for variant, prefix in (("penstock", ""), ("aiortc", "aiortc_")):
            note(f"Chromium's uplink into {variant} ...")
            summary[f"{prefix}uplink_kbps_10s"] = uplink_kbps(variant)
    line(**summary)


if __name__ == "__main__":
    main()
