"""Corpus BLEU, as pycocoevalcap computes it (closest reference length, tiny smoothing constants).

Knows: n-gram counts. Does not know: any other smoothing; use sacrebleu for translation.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence

from qvl.evals.metrics.cider import NGram, Tokens, check_corpus, ngrams
from qvl.evals.metrics.ptb import ptb_tokens

_TINY, _SMALL = 1e-15, 1e-9


def bleu(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    max_n: int = 4,
    tokenize: Callable[[str], Tokens] = ptb_tokens,
) -> tuple[float, ...]:
    """BLEU-1 to BLEU-`max_n` of a test set, in 0..1.

    Reference: pycocoevalcap `BleuScorer.compute_score(option="closest")` (a test set of one picture uses the mean
    reference length instead, as there). Raises ValueError as `cider_d` does.
    """
    check_corpus(candidates, references)
    correct, possible = [0] * max_n, [0] * max_n
    length, reference_length = 0, 0.0
    for candidate, group in zip(candidates, references, strict=True):
        tokens, refs = tokenize(candidate), [tokenize(r) for r in group]
        most: Counter[NGram] = Counter()
        for ref in refs:
            most |= ngrams(ref, max_n)
        for gram, count in ngrams(tokens, max_n).items():
            correct[len(gram) - 1] += min(count, most[gram])
        for n in range(max_n):
            possible[n] += max(0, len(tokens) - n)
        length += len(tokens)
        lengths = [len(r) for r in refs]
        if len(candidates) == 1:
            reference_length += sum(lengths) / len(lengths)
        else:
            reference_length += min((abs(n - len(tokens)), n) for n in lengths)[1]
    ratio = (length + _TINY) / (reference_length + _SMALL)
    penalty = math.exp(1 - 1 / ratio) if ratio < 1 else 1.0
    scores, product = [], 1.0
    for n in range(max_n):
        product *= (correct[n] + _TINY) / (possible[n] + _SMALL)
        scores.append(product ** (1 / (n + 1)) * penalty)
    return tuple(scores)
