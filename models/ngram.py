"""A backoff n-gram over a handful of phrases, written as ARPA: what PocketSphinx listens for.

Source: interpolated absolute discounting, Ney, Essen and Kneser (1994); the ARPA format of the CMU and
SRI language modelling toolkits.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

_DISCOUNT = 0.5  # taken from each count, given to shorter histories
_ZERO = -99.0  # log10 of "never", as ARPA writes it

Gram = tuple[str, ...]


class NGram:
    """Conditional probabilities `p(last | before)` of all n-grams seen, with backoff weights.

    `background` words get `background_mass` of the unigram probability between them: they soak up speech
    that is none of the phrases.
    """

    def __init__(
        self,
        phrases: Iterable[str],
        *,
        order: int = 3,
        background: Sequence[str] = (),
        background_mass: float = 0.0,
    ) -> None:
        """Raises: ValueError when there are no words, or the mass is outside 0…1."""
        if not 0 <= background_mass < 1:
            raise ValueError(f"background_mass {background_mass} is outside 0…1")
        self.order = order
        counts = _count(phrases, order)
        words = {g[0]: c for g, c in counts[1].items() if g != ("<s>",)}
        if len(words) < 2:  # </s> alone
            raise ValueError("an n-gram needs at least one phrase with a word in it")
        mass = background_mass if background else 0.0
        total = sum(words.values())
        unigrams = {w: c / total * (1 - mass) for w, c in words.items()}
        for w in background:
            unigrams[w] = unigrams.get(w, 0.0) + mass / len(background)
        self.probability: dict[Gram, float] = {(w,): p for w, p in unigrams.items()}
        self.backoff: dict[Gram, float] = {}
        for n in range(2, order + 1):
            self._add(counts[n])

    def _add(self, counts: Counter[Gram]) -> None:
        """Add the n-grams of one order, whose shorter ones are all there."""
        followers: defaultdict[Gram, dict[str, int]] = defaultdict(dict)
        for gram, count in counts.items():
            followers[gram[:-1]][gram[-1]] = count
        for history, after in followers.items():
            total = sum(after.values())
            weight = _DISCOUNT * len(after) / total  # the mass taken, all of it to the shorter history
            for word, count in after.items():
                lower = self.p(word, history[1:])
                self.probability[(*history, word)] = (count - _DISCOUNT) / total + weight * lower
            self.backoff[history] = weight

    def p(self, word: str, history: Gram = ()) -> float:
        """p(word | history), backing off to shorter histories; 0.0 for an unknown word."""
        gram = (*history, word)
        if gram in self.probability:
            return self.probability[gram]
        if not history:
            return 0.0
        return self.backoff.get(history, 1.0) * self.p(word, history[1:])

    def arpa(self) -> str:
        """The model as an ARPA file."""
        by_order: dict[int, list[tuple[Gram, float]]] = {n: [] for n in range(1, self.order + 1)}
        for gram, p in self.probability.items():
            by_order[len(gram)].append((gram, math.log10(p)))
        by_order[1].append((("<s>",), _ZERO))  # a history only
        lines = ["\\data\\", *(f"ngram {n}={len(grams)}" for n, grams in by_order.items())]
        for n, grams in by_order.items():
            lines += ["", f"\\{n}-grams:"]
            for gram, log_p in sorted(grams):
                weight = self.backoff.get(gram)
                tail = "" if weight is None else f"\t{math.log10(weight):.5f}"
                lines.append(f"{log_p:.5f}\t{' '.join(gram)}{tail}")
        return "\n".join([*lines, "", "\\end\\", ""])


def _count(phrases: Iterable[str], order: int) -> list[Counter[Gram]]:
    """Counts of all n-grams of length 1…order; index 0 is unused."""
    counts: list[Counter[Gram]] = [Counter() for _ in range(order + 1)]
    for phrase in phrases:
        words = ["<s>", *phrase.split(), "</s>"]
        for n in range(1, order + 1):
            counts[n].update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return counts
