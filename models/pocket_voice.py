"""pocket-tts as a voice: real speakers, 100 M parameters, made for CPUs; for who has its weights. Needs the extra `pocket`.

24 kHz, 0.4 of a core a session. It knows no times of words (they are spread evenly) and speaks at one speed.
"""

from __future__ import annotations

import importlib
import itertools
import tempfile
from collections import deque
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .hub_folder import first_line, hub_folder
from .pocket_stream import PocketStream, States
from .voice import Evenly, NoVoice, Sink, Spoken, paced, run

MODEL = "pocket-tts"
LANGUAGE = "english"
SPEAKER = "alba"
_HUB = "kyutai/pocket-tts-without-voice-cloning"
_MOST_TOKENS = 50  # it was taught on sentences of no more
_LONGEST_WORD = 40  # characters; a longer one is spoken in parts
_PACE = 15.0  # characters a second at first; then as it was heard to speak


class PocketSpeech:
    """One clause; a step makes 80 ms."""

    def __init__(self, voice: PocketVoice, text: str) -> None:
        self._voice, self._text = voice, text
        self._portions = deque(voice.portions(text))
        self._state: Any = None
        self._evenly = Evenly(text, voice.pace, voice.rate_hz)
        self._samples = 0

    def step(self) -> list[Spoken]:
        """Nothing after the last."""
        stream = self._voice.stream
        while self._state is not None or self._portions:
            if self._state is None:
                self._state = self._voice.begin_portion(self._portions.popleft())
            sound = stream.step(self._state)
            if sound is None:
                self._state = None
                continue
            self._samples += len(sound)
            ending = self._state.ends is not None and not self._portions
            text = self._evenly.rest() if ending else self._evenly.upto(self._samples)
            pcm = (sound.clamp(-1, 1) * 32767).to(torch.int16).numpy()
            return [Spoken(pcm, text)]
        if self._samples:
            self._voice.heard(len(self._text.strip()), self._samples)
            if rest := self._evenly.rest():  # no frame came after the end was known
                self._samples = 0
                return [Spoken(np.zeros(self._voice.rate_hz // 100, np.int16), rest)]
        return []


class PocketVoice:
    """One speaker. Calls may overlap: the weights are never written, a call's state is its own."""

    def __init__(self, stream: PocketStream, speaker: States, name: str = "pocket") -> None:
        self.name, self.stream, self.rate_hz = name, stream, stream.rate_hz
        self.pace = _PACE
        self._speaker = speaker
        self._seeds = itertools.count()
        self._prepare: Any = importlib.import_module("pocket_tts.models.text_chunking").prepare_text_prompt

    def begin(self, text: str, *, rate: float = 1.0) -> PocketSpeech:
        """rate: without effect, the model has one speed."""
        return PocketSpeech(self, text)

    def synthesise(
        self, text: str, sink: Sink, should_stop: Callable[[], bool], *, rate: float = 1.0
    ) -> None:
        run(self.begin(text), sink, should_stop)

    def portions(self, text: str) -> list[str]:
        """Of as many words as it was taught to speak at once."""
        if not any(c.isalnum() for c in text):
            return []
        encode = self.stream.model.flow_lm.conditioner.tokenizer.encode
        out, words, count = list[str](), list[str](), 0
        for word in text.split():
            for part in (word[i : i + _LONGEST_WORD] for i in range(0, len(word), _LONGEST_WORD)):
                tokens = len(encode(part))
                if words and count + tokens > _MOST_TOKENS:
                    out.append(" ".join(words))
                    words, count = [], 0
                words.append(part)
                count += tokens
        return [*out, " ".join(words)]

    def begin_portion(self, text: str) -> Any:
        """The state of a stream that will say this."""
        model = self.stream.model
        prompt, guess = self._prepare(
            text,
            model.pad_with_spaces_for_short_inputs,
            model.remove_semicolons,
            model.append_terminal_punctuation,
            model.capitalize_first_letter,
            model.replace_characters,
        )
        recommended = model.model_recommended_frames_after_eos
        tokens = model.flow_lm.conditioner.prepare(prompt)
        noise = torch.Generator().manual_seed(next(self._seeds))
        tail = guess + 2 if recommended is None else recommended
        return self.stream.init_state(tokens, self._speaker, noise=noise, tail=tail)

    def heard(self, characters: int, samples: int) -> None:
        """So many were spoken in so many samples: the next words are placed by it."""
        self.pace = paced(self.pace, characters * self.rate_hz / samples)


@cache
def load(source: str = MODEL, speaker: str = SPEAKER, language: str = LANGUAGE) -> PocketVoice:
    """A voice; weights are shared by its speakers.

    source: a name of `penstock models`, a folder, or a hub id. speaker: a name below `embeddings/`, or a file of
    `pocket-tts export-voice` (.safetensors). Raises: NoVoice in words.
    """
    stream, root = _weights(source, language)
    file = (
        Path(speaker) if speaker.endswith(".safetensors") else root / "embeddings" / f"{speaker}.safetensors"
    )
    if not file.is_file():
        known = sorted(f.stem for f in (root / "embeddings").glob("*.safetensors"))
        raise NoVoice(f"pocket-tts has no speaker {speaker!r} here; known: {', '.join(known) or 'none'}")
    try:
        state: States = stream.model.get_state_for_audio_prompt(file)
    except Exception as e:
        raise NoVoice(f"the speaker {file} cannot be read: {e}") from e
    _check(stream, state, file)
    return PocketVoice(stream, state, f"pocket:{file.stem}")


@cache
def _weights(source: str, language: str) -> tuple[PocketStream, Path]:
    if find_spec("pocket_tts") is None:
        raise NoVoice("the voice pocket needs the extra: pip install 'penstock[pocket]'")
    below = f"languages/{language}/"
    try:
        folder = hub_folder(source, "tts.stream", _HUB, (f"{below}*.safetensors", f"{below}*.json"))
    except ValueError as e:
        raise NoVoice(str(e)) from e
    root = folder / below if (folder / below).is_dir() else folder
    missing = [n for n in ("model.safetensors", "tokenizer.json") if not (root / n).is_file()]
    if missing:
        raise NoVoice(f"{root} lacks {' and '.join(missing)}: this is no checkpoint of pocket-tts")
    words = root / "tokenizer.json"
    try:
        importlib.import_module("tokenizers").Tokenizer.from_file(str(words))
    except Exception as e:  # the package raises no narrower one
        raise NoVoice(f"{words} is damaged or no tokenizer ({e})") from e
    return PocketStream(_model(root, language)), root


def _model(root: Path, language: str) -> Any:
    """A `pocket_tts.TTSModel` of this folder. Its shape is `config.yaml` there, else the package's for the language."""
    import yaml

    threads = torch.get_num_threads()
    package: Any = importlib.import_module("pocket_tts.models.tts_model")
    torch.set_num_threads(threads)  # the package sets them to 1 for the whole process
    own, shipped = root / "config.yaml", package.CONFIGS_DIR / f"{language}.yaml"
    config_file = own if own.is_file() else shipped
    if not config_file.is_file():
        known = sorted(f.stem for f in package.CONFIGS_DIR.glob("*.yaml"))
        raise NoVoice(f"pocket-tts has no language {language!r}; known: {', '.join(known)}")
    try:
        config: Any = yaml.safe_load(config_file.read_text())
        # everything is read from this folder, nothing from the hub
        config["weights_path"] = str(root / "model.safetensors")
        config.pop("weights_path_without_voice_cloning", None)
        for part in ("flow_lm", "mimi"):
            config[part].pop("weights_path", None)
        table = config["flow_lm"]["lookup_table"]
        table["tokenizer"], table["tokenizer_path"] = "tokenizers", str(root / "tokenizer.json")
        with tempfile.TemporaryDirectory() as scratch:
            local = Path(scratch) / f"{language}.yaml"
            local.write_text(yaml.safe_dump(config))
            model = package.TTSModel.load_model(config=local)
    except Exception as e:
        raise NoVoice(f"pocket-tts in {root} cannot be loaded: {first_line(e)}") from e
    return model.eval().requires_grad_(False)


def _check(stream: PocketStream, state: States, file: Path) -> None:
    """Raises: NoVoice when a speaker was made with other weights' shape."""
    layers = stream.model.flow_lm.transformer.layers
    heads = layers[0].self_attn
    wanted = {f"transformer.layers.{i}.self_attn" for i in range(len(layers))}
    shape = (heads.num_kv_heads, heads.dim_per_head)
    fits = set(state) == wanted and all(
        "offset" in s and "cache" in s and tuple(s["cache"].shape[3:]) == shape for s in state.values()
    )
    if not fits:
        raise NoVoice(
            f"the speaker {file} was made with another model: export it again with this one's weights"
        )
