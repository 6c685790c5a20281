"""What `diffusion.stream` can be told: options fixed at start, parameters that change while it runs."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from ..models import stream_models
from ..models.stream_model import MAX_STEPS, STEADY, Settings, Switch, fitted
from ..pipeline.stage import NoFields
from ..pipeline.units import Device
from .told_prompt import LONGEST


def _camera(size: str) -> str:
    if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", size):
        raise ValueError(f"{size!r} is no size of a camera; write WIDTHxHEIGHT, as 640x480")
    return size


class DiffusionOptions(NoFields):
    """Fixed at start."""

    model: str = "tiny-restyle"
    weights: Path | None = None
    side: Annotated[
        int, Field(ge=64, le=2048, description="The model draws about side² pixels a picture")
    ] = 256
    engine: stream_models.Engine = "auto"
    device: Device = "auto"
    precision: stream_models.Precision = "auto"
    rcfg: Annotated[
        stream_models.Guidance,
        Field(description="Where guidance takes its negative from, in models that have it: the cost rises"),
    ] = "self"
    window: Annotated[
        int,
        Field(ge=2, le=64, description="Latent frames that a video model looks back on, the sink included"),
    ] = 6
    sink: Annotated[int, Field(ge=0, le=8, description="Of them the first of the stream, kept for good")] = 1
    compile: Annotated[
        bool, Field(description="On a GPU: compile for speed, at the price of minutes at the first start")
    ] = False

    prepare: Annotated[
        tuple[Annotated[str, AfterValidator(_camera)], ...],
        Field(
            max_length=8,
            description="Sizes of cameras that a GPU is made ready for at the start; pictures of others "
            "pass through until it is",
        ),
    ] = ("640x480",)
    slots: Annotated[
        int,
        Field(ge=1, le=32, description="Streams of each of these sizes that wait for sessions, in memory"),
    ] = 1

    def loading(self, device: str) -> dict[str, Any]:
        """What `diffusion_rows.make` is given; `device` is the pool's."""
        return {
            "model": self.model,
            "weights": None if self.weights is None else str(self.weights),
            "engine": self.engine,
            "device": device if self.device == "auto" else self.device,
            "precision": self.precision,
            "guidance": self.rcfg,
            "window": self.window,
            "sink": self.sink,
            "compiled": self.compile,
        }

    def size(self, height: int, width: int, scale: float, multiple: int) -> tuple[int, int]:
        """The model's (height, width) for a camera's picture, at a scale of `side`."""
        return fitted(height, width, max(multiple, round(self.side * scale)), multiple)

    def sizes(self, scales: Iterable[float], multiple: int) -> list[tuple[int, int]]:
        """Those to prepare, each once."""
        cameras = [tuple(map(int, camera.split("x"))) for camera in self.prepare]
        falling = sorted(scales, reverse=True)
        return list(dict.fromkeys(self.size(h, w, s, multiple) for w, h in cameras for s in falling))

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        stream_models.check(name)
        return name


class DiffusionParams(BaseModel):
    """Live parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Annotated[str, Field(title="Prompt", max_length=LONGEST)] = ""
    negative_prompt: Annotated[
        str, Field(title="Negative prompt", max_length=LONGEST, description="Counts when guidance is not 1")
    ] = ""
    blend_prompt: Annotated[str, Field(title="Second prompt", max_length=LONGEST)] = ""
    blend: Annotated[float, Field(title="Blend", ge=0, le=1, description="Share of the second prompt")] = 0.0
    strength: Annotated[float, Field(title="Strength", ge=0, le=1)] = 1.0
    steps: Annotated[int, Field(title="Steps", ge=1, le=MAX_STEPS)] = 1
    guidance: Annotated[float, Field(title="Guidance", ge=0, le=4)] = 1.0
    seed: Annotated[int, Field(title="Seed", ge=0, le=2**31 - 1)] = 0
    steady: Annotated[
        float,
        Field(
            title="Steadiness",
            ge=0,
            le=1,
            description="How much of the picture before stays where nothing but the camera moved (tiny-restyle)",
        ),
    ] = STEADY
    switch: Annotated[
        Switch, Field(title="On a new prompt", description="What video models do with what they remember")
    ] = "keep"
    skip_still: Annotated[bool, Field(title="Rest when nothing moves")] = True
    follow_motion: Annotated[bool, Field(title="Less noise while things move")] = True
    paused: Annotated[bool, Field(title="Pause")] = False

    def settings(self, at_most: int) -> Settings:
        """As the model takes them, with no more than `at_most` steps."""
        return Settings(
            self.prompt,
            self.negative_prompt,
            self.blend_prompt,
            self.blend,
            self.strength,
            min(self.steps, at_most),
            self.guidance,
            self.seed,
            self.steady,
            self.switch,
        )
