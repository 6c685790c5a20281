"""Answers questions about a camera from measurements alone, and says when it cannot know.

It measures brightness, colours, motion and the health of the feed. It recognises no things, no people and no
text, and it never guesses: a question with a word that it does not understand is not answered from the words that
it does.
"""

# ruff: noqa: E501 - tables of patterns read best one a line

from __future__ import annotations

import re
from dataclasses import dataclass

from .event_log import Event, EventLog
from .scene_words import COLOURS, WORDS, ago, event_sentence, place, span, spell
from .sights import LEAST_MOTION, SECOND, Sight, Watcher
from .standing import Standing, rule_from

_MEANS = 0.95  # confidence of brightness and shares of colours
STALE = 3 * SECOND  # after so long without a picture nothing is said about "now"


@dataclass(frozen=True, slots=True)
class Answer:
    """`known` is False when the reporter says that it cannot know. `kind` names the question understood.
    `confidence`, 0-1: of what was read off the newest picture; None where nothing was."""

    text: str
    kind: str
    known: bool
    confidence: float | None = None


_QUESTIONS: tuple[tuple[str, str], ...] = (  # kind, pattern; the first that fits counts
    ("help", r"\b(help|what (can|could) (you|i) (do|ask|tell|answer)|who are you|what are you)\b"),
    ("stop", r"\b(stop|cancel|forget)\b.*\b(tell|telling|watch|watching|remind|asking|it|that|all|everything)\b"),
    ("standing", r"\b(tell|warn|alert|notify|inform|say|let me know|call|remind|shout)\b.*\b(when|whenever|if|once|as soon as)\b"),
    ("watching", r"\bhow long\b.*\b(you|been) (watch|look|seen|run)|\bsince when\b.*\bwatch|\bwhen did you (start|begin)"),
    ("still_for", r"\b(how long|since when)\b.*\b(still|quiet|calm|no motion|without motion|nothing|not moved?)\b"),
    ("frozen_for", r"\bhow long\b.*\b(frozen|black|dark|stuck)\b"),
    ("how_often", r"\b(how often|how many times)\b"),
    ("when", r"\bwhen\b.*\b(last|move|moved|motion|start|stop|stopped|get|got|go|went|turn|change|changed|freeze|froze|happen|happened|brighter|dark|bright|black)\b"),
    ("timeline", r"\bwhat\b.*\b(happened|happen|changed|did i miss|was going on|been going on)\b|\bdid i miss\b|\b(timeline|history|log|events?)\b|\banything (happen|happened|new)\b|\bdid anything (happen|change)\b"),
    ("did_move", r"\b(did|has|have|was|were)\b.*\b(move|moved|moving|motion|movement)\b"),
    ("direction", r"\b(which|what) (way|direction)\b"),
    ("where", r"\bwhere\b.*\b(move|moves|moving|motion|movement)\b|\bwhat side\b|\b(moving|motion|movement|moves) (on|at|in) the\b"),
    ("motion", r"\b(move|moves|moving|motion|movement|still|happening|going on)\b"),
    ("health", r"\b(camera|feed|picture|video|image|stream|you)\b.*\b(ok|okay|working|work|fine|frozen|stuck|covered|black|broken|live|on|off|good|see me)\b|\b(frozen|covered|can you see)\b"),
    ("size", r"\b(size|resolution|how (big|large|wide|high)|pixels?)\b"),
    ("share", r"\bhow much\b.*\b(?:{colours})\b|\b(is|are|was|anything|something|any)\b.*\b(?:{colours})\b"),
    ("colour", r"\bcolou?rs?\b"),
    ("light", r"\b(bright|brightness|dark|dim|light|lit|black|white)\b"),
    ("describe", r"\b(what|describe|report|look|tell)\b.*\b(see|you see|there|view|scene|picture|image|looks?|looking|camera|now|up)\b|^(describe|report|look|status)\b|\bwhat is it\b"),
)  # fmt: skip
_COMPILED = tuple((kind, re.compile(p.replace("{colours}", "|".join(COLOURS)))) for kind, p in _QUESTIONS)

