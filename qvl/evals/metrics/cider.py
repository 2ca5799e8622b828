"""CIDEr-D, the caption score of the Qwen-VL papers, as pycocoevalcap computes it, without Java.

Knows: tokens, n-grams, document frequencies. Does not know: pictures, where references come from.

Follows Vedantam et al. 2015 (section "CIDEr-D") through the public `pycocoevalcap` scorer, including:
- document frequencies come from the references that are scored, so a score belongs to its test set: a subset scores
  differently, and a corpus of one picture scores 0 (log 1 = 0);
- the length penalty compares numbers of *bigrams*, `exp(-(difference)^2 / (2 * 6^2))`;
- a caption shorter than n words gets 0 for that n, so a perfect three-word caption scores 7.5, not 10.
On 1,376 pictures with five references each the mean agrees with pycocoevalcap to 2e-16 (tests/evals/test_captions.py).

The papers print CIDEr times 100; here 1.0 is 1.0 (range 0 to 10).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from qvl.evals.metrics.ptb import ptb_tokens

Tokens = Sequence[str]
NGram = tuple[str, ...]
Weights = list[dict[NGram, float]]
"""Per n-gram length (index n-1): n-gram -> tf-idf weight."""

MAX_N = 4
SIGMA = 6.0
SCALE = 10.0


@dataclass(frozen=True)
class CorpusScore:
    """A mean over a test set, and the value of every item (what a confidence interval needs)."""

    mean: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class _Vector:
    weights: Weights
    norms: list[float]
    bigrams: int


def cider_d(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], Tokens] = ptb_tokens,
) -> CorpusScore:
    """CIDEr-D of one caption per picture against that picture's reference captions.

    Args:
        candidates: one caption per picture.
        references: for each picture at least one reference caption.
        tokenize: text -> tokens. Chinese: compose with `ptb.space_chinese` so that one character is one token.

    Raises:
        ValueError: nothing to score, different lengths, or a picture without references.
    """
    check_corpus(candidates, references)
    refs = [[ngrams(tokenize(r)) for r in group] for group in references]
    frequency: Counter[NGram] = Counter()
    for group in refs:
        frequency.update({gram for counts in group for gram in counts})
    log_pictures = math.log(len(refs))
    each = []
    for candidate, group in zip(candidates, refs, strict=True):
        hypothesis = _vector(ngrams(tokenize(candidate)), frequency, log_pictures)
        similarity = [_similarity(hypothesis, _vector(counts, frequency, log_pictures)) for counts in group]
        each.append(SCALE * sum(similarity) / len(similarity))
    return CorpusScore(sum(each) / len(each), tuple(each))


def check_corpus(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Raises ValueError unless there is one non-empty group of references per candidate."""
    if len(candidates) != len(references):
        raise ValueError(f"{len(candidates)} captions but {len(references)} groups of references; give one each")
    if not candidates:
        raise ValueError("a caption score needs at least one caption, got none")
    for i, group in enumerate(references):
        if isinstance(group, str) or not group:
            raise ValueError(f"picture {i} needs a non-empty list of reference captions, got {group!r}")


def ngrams(tokens: Tokens, max_n: int = MAX_N) -> Counter[NGram]:
    """Counts of all n-grams up to `max_n`: ["a", "b"] -> {("a",): 1, ("b",): 1, ("a", "b"): 1}."""
    return Counter(tuple(tokens[i : i + n]) for n in range(1, max_n + 1) for i in range(len(tokens) - n + 1))


def _vector(counts: Counter[NGram], frequency: Counter[NGram], log_pictures: float) -> _Vector:
    weights: Weights = [{} for _ in range(MAX_N)]
    for gram, count in counts.items():
        weights[len(gram) - 1][gram] = count * (log_pictures - math.log(max(1, frequency[gram])))
    norms = [math.sqrt(sum(w * w for w in level.values())) for level in weights]
    return _Vector(weights, norms, sum(c for gram, c in counts.items() if len(gram) == 2))


def _similarity(hypothesis: _Vector, reference: _Vector) -> float:
    """Clipped cosine of the tf-idf vectors, times the length penalty, averaged over n = 1..4."""
    total = 0.0
    for n in range(MAX_N):
        ref = reference.weights[n]
        dot = sum(min(w, ref[gram]) * ref[gram] for gram, w in hypothesis.weights[n].items() if gram in ref)
        scale = hypothesis.norms[n] * reference.norms[n]
        total += dot / scale if scale else dot
    delta = hypothesis.bigrams - reference.bigrams
    return total / MAX_N * math.exp(-(delta**2) / (2 * SIGMA**2))
