"""What is ready before pictures come: sizes that were compiled and captured, and streams whose memory is there already.

Where a model captures (on a GPU), the first forwards of each size and number of rows take seconds, minutes where they are
compiled: no session's pictures wait for them. A stream that a session has left is taken by the next one, forgotten.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..models.stream_model import Settings, StreamModel

AnyModel = StreamModel[Any, Any, Any]
Size = tuple[int, int]  # the model's (height, width)


class Slots:
    """Of one model, for all sessions. Any thread may call it."""

    def __init__(self, model: AnyModel) -> None:
        self._model = model
        self._idle: dict[Size, list[Any]] = {}  # states
        self._keep: dict[Size, int] = {}  # idle ones at most
        self._lock = threading.Lock()
        self._making = threading.Lock()

    @property
    def idle(self) -> Mapping[Size, int]:
        """Streams that wait for a session, by size."""
        with self._lock:
            return {size: len(states) for size, states in self._idle.items()}

    def ready(self, size: Size) -> bool:
        """Whether a stream of this size begins at once."""
        return not self._model.captures or size in self._keep

    def prepare(self, size: Size, settings: Settings, most: int, count: int) -> None:
        """Run all that streams of a size will, up to `most` rows at a time, and make `count` streams. Blocks; once a size."""
        with self._making:
            if size in self._keep:
                return
            states = [self._model.warm(size, settings, most)]
            states += [self._model.init_state(size, settings) for _ in range(count - 1)]
            with self._lock:
                self._idle[size] = states[:count]
                self._keep[size] = count

    def take(self, size: Size, settings: Settings) -> Any:
        """A stream's state: one that waits, or a new one. Blocks: prompts are encoded."""
        with self._lock:
            states = self._idle.get(size)
            state = states.pop() if states else None
        if state is None:
            return self._model.init_state(size, settings)
        # its old prompt is no memory of this session's: nothing is written anew for its sake
        self._model.adjust(state, replace(settings, switch="keep"))
        self._model.adjust(state, settings)
        return state

    def give_back(self, size: Size, state: Any) -> None:
        """A session has left this stream, of which nothing is on its way."""
        self._model.reset(state)
        with self._lock:
            states = self._idle.setdefault(size, [])
            if len(states) < self._keep.get(size, 0):
                states.append(state)


# by the model's id: a Slots keeps its model, and goes with the last pool or stage that uses it
_of: weakref.WeakValueDictionary[int, Slots] = weakref.WeakValueDictionary()
_making = threading.Lock()


def slots_of(model: AnyModel) -> Slots:
    """The model's, made when first asked for."""
    with _making:
        slots = _of.get(id(model))
        if slots is None:
            slots = _of[id(model)] = Slots(model)
        return slots