HELP = (
    "I measure brightness, colours and motion. Ask me what I see, how bright it is, which colour, whether and where "
    "something moves, when or how often it moved, what happened, or whether the camera works. Or say: tell me when "
    "something moves. I recognise no things and no people."
)
_LIMIT = (
    "I cannot know that: I measure brightness, colours and motion, and recognise no things and no people."
)


class SceneReporter:
    """One camera's reporter: its sights, its log, its standing questions."""

    def __init__(self, log: EventLog | None = None) -> None:
        self.log = log or EventLog()
        self.watcher = Watcher()
        self.standing = Standing()
        self.last: Sight | None = None
        self.since: int | None = None  # the first picture

    def see(self, sight: Sight) -> tuple[list[Event], list[str]]:
        """Take in a sight. → its events, and what standing questions now have to say."""
        if self.since is None:
            self.since = sight.at
        self.last = sight
        events = self.watcher.see(sight)
        for event in events:
            self.log.add(event)
        return events, self.standing.see(sight, events)

    def ask(self, text: str, now: int) -> Answer:
        """Answer a question put at `now` (ns). Never raises: what is not understood is said so."""
        words = re.findall(r"[a-z]+|\d+", text.lower().replace("'s", " is").replace("’s", " is")[:400])
        line = " ".join(words)
        if not words:
            return Answer(HELP, "help", True)
        kind = next((kind for kind, pattern in _COMPILED if pattern.search(line)), "")
        if kind == "standing":
            return self._stand(line)
        strange = [w for w in words if w not in WORDS and not w.isdigit()]
        if not kind or strange:
            return Answer(f"{_LIMIT} {self._hint(now)}".strip(), "unknown", False)
        if kind == "help":
            return Answer(HELP, kind, True)
        if kind == "stop":
            return Answer(self.standing.clear(), kind, True)
        if self.last is None or self.since is None:
            return Answer("I have not seen a picture yet.", kind, False)
        answer = getattr(self, f"_{kind}")(self.last, now, line)
        text, known = answer if isinstance(answer, tuple) else (answer, True)
        return Answer(text, kind, known, confidence(kind, self.last) if known else None)

    # ------------------------------------------------------------ about now

    def _absent(self, sight: Sight, now: int) -> tuple[str, bool] | None:
        """Why nothing can be said about now, if so."""
        if now - sight.at > STALE:
            return f"I cannot know: the last picture came {ago(now - sight.at)}.", False
        return None

    def _blind(self, sight: Sight, now: int) -> tuple[str, bool] | None:
        """Why nothing can be said about the scene now, if so."""
        if absent := self._absent(sight, now):
            return absent
        if sight.black:
            return "I cannot know: I see only black. The camera may be covered or off.", False
        if sight.white:
            return "I cannot know: I see only white. The picture is overexposed.", False
        if sight.frozen:
            held = spell(sight.same_s)
            return f"I cannot know: the picture has not changed at all for {held}. It may be frozen.", False
        return None

    def _describe(self, sight: Sight, now: int, line: str) -> object:
        if absent := self._absent(sight, now):
            return absent
        return description(sight, self.watcher)

    def _light(self, sight: Sight, now: int, line: str) -> object:
        if absent := self._absent(sight, now):
            return absent
        percent = round(100 * sight.brightness)
        if sight.black or sight.white:
            return f"I see only {'black' if sight.black else 'white'}: brightness {percent} percent."
        return f"The picture is {sight.light}: brightness {percent} percent."

    def _colour(self, sight: Sight, now: int, line: str) -> object:
        if absent := self._absent(sight, now):
            return absent
        return colours(sight)

    def _share(self, sight: Sight, now: int, line: str) -> object:
        if absent := self._absent(sight, now):
            return absent
        name = {"grey": "gray"}.get(found := next(w for w in line.split() if w in COLOURS), found)
        share = sight.colours.get(name, 0.0)
        if share < 0.01:
            return f"Less than one percent of the picture looks {name}."
        return f"About {max(1, round(100 * share))} percent of the picture looks {name}."

    def _motion(self, sight: Sight, now: int, line: str) -> object:
        if blind := self._blind(sight, now):
            return blind
        if sight.relit:
            return "I cannot know at this moment: the light is changing all over the picture.", False
        if sight.motion is None:
            return "I cannot know yet: I have only one picture to go by.", False
        return moves(sight)

    _where = _motion

    def _direction(self, sight: Sight, now: int, line: str) -> object:
        return "I cannot know that: I measure where the picture changes, not which way it goes.", False

    def _health(self, sight: Sight, now: int, line: str) -> object:
        if self._absent(sight, now):
            return f"No: the last picture came {ago(now - sight.at)}."
        if sight.black:
            return "Pictures arrive, but they are black. The camera may be covered or off."
        if sight.white:
            return "Pictures arrive, but they are white. The picture is overexposed."
        if sight.frozen:
            return f"Pictures arrive, but nothing in them has changed for {spell(sight.same_s)}. It may be frozen."
        return (
            f"Pictures arrive, {sight.width} by {sight.height} pixels, and they are not black and not frozen."
        )

    def _size(self, sight: Sight, now: int, line: str) -> object:
        return f"The pictures are {sight.width} by {sight.height} pixels."

    # ------------------------------------------------------------ about the past

    def _watched(self, now: int) -> int:
        """For how long; a file's first picture comes at 0."""
        return 0 if self.since is None else now - self.since

    def _watching(self, sight: Sight, now: int, line: str) -> object:
        return f"My first picture came {ago(self._watched(now))}."

    def _still_for(self, sight: Sight, now: int, line: str) -> object:
        if blind := self._blind(sight, now):
            return blind
        if sight.region:
            return "Something moves or changes now."
        since = self.watcher.still_since
        if since is None:
            return "I cannot know yet: I have not seen enough.", False
        return f"I have seen nothing move for {spell((sight.at - since) / SECOND)}."

    def _frozen_for(self, sight: Sight, now: int, line: str) -> object:
        wanted = "black_started" if "black" in line else "got_dark" if "dark" in line else "frozen_started"
        state = {
            "black_started": sight.black,
            "frozen_started": sight.frozen,
            "got_dark": sight.light == "dark",
        }
        name = {"black_started": "black", "frozen_started": "frozen", "got_dark": "dark"}[wanted]
        if absent := self._absent(sight, now):
            return absent
        if not state[wanted]:
            return f"The picture is not {name} now."
        event = self.log.last(wanted)
        if event is None:
            return f"Since my first picture, {ago(self._watched(now))}."
        return f"Since {ago(now - event.at)}."

    def _when(self, sight: Sight, now: int, line: str) -> object:
        wanted, name = _asked(line)
        if wanted is None:
            return _LIMIT, False
        if wanted == ("motion_started",) and not re.search(r"start|began|begin", line):
            if sight.region and now - sight.at <= STALE:
                return "Something moves or changes now."
            wanted = ("motion_ended", "motion_lost")
        event = self.log.last(wanted)
        if event is None:
            return f"Not since my first picture, {ago(self._watched(now))}."
        return f"{name} {ago(now - event.at)}."

    def _how_often(self, sight: Sight, now: int, line: str) -> object:
        wanted, name = _asked(line)
        if wanted is None:
            return _LIMIT, False
        length = span(line)
        count = self.log.count(wanted, since=None if length is None else now - length)
        if count is None:
            return "I cannot know: I no longer have all events of that time.", False
        times = "never" if count == 0 else "once" if count == 1 else f"{count} times"
        watched = self._watched(now)
        if length is None or length > watched:
            return f"{name} {times} since my first picture, {ago(watched)}."
        return f"{name} {times} in the last {spell(length / SECOND)}."

    def _did_move(self, sight: Sight, now: int, line: str) -> object:
        length = span(line)
        if length is None:
            return self._when(sight, now, "when moved last")
        if sight.region and now - sight.at <= STALE:
            return "Yes, something moves or changes now."
        last = self.log.last(("motion_ended", "motion_lost"))
        if last is not None and last.at >= now - length:
            return f"Yes, the last motion ended {ago(now - last.at)}."
        watched = self._watched(now)
        if length > watched:
            return f"I have seen none, but my first picture came only {ago(watched)}."
        if (
            self.log.count(("black_started", "white_started", "frozen_started"), since=now - length) != 0
            or sight.blind
        ):
            return "I cannot know: I could not see all of that time.", False
        return f"I have seen nothing move in the last {spell(length / SECOND)}."

    def _timeline(self, sight: Sight, now: int, line: str) -> object:
        length = span(line)
        events = self.log.between(now - (self._watched(now) if length is None else length), now)
        if not events:
            return "Nothing that I can measure has happened in that time."
        told = [f"{event_sentence(e)} {ago(now - e.at)}" for e in events[-3:]]
        more = f" Before that, {len(events) - 3} more." if len(events) > 3 else ""
        return f"{'; '.join(told)}.{more}"

    # ------------------------------------------------------------ standing questions

    def _stand(self, line: str) -> Answer:
        rule = rule_from(line)
        if isinstance(rule, str):
            return Answer(rule, "standing", False)
        return Answer(self.standing.add(rule), "standing", True)

    def _hint(self, now: int) -> str:
        if self.last is None or now - self.last.at > STALE:
            return ""
        return f"What I can say: {description(self.last, self.watcher)}"


