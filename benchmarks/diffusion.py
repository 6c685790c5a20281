"""Live video diffusion: speed, likeness to the teachers, flicker, what batching and guidance cost, sessions, a browser.

`make bench AREA=diffusion`; `ARGS="--device cuda"` measures true shapes with random weights on a GPU in its place (`--device cuda --tiny`
tries that block in small on the CPU), `ARGS=--chromium` only the whole way through a browser. Times are CPU seconds of one
thread, so that other work on the machine counts less; ratios are measured in turns within one run.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusion_batch import guidance_cost
from diffusion_equal import thousand, together_or_apart, wan_equality
from diffusion_live import in_simulation, live
from numpy.typing import NDArray
from penstock.models.restyle_prompt import PHRASES
from penstock.models.stream_model import STEADY, Picture, Settings
from penstock.models.stream_models import How, load
from penstock.models.tiny_restyle import WEIGHTS, TinyRestyle
from penstock.models.training import scenes, teachers
from report import line, note

Float = NDArray[np.float32]
STYLES = [s for s in PHRASES if s != "identity"]
SIDE = 256


def u8(image: Float) -> Picture:
    return np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)


def f32(picture: Picture) -> Float:
    return picture.astype(np.float32) / np.float32(255)


def psnr(a: Float, b: Float) -> float:
    return float(-10 * np.log10(np.mean((a - b) ** 2) + 1e-10))


def held_out(name: str) -> Float:
    """The middle square of a photograph that was not trained on, SIDE px."""
    image = scenes.photograph(name, SIDE)
    y, x = (image.shape[0] - SIDE) // 2, (image.shape[1] - SIDE) // 2
    return np.ascontiguousarray(image[y : y + SIDE, x : x + SIDE])


def show(model: TinyRestyle, frames: list[Picture], settings: Settings) -> list[Float]:
    """The frames as a stream shows them: each drained before the next, as at a camera's pace."""
    state = model.init_state(frames[0].shape[:2], settings)
    drawn: list[Float] = []
    for frame in frames:
        rows = model.rows(state, frame)
        done = model.commit(state, rows, model.forward(rows))
        while state.flights:
            rows = model.rows(state, None)
            done = model.commit(state, rows, model.forward(rows))
        drawn.append(f32(done[-1].picture))
    return drawn


def cpu_ms(work: Callable[[], object], rounds: int) -> float:
    """Median CPU milliseconds of this thread."""
    work()
    took: list[float] = []
    for _ in range(rounds):
        start = time.thread_time()
        work()
        took.append(time.thread_time() - start)
    return float(np.median(took)) * 1e3


def speed(engine: str, precision: str, side: int, steps: int, rounds: int) -> dict[str, Any]:
    """A steady stream: one picture in and one out a tick, conversions included."""
    model = load("tiny-restyle", how=How(engine=engine, precision=precision, device="cpu"))  # type: ignore[arg-type]
    assert isinstance(model, TinyRestyle)
    state = model.init_state((side, side), Settings("pencil sketch", steps=steps))
    noise = np.random.default_rng(0).integers(0, 256, (side, side + 64, 3), np.uint8)
    scene = cv2.GaussianBlur(noise, (0, 0), 2)
    frames = cycle([np.ascontiguousarray(scene[:, x : x + side]) for x in range(0, 64, 2)])  # the camera pans

    def tick() -> None:
        rows = model.rows(state, next(frames))
        model.commit(state, rows, model.forward(rows))

    for _ in range(steps):
        tick()
    ms = cpu_ms(tick, rounds)
    return {
        "engine": engine,
        "precision": precision,
        "side": side,
        "steps": steps,
        "threads": 1,
        "cpu_ms": round(ms, 1),
        "fps_per_core": round(1e3 / ms, 1),
    }


def likeness(model: TinyRestyle, steps: int) -> dict[str, float]:
    """PSNR to the teacher by style, dB: mean over the held-out photographs, third frame of a still scene."""
    table: dict[str, float] = {}
    for style in STYLES:
        found: list[float] = []
        for name in scenes.HELD_OUT:
            image = held_out(name)
            drawn = show(model, [u8(image)] * 3, Settings(PHRASES[style][0], steps=steps))[-1]
            found.append(psnr(drawn, teachers.apply(f32(u8(image)), style)))
        table[style] = round(float(np.mean(found)), 1)
    return table


