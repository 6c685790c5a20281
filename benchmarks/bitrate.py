"""Context-aware bitrate: what a picture costs when bits go where the question looks.

    make bench AREA=bitrate                    # two scenes, one seed: under five minutes of CPU
    make bench AREA=bitrate ARGS=--full        # three scenes, two seeds, as B90 is defined
    make bench AREA=bitrate ARGS='--only b90 --scenes desk --seeds 0,1'

b90: kb/s at which 90 % of a small display can still be read (`bitrate_methods.py`), geometric means over scenes and
seeds; ratios are uniform at 10 pictures a second ÷ the way named, on the same scenes. `oracle` regions are the display's
true place; `tap` and `rules` are found by the system itself; with `rules_blind` the detectors cannot find what is asked about.
signs: the same on scenes that the embedded toy VLM can watch (`bitrate_signs.py`): three things with print, one is asked about;
`attention` is where its decoder looks when it is about to answer.
allocator: twelve sessions share an uplink, in simulation (`bitrate_allocator.py`).
link, shared: edge clients of this project, one through an impaired link, four through one that they share. Exact, in virtual time
(`bitrate_virtual.py`: all of it real but sockets), or with --real-time against a server over sockets (`bitrate_link.py`).
loss: the age of the newest picture that is shown, at 2 and 10 pictures a second (`transport_link.py`).
Prints JSON lines, the summary last.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
from report import line, note

sys.path.insert(0, str(Path(__file__).parent))
import bitrate_methods as methods
from bitrate_found import attention, rules
from bitrate_methods import Way, oracle, tap, wrong
from bitrate_scene import SCENES, Shot, render

WAYS: dict[str, tuple[str, Way, float]] = {  # codec, way, first guess in kb/s
    "uniform": ("H264", Way(), 280),
    "uniform_2fps": ("H264", Way(2), 125),
    "roi": ("H264", Way(10, oracle()), 110),
    "roi_2fps": ("H264", Way(2, oracle()), 45),
    "stale": ("H264", Way(10, oracle(stale_s=1.5)), 115),
    "wrong_low_conf": ("H264", Way(10, wrong(0.5)), 310),
    "wrong_full": ("H264", Way(10, wrong(1.0)), 600),
    "crop": ("H264", Way(10, oracle(), crop=True), 58),
    "crop_2fps": ("H264", Way(2, oracle(), crop=True), 25),
    "held": ("H264", Way(10, oracle(), held=True), 140),
    "tap": ("H264", Way(10, tap()), 130),
    "tap_2fps": ("H264", Way(2, tap()), 60),
    "rules": ("H264", Way(10, rules()), 135),
    "rules_2fps": ("H264", Way(2, rules()), 50),
    "rules_blind": ("H264", Way(10, rules(blind=True)), 280),
    "vp8_uniform": ("VP8", Way(), 310),
    "vp8_roi": ("VP8", Way(10, oracle()), 190),
    "vp8_roi_2fps": ("VP8", Way(2, oracle()), 90),
}
SIGNS: dict[str, tuple[str, Way, float]] = {  # the same, on the scenes that the embedded toy VLM can watch
    "uniform": ("H264", Way(), 250),
    "roi": ("H264", Way(10, oracle()), 60),
    "roi_2fps": ("H264", Way(2, oracle()), 22),
    "attention": ("H264", Way(10, attention()), 72),
    "attention_2fps": ("H264", Way(2, attention()), 27),
    "tap": ("H264", Way(10, tap()), 90),
    "tap_2fps": ("H264", Way(2, tap()), 40),
    "rules": ("H264", Way(10, rules()), 130),
    "rules_2fps": ("H264", Way(2, rules()), 60),
    "rules_blind": ("H264", Way(10, rules(blind=True)), 250),
    "vp8_uniform": ("VP8", Way(), 270),
    "vp8_roi": ("VP8", Way(10, oracle()), 110),
    "vp8_attention": ("VP8", Way(10, attention()), 130),
}
RATIOS = {  # name: (uniform, way)
    "roi_ratio": ("uniform", "roi"),
    "fps_ratio": ("uniform", "uniform_2fps"),
    "total_ratio": ("uniform", "roi_2fps"),
    "stale_ratio": ("uniform", "stale"),
    "crop_ratio": ("uniform", "crop"),
    "crop_total_ratio": ("uniform", "crop_2fps"),
    "held_ratio": ("uniform", "held"),
    "wrong_map_low_conf": ("uniform", "wrong_low_conf"),
    "wrong_map_full_conf": ("uniform", "wrong_full"),
    "tap_roi_ratio": ("uniform", "tap"),
    "tap_total_ratio": ("uniform", "tap_2fps"),
    "rules_roi_ratio": ("uniform", "rules"),
    "rules_total_ratio": ("uniform", "rules_2fps"),
    "attention_roi_ratio": ("uniform", "attention"),
    "attention_total_ratio": ("uniform", "attention_2fps"),
    "rules_blind_ratio": ("uniform", "rules_blind"),
    "vp8_roi_ratio": ("vp8_uniform", "vp8_roi"),
    "vp8_total_ratio": ("vp8_uniform", "vp8_roi_2fps"),
    "vp8_attention_ratio": ("vp8_uniform", "vp8_attention"),
}


def mean(values: Sequence[float]) -> float:
    """Geometric."""
    return math.exp(sum(map(math.log, values)) / len(values))


def b90(summary: dict[str, Any], scenes: Sequence[str], seeds: Sequence[int], chosen: Sequence[str]) -> None:
    stills: list[int] = []
    shown: dict[tuple[str, int], list[Shot]] = {}
    for scene in scenes:
        for seed in seeds:
            shots = shown[scene, seed] = render(scene, seed)
            size, score = methods.still_bytes_at_90(shots)
            line(measured="still", scene=scene, seed=seed, bytes=size, accuracy=round(score, 3))
            stills += [size] if size is not None else []
    summary["scenes"], summary["seeds"] = list(scenes), list(seeds)
    measure(summary, "", shown, WAYS, chosen)
    summary["fetch_bytes_at_90"] = round(sum(stills) / len(stills)) if stills else None


def signs(
    summary: dict[str, Any], scenes: Sequence[str], seeds: Sequence[int], chosen: Sequence[str]
) -> None:
    """B90 where one of three things is asked about, and the embedded VLM finds it."""
    import bitrate_signs

    shown = {(scene, seed): bitrate_signs.render(scene, seed) for scene in scenes for seed in seeds}
    measure(summary, "signs_", shown, SIGNS, chosen)


def measure(
    summary: dict[str, Any],
    prefix: str,
    shown: Mapping[tuple[str, int], Sequence[Shot]],
    known: Mapping[str, tuple[str, Way, float]],
    chosen: Sequence[str],
) -> None:
    """B90 of each way on each (scene, seed); kb/s and ratios into the summary, with the prefix."""
    found: dict[str, dict[str, float]] = {}
    for (scene, seed), shots in shown.items():
        for name in chosen or known:
            if name in known:
                codec, way, guess = known[name]
                began = time.process_time()
                kbps, points = methods.find_b90(shots, codec, way, guess)
                line(
                    measured=f"{prefix}b90", scene=scene, seed=seed, way=name, codec=codec,
                    kbps=round(kbps, 1) if kbps is not None else None,
                    points=[[round(k, 1), round(a, 3)] for k, a in points],
                    cpu_s=round(time.process_time() - began, 1),
                )  # fmt: skip
                if kbps is not None:
                    found.setdefault(name, {})[f"{scene}{seed}"] = kbps
    for name, by_scene in found.items():
        summary[f"{prefix}{name}_kbps"] = round(mean(list(by_scene.values())), 1)
    summary |= {
        prefix + name: value
        for name, value in ratios(found, [n for n in chosen or known if n in known]).items()
    }


def ratios(found: Mapping[str, Mapping[str, float]], tried: Collection[str]) -> dict[str, float | None]:
    """On the scenes where both were reached; None where there is none, or not all of the uniform's are."""
    result: dict[str, float | None] = {}
    for name, (uniform, way) in RATIOS.items():
        if uniform not in tried or way not in tried:
            continue
        base, own = found.get(uniform, {}), found.get(way, {})
        both = sorted(set(base) & set(own))
        result[name] = (
            round(mean([base[k] / own[k] for k in both]), 2) if both and len(both) == len(base) else None
        )
    return result


