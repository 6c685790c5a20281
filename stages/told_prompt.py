"""Prompts that are told in words while the stream runs: lines of the chat, what a recogniser heard, a model's answer."""

from __future__ import annotations

from ..models.restyle_prompt import PHRASES, read
from ..models.stream_models import EMBEDDED
from ..pipeline.frame import TokenFrame
from ..pipeline.stage import Context, In

PROMPT = In(TokenFrame, required=False, many=True)
LONGEST = 20_000  # characters, as the parameter takes them


class ToldPrompt:
    """Makes each line the node's parameter `prompt`, for all to see. One that changes nothing is told as an event."""

    def __init__(self, ctx: Context, model: str) -> None:
        self._ctx = ctx
        self._model = model
        # source → utterance and epoch, its deltas so far
        self._lines: dict[str, tuple[tuple[int, int], str]] = {}

    def hear(self, frame: TokenFrame, source: str) -> None:
        """source: "node.port" that put the frame. What it began and did not end is forgotten with its next utterance."""
        which = (frame.utterance, frame.epoch)
        begun, line = self._lines.pop(source, (which, ""))
        line = ((line if begun == which else "") + frame.text)[:LONGEST]
        if not frame.end:
            self._lines[source] = (which, line)
            return
        line = line.strip()
        if not line:
            return
        if self._model == EMBEDDED and not read(line):  # else the picture would lose its style without a word
            known = ", ".join(phrases[0] for phrases in PHRASES.values())
            self._ctx.emit("diffusion.unknown_style", known=known)
            return
        self._ctx.set_params(self._ctx.node, {"prompt": line})