def flicker(
    model: TinyRestyle, style: str, pan: int, steps: int, steady: float, frames: int = 6
) -> tuple[float, float]:
    """Mean change between frames along the camera's motion, (ours, the teacher's), of a noisy camera."""
    rng = np.random.default_rng(1)
    image = scenes.photograph("astronaut.png", SIDE + 64)
    seen: list[Picture] = []
    for t in range(frames):
        cut = image[16 : 16 + SIDE, 8 + t * pan : 8 + t * pan + SIDE]
        seen.append(u8(np.clip(cut + rng.normal(0, 0.02, cut.shape), 0, 1).astype(np.float32)))
    ours = show(model, seen, Settings(PHRASES[style][0], steps=steps, steady=steady))
    theirs = [teachers.apply(f32(s), style) for s in seen]

    def change(video: list[Float]) -> float:
        edge = 16
        # what is at x now was at x + pan before
        shift = [
            np.abs(now[:, : SIDE - pan] - before[:, pan:])[edge:-edge, edge:-edge].mean()
            for before, now in pairwise(video[1:])
        ]
        return float(np.mean(shift))

    return change(ours), change(theirs)


def prompt_delay(model: TinyRestyle, steps: int) -> int:
    """Pictures from a new prompt to one within 1 level of a stream that always had it."""
    frame = u8(held_out("astronaut.png"))
    new = Settings("neon glow", steps=steps)
    goal = show(model, [frame] * 4, new)[0]
    state = model.init_state((SIDE, SIDE), Settings("pencil sketch", steps=steps))
    for _ in range(4):
        rows = model.rows(state, frame)
        model.commit(state, rows, model.forward(rows))
    model.adjust(state, new)
    for count in range(1, 20):
        rows = model.rows(state, frame)
        for done in model.commit(state, rows, model.forward(rows)):
            if np.abs(f32(done.picture) - goal).mean() < 1 / 255:
                return count
    return -1


def stream_batch(model: TinyRestyle, steps: int, side: int, rounds: int) -> dict[str, Any]:
    """CPU time a picture, all its steps one after the other against one row of each picture on its way."""
    settings = Settings("pencil sketch", steps=steps)
    frame = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    batched, single = (model.init_state((side, side), settings) for _ in range(2))

    def together() -> None:
        rows = model.rows(batched, frame)
        model.commit(batched, rows, model.forward(rows))

    def in_turn() -> None:
        show_rows = model.rows(single, frame)
        model.commit(single, show_rows, model.forward(show_rows))
        while single.flights:
            show_rows = model.rows(single, None)
            model.commit(single, show_rows, model.forward(show_rows))

    for _ in range(steps):
        together()
    a, b = cpu_ms(together, rounds), cpu_ms(in_turn, rounds)
    return {
        "steps": steps,
        "side": side,
        "batched_ms": round(a, 1),
        "in_turn_ms": round(b, 1),
        "ratio": round(b / a, 2),
    }


def sheet(model: TinyRestyle, path: Path) -> None:
    """A picture of all styles, the teacher's above ours."""
    image = held_out("astronaut.png")
    top = [teachers.apply(image, s) for s in STYLES]
    low = [show(model, [u8(image)] * 3, Settings(PHRASES[s][0]))[-1] for s in STYLES]
    half = len(STYLES) // 2
    rows = [np.concatenate(r, 1) for r in (top[:half], low[:half], top[half:], low[half:])]
    cv2.imwrite(str(path), u8(np.concatenate(rows, 0))[..., ::-1])


def fps(rounds: int) -> dict[str, Any]:
    """Pictures a second of one core, by engine, precision, size and steps; the best of one step, for the summary."""
    best: dict[str, Any] = {}
    for side in (256, 128):
        for engine, precision in (("torch", "fp32"), ("onnx", "fp32"), ("torch", "bf16")):
            for steps in (1, 2):
                found = speed(engine, precision, side, steps, rounds)
                line(figure="fps_per_core", **found)
                if steps == 1 and (precision == "bf16" or engine == "onnx"):
                    best[f"fps_per_core_{side}_{precision}"] = found["fps_per_core"]
        best[f"fps_per_core_{side}"] = max(
            v for k, v in best.items() if k.startswith(f"fps_per_core_{side}_")
        )
    return best


