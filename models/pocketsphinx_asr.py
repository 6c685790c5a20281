"""PocketSphinx as a streaming recogniser: the fallback that needs no download.

A GMM-HMM of 2010s technique, American English only. With a closed n-gram it hears a few dozen commands
well; with its open language model a third to two thirds of the words are wrong (WER 0.32 and 0.64 on
two recordings, benchmarks/asr_embedded.py). Use a neural recogniser for captions that people rely on.

Source: Huggins-Daines et al., "PocketSphinx" (ICASSP 2006); model and decoder BSD-licensed.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .ngram import NGram

RATE_HZ = 16_000
BLOCK = 1600  # samples a search step; fixed, so that results do not depend on how audio arrives

# Half of the unigram mass goes to 1,000 common words: measured on 36 sentences that are no command, false
# commands fall from 8 % to 3–6 % (two voices), commands heard stay at 97–99 %.
_BACKGROUND_MASS = 0.5

# The open search as built in takes 0.7–1 s of CPU a second of speech, more than live captions have.
# This takes 0.3–0.5 at about the same error.
_OPEN_SEARCH: dict[str, Any] = {"fwdflat": False, "maxhmmpf": 3000, "wip": 0.2}

# cmudict says "noyr", people say "nwar"
_EXTRA_PRONUNCIATIONS = {"noir(2)": "N W AA R"}

# Live speech is brought to this level before the front end.
_TARGET_RMS = 0.06
_MAX_GAIN = 20.0

# The cepstral mean of a turn is taken from its first second, before the search begins: from the decoder's
# own start value it takes 10 s to get there, and the first turn is lost (WER 0.95 → 0.55 on one recording).
_SETTLE = RATE_HZ


class Recogniser:
    """One stream: begin, advance…, finish, again and again. Not thread-safe."""

    def __init__(self, decoder: Any, ear: Any) -> None:
        """`decoder` searches; `ear`, with batch mean normalisation, only measures the channel."""
        self._decoder = decoder
        self._ear = ear
        self._pending = np.zeros(0, np.float32)
        self._gain = 0.0  # 0: the channel of this utterance is not measured yet
        self._active = False

    def begin(self) -> None:
        """Start an utterance."""
        if self._active:
            self.finish()
        self._pending = np.zeros(0, np.float32)
        self._gain = 0.0
        self._active = True

    def advance(self, audio: NDArray[np.float32]) -> str:
        """(T,) float32 at 16 kHz → the best guess at all words so far."""
        self._pending = np.concatenate([self._pending, audio])
        if not self._gain:
            if len(self._pending) < _SETTLE:
                return ""
            self._measure()
        while len(self._pending) >= BLOCK:
            self._search(self._pending[:BLOCK])
            self._pending = self._pending[BLOCK:]
        return _words(self._decoder.hyp())

    def finish(self) -> str:
        """End the utterance; its words, "" when nothing was made out."""
        if not self._active:
            return ""
        self._active = False
        if not self._gain:
            if len(self._pending) < BLOCK:
                return ""
            self._measure()
        for start in range(0, len(self._pending), BLOCK):
            self._search(self._pending[start : start + BLOCK])
        self._pending = np.zeros(0, np.float32)
        self._decoder.end_utt()
        return _words(self._decoder.hyp())

    def _measure(self) -> None:
        """Gain and cepstral mean from what is pending, then start the search."""
        self._gain = _gain_for(self._pending)
        self._ear.start_utt()
        self._ear.process_raw(self._pcm(self._pending), no_search=True, full_utt=True)
        self._ear.end_utt()
        self._decoder.set_cmn(self._ear.get_cmn())
        self._decoder.start_utt()

    def _search(self, block: NDArray[np.float32]) -> None:
        self._decoder.process_raw(self._pcm(block), no_search=False, full_utt=False)

    def _pcm(self, audio: NDArray[np.float32]) -> bytes:
        return np.clip(audio * (self._gain * 32767), -32768, 32767).astype("<i2").tobytes()


def open_recogniser() -> Recogniser:
    """Any English words. 0.3 s and 60 MB each. Raises: FileNotFoundError without the package."""
    decoder = _decoder(_model() / "en-us.lm.bin", _model() / "cmudict-en-us.dict", **_OPEN_SEARCH)
    with _phrase_files(("a",), ()) as (lm, lexicon):
        return Recogniser(decoder, _decoder(lm, lexicon, cmn="batch"))


def phrase_recogniser(phrases: Sequence[str]) -> Recogniser:
    """These phrases, against a background of common words that soaks up everything else.

    Raises: ValueError for a phrase with a word of unknown pronunciation; FileNotFoundError without the
    package.
    """
    words = {w for phrase in phrases for w in phrase.split()}
    known = pronunciations()
    if unknown := sorted(w for w in words if w not in known):
        raise ValueError(f"no pronunciation for {', '.join(unknown)}: the dictionary is English")
    background = [w for w in common_words() if w not in words and w in known]
    with _phrase_files(phrases, background) as (lm, lexicon):
        return Recogniser(_decoder(lm, lexicon), _decoder(lm, lexicon, cmn="batch"))


@contextmanager
def _phrase_files(phrases: Sequence[str], background: Sequence[str]) -> Generator[tuple[Path, Path]]:
    """A language model and a dictionary for these phrases, as files while the context lasts."""
    model = NGram(phrases, background=background, background_mass=_BACKGROUND_MASS)
    words = {w for phrase in phrases for w in phrase.split()}
    with TemporaryDirectory(prefix="penstock-lm-") as folder:
        lm, lexicon = Path(folder, "phrases.arpa"), Path(folder, "phrases.dict")
        lm.write_text(model.arpa(), encoding="ascii")
        lexicon.write_text("\n".join(_entries(words | set(background))) + "\n", encoding="ascii")
        yield lm, lexicon


@cache
def pronunciations() -> dict[str, list[str]]:
    """cmudict: word → its pronunciations, phones apart by blanks."""
    table: dict[str, list[str]] = {}
    text = (_model() / "cmudict-en-us.dict").read_text(encoding="ascii")
    entries = [line.partition(" ")[::2] for line in text.splitlines() if line]
    for name, phones in [*entries, *_EXTRA_PRONUNCIATIONS.items()]:
        table.setdefault(name.partition("(")[0], []).append(phones)
    return table


def _entries(words: Iterable[str]) -> Iterable[str]:
    """Lines of a dictionary file; the n-th pronunciation of a word is named `word(n)`."""
    for word in sorted(words):
        for n, phones in enumerate(pronunciations()[word], 1):
            yield f"{word} {phones}" if n == 1 else f"{word}({n}) {phones}"


@cache
def common_words() -> tuple[str, ...]:
    return tuple((Path(__file__).parent / "data" / "common_words.txt").read_text(encoding="ascii").split())


def _gain_for(audio: NDArray[np.float32]) -> float:
    """Brings the louder half of `audio` to the target level."""
    if len(audio) < 320:
        return 1.0
    frames = audio[: len(audio) // 320 * 320].reshape(-1, 320)  # (N, 20 ms)
    rms = np.sqrt((frames**2).mean(axis=1))
    loud = float(np.mean(rms[rms >= np.median(rms)]))
    return min(_MAX_GAIN, _TARGET_RMS / loud) if loud > 1e-5 else 1.0


def _words(hypothesis: Any) -> str:
    return str(hypothesis.hypstr) if hypothesis is not None else ""


def _model() -> Path:
    try:
        import pocketsphinx
    except ModuleNotFoundError as e:
        raise FileNotFoundError("the recogniser is missing: it comes in the package pocketsphinx>=5.1") from e
    return Path(pocketsphinx.get_model_path("en-us"))


def _decoder(lm: Path, lexicon: Path, *, cmn: str = "live", **search: Any) -> Any:
    import pocketsphinx

    return pocketsphinx.Decoder(
        hmm=str(_model() / "en-us"), lm=str(lm), dict=str(lexicon), cmn=cmn, loglevel="FATAL", **search
    )