def allocator(summary: dict[str, Any], full: bool) -> None:
    import bitrate_allocator as sim

    seeds, seconds = (sim.SEEDS, sim.SECONDS) if full else (range(2), 450)
    curves: dict[str, list[tuple[float, float]]] = {}
    for policy in sim.POLICIES:
        for capacity in (*sim.CAPACITIES, *(sim.MORE if policy in sim.OTHERS else ())):
            runs = [sim.simulate(policy, seed, capacity, seconds) for seed in seeds]
            accuracy, used, fairness = (sum(run[k] for run in runs) / len(runs) for k in range(3))
            curves.setdefault(policy, []).append((capacity, accuracy))
            line(
                measured="allocator", policy=policy, capacity_kbps=capacity, seeds=len(runs),
                accuracy=round(accuracy, 3), link_used=round(used, 2), least_over_mean=round(fairness, 2),
            )  # fmt: skip
    for policy, points in curves.items():
        summary[f"alloc_{policy}_accuracy"] = [round(a, 3) for _, a in points[: len(sim.CAPACITIES)]]
    for ours in ("learned", "learned_roi"):
        ratios_ = [
            r for other in sim.OTHERS if (r := sim.budget_ratio(curves[ours], curves[other])) is not None
        ]
        summary[f"alloc_{ours}_budget_ratio"] = (
            round(min(ratios_), 2) if ratios_ else None
        )  # against the best of them


