"""Round trips: sentences through a voice and PocketSphinx with its large model, which is biased against formant voices.

    python benchmarks/voice_words.py flite:rms,flow [--seeds 2] [--few]

Each seed is another dither before the recogniser, and other noise of the neural voice. Every voice speaks the same.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from typing import Any

import jiwer
import numpy as np
from penstock.models import voices
from penstock.models.pocketsphinx_asr import open_recogniser
from penstock.models.voice import NoVoice, Spoken, Voice
from report import line
from scipy.signal import resample_poly

# the 20 of the first measurements come first; the rest of the Harvard lists 1 to 7 (IEEE, 1969) after them
SENTENCES = """
the birch canoe slid on the smooth planks
glue the sheet to the dark blue background
it is easy to tell the depth of a well
these days a chicken leg is a rare dish
rice is often served in round bowls
the juice of lemons makes fine punch
the box was thrown beside the parked truck
four hours of steady work faced us
a large size in stockings is hard to sell
the boy was there when the sun rose
a rod is used to catch pink salmon
the source of the huge river is the clear spring
kick the ball straight and follow through
help the woman get back to her feet
a pot of tea helps to pass the evening
smoky fires lack flame and heat
the soft cushion broke the mans fall
the salt breeze came across from the sea
the girl at the booth sold fifty bonds
your meeting with the design team starts at half past three on thursday
the hogs were fed chopped corn and garbage
the small pup gnawed a hole in the sock
the fish twisted and turned on the bent hook
press the pants and sew a button on the vest
the swan dive was far short of perfect
the beauty of the view stunned the young boy
two blue fish swam in the tank
her purse was full of useless trash
the colt reared and threw the tall rider
it snowed rained and hailed the same morning
read verse out loud for pleasure
hoist the load to your left shoulder
take the winding path to reach the lake
note closely the size of the gas tank
wipe the grease off his dirty face
mend the coat before you go out
the wrist was badly strained and hung limp
the stray cat gave birth to kittens
the young girl gave no clear response
the meal was cooked before the bell rang
what joy there is in living
a king ruled the state in the early days
the ship was torn apart on the sharp reef
sickness kept him home the third week
the wide road shimmered in the hot sun
the lazy cow lay in the cool grass
lift the square stone over the fence
the rope will bind the seven books at once
hop over the fence and plunge in
the friendly gang left the drug store
mesh wire keeps chicks inside
the frosty air passed through the coat
the crooked maze failed to fool the mouse
adding fast leads to wrong sums
the show was a flop from the very start
a saw is a tool used for making boards
the wagon moved on well oiled wheels
march the soldiers past the next hill
a cup of sugar makes sweet fudge
place a rosebush near the porch steps
both lost their lives in the raging storm
we talked of the side show in the circus
use a pencil to write the first draft
he ran half way to the hardware store
the clock struck to mark the third period
a small creek cut across the field
cars and busses stalled in snow drifts
the set of china hit the floor with a crash
this is a grand season for hikes on the road
the dune rose from the edge of the water
those words were the cue for the actor to leave
a yacht slid around the point into the bay
""".strip().splitlines()
FEW = 20


def of(name: str, seed: int) -> Voice:
    """Raises: NoVoice."""
    if name == "flow":
        from penstock.models.flow_voice import FlowVoice

        return FlowVoice(seed=seed)
    return voices.load(name)


def heard(voice: Voice, sentences: Sequence[str], seed: int) -> tuple[list[str], float, float]:
    """What is understood, CPU seconds of speaking, seconds spoken."""
    ear, out = open_recogniser(), list[str]()
    cpu = seconds = 0.0
    for sentence in sentences:
        pieces: list[Spoken] = []
        begun = time.thread_time()
        voice.synthesise(sentence[0].upper() + sentence[1:] + ".", pieces.append, lambda: False)
        cpu += time.thread_time() - begun
        sound = np.concatenate([p.pcm for p in pieces]).astype(np.float32)
        seconds += len(sound) / voice.rate_hz
        if voice.rate_hz != 16_000:
            sound = resample_poly(sound, 16_000, voice.rate_hz).astype(np.float32)
        sound *= 0.4 / np.abs(sound).max()
        padded = np.concatenate([np.zeros(3200, np.float32), sound, np.zeros(4800, np.float32)])
        padded += np.random.default_rng(seed).normal(0, 1e-4, len(padded)).astype(np.float32)
        ear.begin()
        ear.advance(padded)
        out.append(ear.finish() or "-")
    return out, cpu, seconds


def errors(sentences: Sequence[str], said: Sequence[str]) -> list[tuple[int, int]]:
    """Of each sentence: wrong words, words."""
    out: list[tuple[int, int]] = []
    for sentence, its in zip(sentences, said, strict=True):
        found = jiwer.process_words(sentence, its)
        out.append((found.substitutions + found.deletions + found.insertions, len(sentence.split())))
    return out


def rate(found: Sequence[tuple[int, int]]) -> float:
    return sum(wrong for wrong, _ in found) / sum(words for _, words in found)


def round_trip(
    name: str, sentences: Sequence[str] = SENTENCES[:FEW], seeds: Sequence[int] = (0,)
) -> list[tuple[int, int]] | None:
    """Errors of each sentence, seed after seed; None when the voice is not here."""
    found: list[tuple[int, int]] = []
    each: list[float] = []
    cpu = seconds = 0.0
    for seed in seeds:
        try:
            voice = of(name, seed)
        except NoVoice as e:
            line(part="round_trip", engine=name, wer=None, reason=str(e))
            return None
        said, spent, spoken = heard(voice, sentences, seed)
        its = errors(sentences, said)
        each.append(round(rate(its), 3))
        found += its
        cpu, seconds = cpu + spent, seconds + spoken
    line(
        part="round_trip",
        engine=name,
        wer=round(rate(found), 3),
        wer_by_seed=each,
        sentences=len(sentences),
        words=sum(words for _, words in found),
        rtf=round(cpu / seconds, 4),
    )
    return found


def ratio(ours: Sequence[tuple[int, int]], theirs: Sequence[tuple[int, int]]) -> dict[str, Any]:
    """Ours over theirs on the same sentences, with the middle 90 % of 2,000 draws of sentences."""
    a, b = np.array(ours), np.array(theirs)
    rng = np.random.default_rng(0)
    draws = rng.integers(0, len(a), (2000, len(a)))
    ratios = a[draws, 0].sum(1) / np.maximum(b[draws, 0].sum(1), 1)
    low, high = np.percentile(ratios, [5, 95])
    return {
        "flow_over_rms_wer": round(rate(ours) / rate(theirs), 2),
        "flow_over_rms_wer_90": [round(float(low), 2), round(float(high), 2)],
    }


def words(names: Sequence[str], sentences: Sequence[str], seeds: Sequence[int]) -> dict[str, Any]:
    found = {name: round_trip(name, sentences, seeds) for name in names}
    figures: dict[str, Any] = {
        "wer_sentences": len(sentences),
        "wer": {n: f and round(rate(f), 3) for n, f in found.items()},
    }
    ours, theirs = found.get("flow"), found.get("flite:rms")
    if ours and theirs and len(sentences) > FEW:  # on 20 sentences it was anything from 1.2 to 1.5
        figures |= ratio(ours, theirs)
    return figures


def main() -> None:
    options = argparse.ArgumentParser(description="Round trips of voices.")
    options.add_argument("voices", nargs="?", default="flite:rms,flow")
    options.add_argument("--seeds", type=int, default=1)
    options.add_argument("--few", action="store_true", help=f"only {FEW} sentences")
    args = options.parse_args()
    sentences = SENTENCES[:FEW] if args.few else SENTENCES
    line(**words(args.voices.split(","), sentences, range(args.seeds)))


if __name__ == "__main__":
    main()
