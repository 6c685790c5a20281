"""The toy VLM live on held-out worlds: answers by kind, narration, and a needle in hours of stream by age and tier."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from penstock.models.event_log import Event, EventLog
from penstock.models.toy_model import WINDOW, ToyModel
from penstock.models.toy_questions import INDEX, SHARES, moment, question
from penstock.models.toy_vlm import WEIGHTS
from penstock.models.toy_world import COLOURS, SHAPES, Happening, Image, World
from penstock.models.vlm_memory import Memory
from penstock.models.vlm_session import SCORERS, Runner, Say, Take, Talk, VlmSession
from penstock.stages.vlm_toy import ToyOptions
from report import line

_SILENCE, _END = INDEX["<silence>"], INDEX["<end>"]
AGES = ((0, 60), (60, 300), (300, 1200), (1200, 4 * 3600))  # seconds


class Live:
    """Many sessions in one pass each step; every stream reads what it said itself."""

    def __init__(self, model: ToyModel, memories: Sequence[Memory]) -> None:
        self.model, self.runner = model, Runner(model)
        self.sessions = [VlmSession(model, m) for m in memories]

    def see(self, images: Sequence[Image], at: int) -> list[tuple[str, str] | None]:
        """One picture each → (what, thing) that each has to say."""
        takes = [
            Take(s, image=torch.from_numpy(i).permute(2, 0, 1), at=at)
            for s, i in zip(self.sessions, images, strict=True)
        ]
        results = self.runner.forward(takes)
        said: list[tuple[str, str] | None] = [None] * len(takes)
        speaking: dict[int, list[int]] = {}
        for n, (take, result) in enumerate(zip(takes, results, strict=True)):
            self.runner.commit(take, result)
            if result.silence is not None and result.silence < ToyOptions().theta:
                logits = result.logits.clone()
                logits[_SILENCE] = -torch.inf
                speaking[n] = [int(logits.argmax())]
        if speaking:
            self._go_on({n: Talk(self.sessions[n]) for n in speaking}, speaking, 4)
        memorable: list[Take] = []
        for n, words in speaking.items():
            text = self.model.text(words).split()
            if len(text) == 3 and text[0] in COLOURS and text[1] in SHAPES and text[2] in ("came", "left"):
                said[n] = text[2], f"{text[0]} {text[1]}"
                ids = torch.tensor([*words[:3], _END])
                memorable.append(Take(self.sessions[n], ids=ids, at=at))
        if memorable:
            for take, result in zip(memorable, self.runner.forward(memorable), strict=True):
                self.runner.commit(take, result)
        return said

    def ask(self, texts: Sequence[str], which: Sequence[int] | None = None) -> list[str]:
        """One question each → answers."""
        which = range(len(texts)) if which is None else which
        talks = {i: Talk(self.sessions[s]) for i, s in enumerate(which)}
        says = [Say(talks[i], self.model.question(t)) for i, t in enumerate(texts)]
        by_length: dict[int, list[int]] = defaultdict(list)
        for i, say in enumerate(says):
            by_length[len(say.ids)].append(i)
        words: dict[int, list[int]] = {}
        results = self.runner.forward(says)
        for i, (say, result) in enumerate(zip(says, results, strict=True)):
            self.runner.commit(say, result)
            words[i] = [result.word]
        self._go_on(talks, words, 6)
        return [self.model.text(words[i]) for i in range(len(texts))]

    def _go_on(self, talks: dict[int, Talk], words: dict[int, list[int]], most: int) -> None:
        """Greedy words until all have ended."""
        while going := [i for i, w in words.items() if w[-1] != _END and len(w) < most]:
            says = [Say(talks[i], torch.tensor(words[i][-1:])) for i in going]
            for i, say, result in zip(going, says, self.runner.forward(says), strict=True):
                self.runner.commit(say, result)
                words[i].append(result.word)


def held_out(model: ToyModel, worlds: int, ticks: int = 64) -> dict[str, float]:
    """Answers by kind and narrations, on worlds that no training saw."""
    live = Live(model, [Memory(176, 96, pictures=WINDOW)] * worlds)
    its = [World((9_000, seed), rate=0.25) for seed in range(worlds)]
    rngs = [np.random.default_rng((8, seed)) for seed in range(worlds)]
    last: list[Image | None] = [None] * worlds
    past: list[list[Happening]] = [[] for _ in range(worlds)]
    right: dict[str, list[bool]] = defaultdict(list)
    looked_up: dict[str, list[bool]] = defaultdict(
        list
    )  # as the stage answers: from the log of its narrations
    logs = [EventLog(512) for _ in range(worlds)]
    said = true = hit = 0
    for t in range(ticks):
        now = [w.step() for w in its]
        told = live.see([x.image for x in now], t)
        moments = [moment(x, b) for x, b in zip(now, last, strict=True)]
        last = [x.image for x in now]
        for i, (x, event) in enumerate(zip(now, told, strict=True)):
            if x.happening:
                past[i].append(x.happening)
            if event:
                logs[i].add(Event(t, event[0], event[1]))
            said += event is not None
            true += x.happening is not None
            hit += (
                event is not None
                and x.happening is not None
                and event == (x.happening.what, x.happening.name)
            )
        if t >= 8 and t % 4 == 0:
            for wanted in SHARES:
                asked = [question(rngs[i], moments[i], past[i], wanted) for i in range(worlds)]
                which = [i for i, (kind, _, _) in enumerate(asked) if kind == wanted]
                if which:
                    answers = live.ask([asked[i][1] for i in which], which)
                    right[wanted] += [a == asked[i][2] for i, a in zip(which, answers, strict=True)]
                if wanted in ("left", "came"):
                    for i in which:
                        last_one = logs[i].last(wanted)
                        looked_up[wanted].append((last_one.thing if last_one else "nothing") == asked[i][2])
    table = {k: round(100 * sum(v) / len(v), 1) for k, v in sorted(right.items())}
    from_log = {k: round(100 * sum(v) / len(v), 1) for k, v in looked_up.items()}
    alone, qa = (
        sum(SHARES[k] * t[k] for k in t) / sum(SHARES[k] for k in t) for t in (table, table | from_log)
    )
    looked = {f"{k}_from_log": v for k, v in from_log.items()}
    line(toy="live", worlds=worlds, ticks=ticks, asked=sum(map(len, right.values())), **table, **looked)
    return {
        "toy_qa": round(qa, 1), "toy_qa_decoder_alone": round(alone, 1), "toy_direction": table.get("moves", 0.0), "toy_motion": table.get("motion", 0.0),
        "toy_event_precision": round(100 * hit / max(1, said), 1),
        "toy_event_recall": round(100 * hit / max(1, true), 1),
    }  # fmt: skip


def speed(model: ToyModel) -> dict[str, float]:
    """CPU time of a picture, alone and as one of 16 rows."""
    out: dict[str, float] = {}
    for rows in (1, 16):
        live = Live(model, [Memory(176, 96, pictures=WINDOW)] * rows)
        worlds = [World((5, i), rate=0.1) for i in range(rows)]
        spent: list[float] = []
        for t in range(30):
            images = [w.step().image for w in worlds]
            start = time.process_time()
            live.see(images, t)
            spent.append(time.process_time() - start)
        out[f"toy_ms_per_picture_{rows}_rows"] = round(1e3 * float(np.median(spent[8:])) / rows, 2)
    out["toy_sessions_per_core_2fps"] = round(500 / out["toy_ms_per_picture_16_rows"], 0)
    return out


def needle(model: ToyModel, worlds: int, hours: float, every_s: int = 10) -> float:
    """ "What left last", over hours of stream at a picture every 10 or 20 seconds: by age of the answer, tier and budget.

    Recalled pictures (mean key, recent, random) are added to the plain recent window.
    """
    plain = Memory(176, 0, blocks=256, recall=0, pictures=WINDOW)
    memories = [plain, *(Memory(80 + n, n, pictures=WINDOW) for n in (24, 96))]
    names = ["recent_only", "text_24", "text_96"]
    live = Live(model, [m for m in memories for _ in range(worlds)])
    its = [World((7_000, seed), rate=0.012) for seed in range(worlds)]
    logs = [EventLog(16) for _ in range(worlds)]
    left: list[Happening | None] = [None] * worlds
    right: dict[tuple[int, int], dict[str, list[bool]]] = {a: defaultdict(list) for a in AGES}
    for t in range(int(hours * 3600 / every_s)):
        ticks = [w.step() for w in its]
        told = live.see([x.image for x in ticks] * len(memories), t)
        for i, x in enumerate(ticks):
            if x.happening and x.happening.what == "left":
                left[i] = x.happening
            event = told[2 * worlds + i]  # of the session with the larger text tier
            if event:
                logs[i].add(Event(t, event[0], event[1]))
        if t % 20:
            continue
        which = [i for i in range(worlds) if left[i] is not None]
        if not which:
            continue
        q = "what left last"
        answers = {
            name: live.ask([q] * len(which), [k * worlds + i for i in which]) for k, name in enumerate(names)
        }
        for k in (4, 16):
            for scorer in SCORERS:
                for i in which:
                    session = live.sessions[i]
                    assert session.store is not None
                    session.memory = replace(plain, recall=k)
                    session.store.scorer = SCORERS[scorer]()
                answers[f"{scorer}_{k}"] = live.ask([q] * len(which), which)
                for i in which:
                    live.sessions[i].memory = plain
        answers["event_log"] = [e.thing if (e := logs[i].last("left")) else "nothing" for i in which]
        for n, i in enumerate(which):
            truth = left[i]
            assert truth is not None
            age = (t - truth.tick) * every_s
            bucket = next(a for a in AGES if a[0] <= age < a[1])
            for name, given in answers.items():
                right[bucket][name].append(given[n] == truth.name)
    worst = 100.0
    for (low, high), scores in right.items():
        if not scores:
            continue
        shares = {k: round(100 * sum(v) / len(v), 1) for k, v in scores.items()}
        worst = min(worst, shares["event_log"])
        line(
            needle="what left last",
            hours=hours,
            age_s=f"{low}-{high}",
            asked=len(scores["text_96"]),
            **shares,
        )
    return worst


def main(full: bool) -> dict[str, object]:
    if not WEIGHTS.exists():
        line(toy=f"not measured: no weights at {WEIGHTS.name}; train them with models/training/toy_vlm.py")
        return {}
    model = ToyModel()
    figures: dict[str, object] = dict(held_out(model, 60 if full else 16))
    figures |= speed(model)
    figures["toy_needle_event_log_worst_age"] = needle(model, 8 if full else 4, 4, 10 if full else 20)
    return figures
