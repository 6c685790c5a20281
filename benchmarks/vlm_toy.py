"""The toy VLM live on held-out worlds: answers by kind, narration, and memory by age and tier."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import torch
from penstock.models.event_log import EventLog
from penstock.models.retrieval_store import AtRandom, MeanKey, Recent, RetrievalStore
from penstock.models.toy_questions import SHARES, encode, moment, question
from penstock.models.toy_stream import ToyStream
from penstock.models.toy_vlm import TOKENS, WEIGHTS, ToyVlm, load
from penstock.models.toy_world import Happening, World
from report import line
from torch import Tensor

TICKS = 64
AGES = ((0, 5), (6, 12), (13, 24), (25, 64))


class Tap:
    """Mean query of each layer over a question's tokens, before rotation."""

    def __init__(self, model: ToyVlm) -> None:
        self.found: list[Tensor] = []
        d = model.decoder
        width = d.heads * d.head_dim

        def hook(module: object, inputs: object, output: Tensor) -> None:
            self.found.append(output[0, :, :width].view(-1, d.heads, d.head_dim).mean(0))

        for block in d.blocks:
            block.qkv.register_forward_hook(hook)  # type: ignore[union-attr]
        self.layers = len(d.blocks)

    def query(self, stream: ToyStream, text: str) -> Tensor:
        self.found.clear()
        stream.ask(text)
        return torch.stack(self.found[: self.layers])


def live(model: ToyVlm, worlds: int) -> dict[str, float]:
    """Narration is free-running: each stream reads what it said itself."""
    right: dict[str, list[bool]] = defaultdict(list)
    said = true = hit = 0
    spent: list[float] = []
    for seed in range(worlds):
        world, stream, rng = (
            World((9_000, seed), rate=0.25),
            ToyStream(model),
            np.random.default_rng((8, seed)),
        )
        last, past = None, list[Happening]()
        for t in range(TICKS):
            tick = world.step()
            start = time.process_time()
            event = stream.see(tick.image, t)
            spent.append(time.process_time() - start)
            now = moment(tick, last)
            last = tick.image
            if tick.happening:
                past.append(tick.happening)
            said += event is not None
            true += tick.happening is not None
            hit += (
                event is not None
                and tick.happening is not None
                and ((event.thing, event.what) == (tick.happening.name, tick.happening.what))
            )
            if t >= 8 and t % 4 == 0:
                for wanted in SHARES:
                    kind, q, a = question(rng, now, past, wanted)
                    if kind == wanted:
                        right[kind].append(stream.ask(q).text == a)
    table = {k: round(100 * sum(v) / len(v), 1) for k, v in sorted(right.items())}
    qa = sum(SHARES[k] * table[k] for k in table) / sum(SHARES[k] for k in table)
    ms = 1e3 * float(np.median(spent))
    line(toy="live", worlds=worlds, ticks=TICKS, asked=sum(map(len, right.values())), **table)
    return {
        "toy_qa": round(qa, 1), "toy_direction": table.get("moves", 0.0), "toy_motion": table.get("motion", 0.0),
        "toy_event_precision": round(100 * hit / max(1, said), 1),
        "toy_event_recall": round(100 * hit / max(1, true), 1),
        "toy_ms_per_picture": round(ms, 1), "toy_sessions_per_core_2fps": round(500 / ms, 1),
    }  # fmt: skip


def memory(model: ToyVlm, worlds: int) -> None:
    """ "What left last", asked whenever nothing has left since: by age of the answer, for each tier.

    Retrieval adds four evicted pictures to the recent window.
    """
    tiers = ("recent_only", "text", "log", "mean_key", "recent_blocks", "random_blocks")
    right: dict[tuple[int, int], dict[str, list[bool]]] = {a: defaultdict(list) for a in AGES}
    tap = Tap(model)
    d = model.decoder
    for seed in range(worlds):
        with RetrievalStore(
            layers=len(d.blocks), heads=d.kv_heads, tokens=TOKENS + 1, dim=d.head_dim, slots=64
        ) as store:
            plain = ToyStream(model, text=0, log=False, on_evict=store.keep_evicted)
            text = ToyStream(model, text=96, log=False)
            log = EventLog(16)
            world, left = World((7_000, seed), rate=0.1), list[Happening]()
            for t in range(TICKS):
                tick = world.step()
                plain.see(tick.image, t, t)
                event = text.see(tick.image, t, t)
                if event is not None:
                    log.add(event)
                if tick.happening is not None and tick.happening.what == "left":
                    left.append(tick.happening)
                if not left or t % 3:
                    continue
                age = t - left[-1].tick
                bucket = next(a for a in AGES if a[0] <= age <= a[1])
                q, truth = "what left last", left[-1].name
                scores = right[bucket]
                scores["recent_only"].append(plain.ask(q).text == truth)
                scores["text"].append(text.ask(q).text == truth)
                last = log.last("left")
                scores["log"].append(last is not None and last.thing == truth)
                query = tap.query(plain, q)
                scorers: dict[str, Any] = {
                    "mean_key": MeanKey(),
                    "recent_blocks": Recent(),
                    "random_blocks": AtRandom(t),
                }
                for name, scorer in scorers.items():
                    store.scorer = scorer
                    blocks = store.get(store.find(query, 4))
                    scores[name].append(plain.ask(q, blocks).text == truth)
    for (low, high), scores in right.items():
        shares = {k: round(100 * sum(scores[k]) / len(scores[k]), 1) for k in tiers if scores[k]}
        line(needle="what left last", age_pictures=f"{low}-{high}", asked=len(scores["text"]), **shares)


def main(full: bool) -> dict[str, object]:
    encode("what left last")
    if not WEIGHTS.exists():
        line(toy=f"not measured: no weights at {WEIGHTS.name}; train them with models/training/toy_vlm.py")
        return {}
    model = load()
    figures = live(model, 60 if full else 16)
    memory(model, 40 if full else 10)
    return dict(figures)