def confidence(kind: str, sight: Sight) -> float | None:
    """How sure an answer of this kind is. Means over a picture hardly err; motion by its distance to the least that
    counts: 0.5 there, 1 when nothing at all changed, 0.9 at five times as much."""
    if kind in ("light", "colour", "share") or (kind == "describe" and sight.motion is None):
        return _MEANS
    if kind not in ("motion", "where", "still_for", "describe") or sight.motion is None:
        return None
    ratio = sight.motion / LEAST_MOTION
    return 1 - 0.5 / ratio if ratio >= 1 else 1 - 0.5 * ratio


def description(sight: Sight, watcher: Watcher) -> str:
    """All that is measured, in words."""
    if sight.black:
        return "I see only black. The camera may be covered or off."
    if sight.white:
        return "I see only white. The picture is overexposed."
    text = f"The picture is {sight.light}. {colours(sight)}"
    if sight.frozen:
        return f"{text} It has not changed at all for {spell(sight.same_s)}: it may be frozen."
    if sight.relit:
        return f"{text} The light is changing."
    return text if sight.motion is None else f"{text} {moves(sight)}"


def colours(sight: Sight) -> str:
    """The main colour, with its share, so that nobody takes a third for all."""
    ranked = sorted(sight.colours.items(), key=lambda item: -item[1])
    name, share = ranked[0]
    if share >= 0.9:
        return f"It is nearly all {name}."
    if share >= 0.5:
        return f"It is mostly {name}, about {round(100 * share)} percent."
    second, other = ranked[1]
    return f"No colour fills half of it; most is {name}, {round(100 * share)} percent, and {second}, {round(100 * other)}."


