"""What the listener of a session has heard so far: told by the sink that paces sound out, asked by whoever takes turns.

This goes against the stream (a graph has no circles), so it is an object of the session and not an edge.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from .clock import MS, NEVER, Clock

REMEMBERED = 64  # utterances; history asks for those since the last question
TAPPED = 100  # steps of 20 ms that a tap holds when nobody takes them
PAUSE = 300 * MS  # a shorter silence between two sounds of one reply is a pause, not its end


class Tap:
    """What was played, for an echo guard: (when it left, (T, C) int16 at `rate_hz`), None for silence."""

    def __init__(self, rate_hz: int) -> None:
        self.rate_hz = rate_hz
        self._steps: deque[tuple[int, int, NDArray[np.int16] | None]] = deque(maxlen=TAPPED)

    def put(self, at: int, samples: int, pcm: NDArray[np.int16] | None) -> None:
        self._steps.append((at, samples, pcm))

    def take(self) -> list[tuple[int, int, NDArray[np.int16] | None]]:
        """(time in ns, samples, sound) since the last call, oldest first."""
        steps = list(self._steps)
        self._steps.clear()
        return steps


class Playback:
    """Attributes: `paced`: a sink plays in real time and tells; without one all that is made counts as heard."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._hold: Callable[[int], None] | None = None
        self._rate_hz = 0
        self._taps: list[Tap] = []
        self._heard: OrderedDict[int, str] = OrderedDict()
        self._waiting = 0  # ns of sound at the sink
        self.paced = False
        self.ended = -NEVER  # when sound last left, ns

    # ------------------------------------------------------------ the sink's side

    def attach(self, rate_hz: int, hold: Callable[[int], None]) -> None:
        """A sink takes over. hold(until): be silent until then (ns), lose nothing; a past time lets it go on."""
        self.paced, self._rate_hz, self._hold = True, rate_hz, hold

    def step(
        self,
        at: int,
        samples: int,
        pcm: NDArray[np.int16] | None,
        waiting: int,
        said: Sequence[tuple[int, str]],
    ) -> None:
        """One step has left at `at`. pcm: None when it was silence; waiting: ns of sound still to come;
        said: (utterance, words) whose last sample was in it."""
        if pcm is not None:
            self.ended = at
        self._waiting = waiting
        for utterance, text in said:
            self._heard[utterance] = self._heard.get(utterance, "") + text
            self._heard.move_to_end(utterance)
            if len(self._heard) > REMEMBERED:
                self._heard.popitem(last=False)
        for tap in self._taps:
            tap.put(at, samples, pcm)

    # ------------------------------------------------------------ the stages' side

    def heard(self, utterance: int) -> str:
        """The words of a reply that were played to their end."""
        return self._heard.get(utterance, "")

    def forget(self, utterance: int) -> None:
        """A reply begins: what an earlier one of this number said does not count."""
        self._heard.pop(utterance, None)

    @property
    def busy(self) -> bool:
        """Is somebody speaking to the listener, or held in the middle of it?"""
        return self._waiting > 0 or self._clock.now() - self.ended < PAUSE

    def hold(self, until: int) -> None:
        """Silence generated sound now, until `until` (ns) at most, without losing any."""
        if self._hold is not None:
            self._hold(until)

    def release(self) -> None:
        """Go on after a hold, from the beginning of the word that it cut."""
        if self._hold is not None:
            self._hold(0)

    def tap(self) -> Tap | None:
        """Listen to what is played from now on; None while no sink plays."""
        if not self.paced:
            return None
        tap = Tap(self._rate_hz)
        self._taps.append(tap)
        return tap

    def untap(self, tap: Tap) -> None:
        if tap in self._taps:
            self._taps.remove(tap)
