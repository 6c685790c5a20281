"""What the toy VLM's decoder is taught: lessons name the right things, and where it looks is measured as it looks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from penstock.models.toy_questions import WORDS
from penstock.models.toy_vlm import THING, THINGS, ToyVlm, load
from penstock.models.toy_world import COLOURS, SHAPES
from penstock.models.training import toy_vlm
from penstock.models.training.toy_lessons import TICKS, Lesson, Stream, lesson, watch
from torch import Tensor

COLOUR = 1 + len(SHAPES)


def lessons(count: int) -> list[Lesson]:
    """As an eye sees that does not err: things in the order of the world."""
    made: list[Lesson] = []
    for seed in range(count):
        _, _, moments, past = watch((1, seed), TICKS)
        slots = torch.zeros(TICKS, THINGS, THING)
        for t, moment in enumerate(moments):
            for i, thing in enumerate(moment.things):
                slots[t, i, [0, 1 + thing.shape, COLOUR + thing.colour]] = 1.0
        stream = Stream(slots, torch.full((TICKS, 1, 12), 0.25), moments, past)
        made.append(lesson(np.random.default_rng(seed), stream, (None,) * 16))
    return made


def test_lessons_point_at_the_thing_that_is_asked_about_or_told_of() -> None:
    asked = told = 0
    for one in lessons(12):
        ticks = dict(one.pictures)
        for named, end, token in one.about:
            words = [WORDS[i] for i in one.ids[end - 5 : end + 2]]
            first = one.picture_of(token)
            slot = one.stream.slots[ticks[first], token - first]
            colour, shape = (
                COLOURS[int(slot[COLOUR : COLOUR + 6].argmax())],
                SHAPES[int(slot[1:COLOUR].argmax())],
            )
            assert WORDS[one.ids[named]] in (colour, shape)
            assert WORDS[one.ids[end]] == "<answer>"
            assert colour in words
            assert first == one.pictures[-1][0], "of now"
            asked += 1
        for at, token in one.happened:
            first = one.picture_of(token)
            colour = COLOURS[int(one.stream.slots[ticks[first], token - first, COLOUR : COLOUR + 6].argmax())]
            assert WORDS[one.ids[at]] == "<look>"
            assert WORDS[one.ids[at + 1]] == colour
            left = WORDS[one.ids[at + 3]] == "left"
            assert (first < one.picture_of(at)) == left, "what has left was in the picture before"
            told += 1
    assert asked > 40
    assert told > 8


def test_looks_are_the_attention_that_the_decoder_has(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = ToyVlm().requires_grad_(False)
    seen: list[Tensor] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, **_: object) -> Tensor:
        k_, v_ = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        weights = (q @ k_.transpose(2, 3) * q.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        seen.append(weights.mean(1))
        return weights @ v_

    looked: list[tuple[int, Tensor, Tensor, Tensor]] = []
    measure = toy_vlm.Gaze.looks_of

    def looks(self: toy_vlm.Gaze, found: Tensor, b: Tensor, at: Tensor, *rest: Tensor) -> Tensor:
        result = measure(self, found, b, at, *rest)
        layer = next(i for i, f in enumerate(self.found) if f is found)
        looked.append((layer, b, at, result))
        return result

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    monkeypatch.setattr(toy_vlm.Gaze, "looks_of", looks)
    _, _, loss = toy_vlm.forward(model, lessons(3), look=True)
    assert float(loss) > 0
    assert [layer for layer, *_ in looked] == [0, 1, 2, 2]
    for layer, b, at, result in looked:
        torch.testing.assert_close(result, seen[layer][b, at], atol=1e-5, rtol=1e-4)


def test_the_shipped_decoder_looks_where_it_was_taught_to() -> None:
    with torch.inference_mode():
        _, _, shipped = toy_vlm.forward(load(), lessons(8), look=True)
        _, _, untaught = toy_vlm.forward(ToyVlm(), lessons(8), look=True)
    assert float(shipped) < 0.25 * float(untaught)