IMPAIRED = {way: {"rate": "300k", "loss": "2%", "delay": "30ms"} for way in ("up", "down")}


def link(summary: dict[str, Any], full: bool, real: bool) -> None:
    """300 kb/s, 2 % loss, 60 ms there and back."""
    import bitrate_link as live

    variants = {"ours": (True, True), "regions": (True, False), "plain": (False, False)}  # regions, stills
    for name, (regions, stills) in variants.items():
        clients = []
        for scene in SCENES if full else ("desk", "street"):
            one = [live.client(name, scene, 0, ours=regions, fetch=stills)]
            _connect(real, one, IMPAIRED, 45 if full else 24, plain=not regions, seed=len(clients))
            clients += one
        found = live.figures(clients)
        line(measured="link", variant=name, real_time=real, load=round(os.getloadavg()[0], 1), **found)
        for key in (
            "questions",
            "accuracy",
            "pictures_accuracy",
            "answer_s_p50",
            "answer_s_p95",
            "picture_age_s_p95",
        ):
            summary[f"link_{name}_{key}"] = found[key]


def shared(summary: dict[str, Any], full: bool, real: bool) -> None:
    """Four cameras share an uplink of 320 kb/s: by worth, or evenly."""
    import bitrate_link as live

    capacity = 320_000
    network = {"up": {"rate": str(capacity), "delay": "20ms"}, "down": {"delay": "20ms"}}
    base = [
        live.client(f"{scene}{seed}", scene, seed, ours=True)
        for scene, seed in (("desk", 0), ("street", 0), ("lab", 0), ("desk", 1))
    ]
    for name, equal in (("worth", False), ("equal", True)):
        runs: list[dict[str, Any]] = []
        for seed in range(1 if real else 5 if full else 3):  # who collides with whom decides much
            clients = live.fresh(base)
            _connect(real, clients, network, 60 if full else 30, uplink_bps=capacity, equal=equal, seed=seed)
            found = live.figures(clients) | {"settled_accuracy": live.settled(clients)}
            runs.append(found)
            line(
                measured="shared", variant=name, seed=seed, real_time=real,
                load=round(os.getloadavg()[0], 1), **found,
            )  # fmt: skip
        for key in (
            "accuracy", "pictures_accuracy", "settled_accuracy", "answer_s_p50", "picture_age_s_p95", "fairness",
        ):  # fmt: skip
            summary[f"shared_{name}_{key}"] = round(sum(run[key] or 0 for run in runs) / len(runs), 3)


