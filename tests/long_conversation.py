"""A long conversation at random on the virtual clock, and what it shows."""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field

from penstock.pipeline.clock import MS, SECOND

from .conversation import Person, word_text


@dataclass
class Figures:
    """Of a long conversation. Times in ms."""

    turns: int = 0
    barge_ins: int = 0
    backchannels: int = 0
    coughs: int = 0
    silence_ms: list[float] = field(default_factory=list[float])  # from the onset told to silence at the sink
    resume_ms: list[float] = field(
        default_factory=list[float]
    )  # from the end of a false interruption to sound
    answer_ms: list[float] = field(default_factory=list[float])  # from the end of the turn (VAD) to sound
    contexts: int = 0  # interrupted replies that later requests told of
    contexts_exact: int = 0
    stale: int = 0  # steps of a reply heard after the barge-in that voided it
    lost: int = 0  # turns that no request ever told of


async def talk(person: Person, seconds: float, seed: int) -> Figures:
    """Random turns, interruptions, back-channels and coughs until the time is over."""
    rng, figures = random.Random(seed), Figures()
    end = person.clock.now() + round(seconds * SECOND)
    asked: list[str] = []
    while person.clock.now() < end:
        asked.append(await person.asks(rng.uniform(0.4, 1.2)))
        ended = person.told("speech_end")[-1]
        await person.until(lambda: person.hears)
        figures.answer_ms.append((person.clock.now() - ended) / MS)
        for _ in range(rng.randint(0, 2)):
            await person.wait(rng.uniform(0.1, 1.5))
            kind = rng.choice(("barge-in", "back-channel", "cough", "listen"))
            if not person.hears or kind == "listen":
                continue
            if kind == "barge-in":
                figures.barge_ins += 1
                asyncio.get_running_loop().create_task(_silence(person, figures))
                asked.append(await person.asks(rng.uniform(0.4, 1.4)))
                ended = person.told("speech_end")[-1]
                await person.until(lambda: person.hears)
                figures.answer_ms.append((person.clock.now() - ended) / MS)
                continue
            figures.backchannels += kind == "back-channel"
            figures.coughs += kind == "cough"
            asyncio.get_running_loop().create_task(_silence(person, figures))
            held = len(person.told("resumed"))
            await person.says("mm-hm okay" if kind == "back-channel" else "", rng.uniform(0.1, 0.5))
            ended = person.told("speech_end")[-1]
            await person.until(lambda n=held: len(person.told("resumed")) > n)
            await person.until(lambda: person.hears or not person.session.playback.busy)
            if person.hears:
                figures.resume_ms.append((person.clock.now() - ended) / MS)
        if rng.random() < 0.6:
            await person.until(lambda: not person.session.playback.busy)
            await person.wait(rng.uniform(0.1, 1.0))
    await person.until(lambda: not person.session.playback.busy)
    await person.asks()  # a last request tells of all before
    await person.until(lambda: person.hears)
    return _judge(person, figures, asked)


async def _silence(person: Person, figures: Figures) -> None:
    start = person.clock.now()
    await person.until(lambda: person.ear[-1].silent and person.ear[-1].at > start)
    figures.silence_ms.append((max(person.ear[-1].since, start) - start) / MS)


def _judge(person: Person, figures: Figures, asked: list[str]) -> Figures:
    figures.turns = len(asked)
    figures.lost = len(set(asked) - person.script.told)
    final = person.script.said
    ended: dict[int, dict[int, None]] = {}
    for step in person.ear:
        for reply, word in sorted(step.ended):
            ended.setdefault(reply, {})[word] = None
    for reply in range(1, person.script.replies):
        heard = [word_text(reply, w) for w in ended.get(reply, {})]
        figures.contexts += 1
        figures.contexts_exact += [w.strip(".") for w in final.get(reply, "").split()] == heard
    voided = [(at, sum(1 for t in _reply_starts(person) if t < at)) for at in person.told("barge_in")]
    for at, replies in voided:
        figures.stale += sum(
            1
            for step in person.ear
            if at + 60 * MS < step.at
            and step.since < at + 20 * SECOND
            and any(r <= replies and r > replies - 50 for r, _ in step.words)
        )
    return figures


def _reply_starts(person: Person) -> list[int]:
    return person.told("llm_first_token")