def look_alike(model: TinyRestyle, full: bool) -> dict[str, Any]:
    """Likeness to the teachers by style, and flicker against theirs, with and without `steady`."""
    note("likeness to the teachers")
    summary: dict[str, Any] = {}
    for steps in (1, 2):
        table = likeness(model, steps)
        mean = round(float(np.mean(list(table.values()))), 1)
        head = {"steps": steps, "side": SIDE, "photographs": list(scenes.HELD_OUT)}
        line(figure="psnr_to_teacher_db", **head, **table, mean=mean)
        if steps == 1:
            summary |= {"psnr_to_teacher_db": table, "psnr_to_teacher_mean_db": mean}
    note("flicker")
    for name, pan in (("static", 0), ("panning", 2)):
        ratios: dict[float, list[float]] = {STEADY: [], 0.0: []}
        for style in STYLES if full else ("pencil", "neon", "cartoon", "oil", "watercolor", "blueprint"):
            found: dict[str, Any] = {}
            for steady, key in ((STEADY, "ratio"), (0.0, "ratio_unsteadied")):
                ours, theirs = flicker(model, style, pan, 1, steady)
                ratios[steady].append(ours / theirs)
                found[key] = round(ours / theirs, 2)
                found["teacher"] = round(theirs * 255, 2)
            line(figure=f"flicker_ratio_{name}", style=style, steps=1, pan_px=pan, **found)
        summary[f"flicker_ratio_{name}"] = round(float(np.mean(ratios[STEADY])), 2)
        summary[f"flicker_ratio_{name}_unsteadied"] = round(float(np.mean(ratios[0.0])), 2)
    return summary


def costs(model: TinyRestyle, rounds: int) -> dict[str, Any]:
    """From a prompt to its pictures; what Stream Batch and guidance save."""
    delays = {steps: prompt_delay(model, steps) for steps in (1, 2)}
    line(figure="prompt_to_pixels_frames", **{f"steps_{k}": v for k, v in delays.items()})
    note("stream batch and guidance")
    for steps in (2, 4):
        for side in (64, 256):
            line(figure="stream_batch", engine="onnx", **stream_batch(model, steps, side, rounds))
    ratios: dict[str, Any] = {}
    for found in guidance_cost(max(5, rounds // 2)):  # large: few rounds
        line(**found)
        ratios = {f"rcfg_{k}": found[k] for k in ("full_over_onetime", "full_over_self") if k in found}
    return {"prompt_to_pixels_frames": max(delays.values()), **ratios}


def equalities(model: TinyRestyle) -> dict[str, Any]:
    """What must be equal, and what must not grow."""
    note("equalities, a thousand frames")
    same, wan, long = together_or_apart(model), wan_equality(), thousand(model)
    for found in (same, wan, long):
        line(**found)
    return {
        "stream_batch_off": same["stream_batch"],
        "strangers_off": same["strangers"],
        "causal_wan_off": wan["causal_wan"],
        "vae_off": wan["vae"],
        "thousand_frames_time": long["time_last_over_first"],
        "thousand_frames_mb": long["peak_memory_grew_mb"],
    }


def schedule(full: bool) -> dict[str, Any]:
    """Sessions that share a pool, on the virtual clock and live."""
    note("sessions")
    summary: dict[str, Any] = {}
    mixed = 0
    for kind, of, seconds in (("simulated", in_simulation, (20.0, 60.0)), ("live", live, (5.0, 20.0))):
        for sessions in (1, 3, 5, 6):
            found = of(sessions, seconds[full])
            line(**found)
            mixed += found.get("mixed_up", 0)
            summary[f"{kind}_{sessions}_ms"] = (found["p50_ms"], found["p99_ms"])
    return summary | {"mixed_up": mixed}


def main() -> None:
    """Print the lines."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--tiny", action="store_true", help="the GPU block in small, on any device")
    parser.add_argument("--chromium", action="store_true", help="only the way through a real browser")
    parser.add_argument("--no-chromium", action="store_true", help="all but that")
    parser.add_argument("--full", action="store_true", help="more rounds, flicker of every style")
    parser.add_argument("--sheet", type=Path, help="write a picture of all styles here")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    if args.device == "cuda":
        from diffusion_gpu import run

        line(area="diffusion", **run(args.full, args.tiny))
        return
    summary: dict[str, Any] = {"weights": WEIGHTS.name, "steps": 1}
    if not args.chromium:
        model = load("tiny-restyle", how=How(device="cpu", engine="onnx", precision="fp32"))
        assert isinstance(model, TinyRestyle)
        if args.sheet:
            sheet(model, args.sheet)
        rounds = 30 if args.full else 8
        summary |= fps(rounds) | look_alike(model, args.full) | costs(model, rounds)
        summary |= equalities(model) | schedule(args.full)
        line(figure="gpu", value=None, reason='needs a GPU: ARGS="--device cuda"')
    if not args.no_chromium:
        note("a browser")
        from diffusion_chromium import chromium_figure

        found = chromium_figure(20.0 if args.full else 10.0)
        line(**found)
        summary |= {f"chromium_{k}": found.get(k) for k in ("fps", "glass_to_glass_ms_p50")}
    line(area="diffusion", **summary)


if __name__ == "__main__":
    main()