def _connect(real: bool, clients: list[Any], network: dict[str, Any], seconds: float, **how: Any) -> None:
    """In real time over sockets, or exactly, in virtual time."""
    if real:
        import bitrate_link

        asyncio.run(bitrate_link.run(clients, network, seconds, **how))
    else:
        import bitrate_virtual

        bitrate_virtual.run(clients, network, seconds, **how)


def loss(summary: dict[str, Any], full: bool) -> None:
    """How old is the newest picture that is shown, in virtual time; 60 ms there and back, no limit of rate."""
    import transport_link

    for fps in (2.0, 10.0):
        for percent in (0, 5, 20):
            network = {way: {"loss": f"{percent}%", "delay": "30ms"} for way in ("up", "down")}
            for name, ours in (("ours", True), ("aiortc", False)):
                found = transport_link.measure(ours, network, 60 if full else 30, "VP8", fps)
                line(measured="loss", whose=name, fps=fps, loss_pct=percent, **found)
                key = f"loss_{name}_{fps:g}fps_{percent}pct"
                # when it is shown; between two of them it grows by their distance, so at any moment it is older
                summary[f"{key}_age_s_p95"] = round(found["ms_p95"] / 1000, 2) if found["ms_p95"] else None
                summary[f"{key}_age_at_any_moment_s_p95"] = round(found["age_ms_p95"] / 1000, 2)


def parts() -> dict[str, Callable[[dict[str, Any], argparse.Namespace], None]]:
    def on_scenes(
        run: Callable[[dict[str, Any], Sequence[str], Sequence[int], Sequence[str]], None],
    ) -> Callable[[dict[str, Any], argparse.Namespace], None]:
        return lambda summary, chosen: run(
            summary,
            chosen.scenes.split(","),
            [int(s) for s in chosen.seeds.split(",")],
            chosen.ways.split(",") if chosen.ways else (),
        )

    return {
        "b90": on_scenes(b90),
        "signs": on_scenes(signs),
        "allocator": lambda summary, chosen: allocator(summary, full=chosen.full),
        "link": lambda summary, chosen: link(summary, full=chosen.full, real=chosen.real_time),
        "shared": lambda summary, chosen: shared(summary, full=chosen.full, real=chosen.real_time),
        "loss": lambda summary, chosen: loss(summary, full=chosen.full),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="three scenes and two seeds")
    parser.add_argument(
        "--real-time", action="store_true", help="link and shared over sockets, on a quiet machine"
    )
    parser.add_argument("--only", default="", help="parts, comma-separated")
    parser.add_argument("--scenes", default="", help=f"of {', '.join(SCENES)}")
    parser.add_argument("--seeds", default="")
    parser.add_argument("--ways", default="", help="of b90, comma-separated")
    chosen = parser.parse_args()
    chosen.scenes = chosen.scenes or (",".join(SCENES) if chosen.full else "desk,lab")
    chosen.seeds = chosen.seeds or ("0,1" if chosen.full else "0")
    cv2.setNumThreads(1)
    known = parts()
    names = chosen.only.split(",") if chosen.only else list(known)
    if unknown := set(names) - set(known):
        parser.error(f"unknown part {', '.join(unknown)}; known: {', '.join(known)}")
    summary: dict[str, Any] = {"area": "bitrate"}
    for name in names:
        note(f"{name} ...")
        known[name](summary, chosen)
    line(**summary)


if __name__ == "__main__":
    main()
