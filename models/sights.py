"""From measurements of pictures to events: motion starts and stops, light comes and goes, a feed fails.

A measurement that could be explained in two ways makes no event: a lamp that is switched on changes the whole
picture, and is no motion.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .event_log import Event

SECOND = 1_000_000_000  # ns
QUIET = 3 * SECOND // 2  # without motion before it counts as ended
_DARK, _BRIGHT, _HYSTERESIS = 0.25, 0.7, 0.05  # shares of full brightness
FROZEN = 2 * SECOND
LEAST_MOTION = 0.004  # share of changed pixels; under it, no motion: 12 of the thumbnail's


@dataclass(frozen=True, slots=True)
class Sight:
    """What was measured of one picture."""

    at: int  # ns
    brightness: float  # 0-1, mean luma
    colours: Mapping[str, float]  # name → share of the picture, 0-1
    motion: float | None  # share of the picture that changed; None when it cannot be told
    region: str  # "" still, everywhere, somewhere, centre, left, right, top, bottom
    same_s: float  # for how long the picture has not changed at all
    width: int
    height: int
    relit: bool = False  # the light changed all over: what moved meanwhile is not known

    @property
    def black(self) -> bool:
        return self.brightness < 0.03

    @property
    def white(self) -> bool:
        return self.brightness > 0.97

    @property
    def frozen(self) -> bool:
        return self.same_s * SECOND >= FROZEN

    @property
    def blind(self) -> bool:
        """Nothing can be said about the scene."""
        return self.black or self.white or self.frozen

    @property
    def light(self) -> str:
        """One of: dark, dim, well lit, bright."""
        b = self.brightness
        return "dark" if b < _DARK else "dim" if b < 0.4 else "bright" if b > _BRIGHT else "well lit"


class Watcher:
    """Turns sights into events. States change with hysteresis, so noise at a threshold makes no events."""

    def __init__(self) -> None:
        self.moving_since: int | None = None
        self.still_since: int | None = None  # no motion has been seen from here on
        self._last_motion = 0
        self._light = ""
        self._size = (0, 0)
        self._state = {"black": False, "white": False, "frozen": False}

    def see(self, sight: Sight) -> list[Event]:
        """Events of this sight, oldest first."""
        events: list[Event] = []
        size = (sight.width, sight.height)
        if self._size != size:
            if self._size != (0, 0):
                fields = {"width": sight.width, "height": sight.height}
                events.append(Event(sight.at, "size_changed", fields=fields))
            self._size = size
        for name, now in (("black", sight.black), ("white", sight.white), ("frozen", sight.frozen)):
            if now != self._state[name]:
                self._state[name] = now
                start = sight.at - round(sight.same_s * SECOND) if name == "frozen" and now else sight.at
                events.append(Event(start, f"{name}_started" if now else f"{name}_ended"))
        if not (sight.black or sight.white):
            events += self._light_events(sight)
        events += self._motion_events(sight)
        return events

    def _light_events(self, sight: Sight) -> list[Event]:
        b, before = sight.brightness, self._light
        if b < _DARK - (_HYSTERESIS if before == "medium" else 0):
            now = "dark"
        elif b > _BRIGHT + (_HYSTERESIS if before == "medium" else 0):
            now = "bright"
        elif (before == "dark" and b < _DARK + _HYSTERESIS) or (
            before == "bright" and b > _BRIGHT - _HYSTERESIS
        ):
            now = before
        else:
            now = "medium"
        self._light = now
        if not before or now == before:
            return []
        what = {"dark": "got_dark", "bright": "got_bright"}.get(now) or (
            "got_lighter" if before == "dark" else "got_dimmer"
        )
        return [Event(sight.at, what, fields={"brightness": round(b, 2)})]

    def _motion_events(self, sight: Sight) -> list[Event]:
        if sight.blind or sight.motion is None:
            self.still_since = None  # what it does not see, it does not call still
            if sight.blind and self.moving_since is not None:
                self.moving_since = None
                return [Event(sight.at, "motion_lost")]
            return []
        if sight.region:
            self._last_motion, self.still_since = sight.at, None
            if self.moving_since is None:
                self.moving_since = sight.at
                return [Event(sight.at, "motion_started", sight.region, {"share": round(sight.motion, 3)})]
            return []
        self.still_since = sight.at if self.still_since is None else self.still_since
        if self.moving_since is not None and sight.at - self._last_motion >= QUIET:
            lasted = (self._last_motion - self.moving_since) / SECOND
            self.moving_since = None
            return [Event(self._last_motion, "motion_ended", fields={"lasted_s": round(lasted, 1)})]
        return []
