"""Bigram language model in the ARPA format of speech recognisers."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable

START, END = "<s>", "</s>"
_DISCOUNT = 0.4  # subtracted from the count of each seen pair, for unseen ones


def bigrams(sentences: Iterable[list[str]]) -> str:
    """Return the ARPA text of a bigram model with absolute discounting, which backs off to add-one unigrams.

    Args:
        sentences: words of each sentence.
    """
    singles: Counter[str] = Counter()
    pairs: Counter[tuple[str, str]] = Counter()
    for words in sentences:
        line = [START, *words, END]
        singles.update(line[1:])
        pairs.update(itertools.pairwise(line))
    total = singles.total() + len(singles)
    unigram = {word: (count + 1) / total for word, count in singles.items()}
    followers: dict[str, Counter[str]] = {}
    for (first, second), count in pairs.items():
        followers.setdefault(first, Counter())[second] = count

    lines = ["\\data\\", f"ngram 1={len(unigram) + 1}", f"ngram 2={len(pairs)}", "", "\\1-grams:"]
    for word in sorted({START, *unigram}):
        seen = followers.get(word, Counter())
        left = _DISCOUNT * len(seen) / seen.total() if seen else 1.0
        backoff = left / max(1e-9, 1.0 - sum(unigram[second] for second in seen))
        chance = unigram.get(word, 1e-10)
        lines.append(f"{math.log10(chance):.4f}\t{word}" + ("" if word == END else f"\t{math.log10(backoff):.4f}"))
    lines += ["", "\\2-grams:"]
    for (first, second), count in sorted(pairs.items()):
        chance = (count - _DISCOUNT) / followers[first].total()
        lines.append(f"{math.log10(chance):.4f}\t{first} {second}")
    return "\n".join([*lines, "", "\\end\\", ""])