def moves(sight: Sight) -> str:
    """Whether and where something moves."""
    if not sight.region:
        return "I see nothing move."
    if sight.region == "everywhere":
        return "The picture changes all over: the camera or much of the scene moves."
    much = "Something small" if (sight.motion or 0) < 0.03 else "Something"
    return f"{much} moves or changes{place(sight.region)}."


def _asked(line: str) -> tuple[tuple[str, ...] | None, str]:
    """Which events a question about the past is about, and how to say them."""
    table: tuple[tuple[str, tuple[str, ...], str], ...] = (
        (r"\b(freeze|froze|frozen|stuck)\b", ("frozen_started",), "The picture froze"),
        (r"\bblack\b|\bcovered\b", ("black_started",), "The picture went black"),
        (r"\b(dark|darker)\b", ("got_dark",), "It got dark"),
        (r"\b(bright|brighter|lighter)\b", ("got_bright", "got_lighter"), "It got brighter"),
        (r"\b(light|brightness)\b", ("got_bright", "got_lighter", "got_dark", "got_dimmer"), "The light changed"),
        (r"\bsize\b", ("size_changed",), "The size changed"),
        (r"\b(stop|stopped|end|ended)\b", ("motion_ended", "motion_lost"), "The last motion ended"),
        (r"\b(start|started|begin|began)\b", ("motion_started",), "Motion started"),
        (r"\b(move|moved|moves|moving|motion|movement)\b", ("motion_started",), "Something moved"),
    )  # fmt: skip
    for pattern, events, name in table:
        if re.search(pattern, line):
            return events, name
    return None, ""
