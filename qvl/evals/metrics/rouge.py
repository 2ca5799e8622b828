"""ROUGE-L, as pycocoevalcap computes it (best precision and best recall over the references, beta 1.2).

Knows: longest common subsequences of tokens. Does not know: stemming.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from qvl.evals.metrics.cider import CorpusScore, Tokens, check_corpus
from qvl.evals.metrics.ptb import ptb_tokens

BETA = 1.2


def rouge_l(
    candidates: Sequence[str],
    references: Sequence[Sequence[str]],
    *,
    tokenize: Callable[[str], Tokens] = ptb_tokens,
) -> CorpusScore:
    """ROUGE-L in 0..1. Precision and recall may come from different references, as in the reference scorer.

    Reference: pycocoevalcap `Rouge.calc_score`. Raises ValueError as `cider_d` does.
    """
    check_corpus(candidates, references)
    each = []
    for candidate, group in zip(candidates, references, strict=True):
        tokens, refs = tokenize(candidate), [tokenize(r) for r in group]
        common = [longest_common_subsequence(tokens, r) for r in refs]
        precision = max(c / max(1, len(tokens)) for c in common)
        recall = max(c / max(1, len(r)) for c, r in zip(common, refs, strict=True))
        if precision and recall:
            each.append((1 + BETA**2) * precision * recall / (recall + BETA**2 * precision))
        else:
            each.append(0.0)
    return CorpusScore(sum(each) / len(each), tuple(each))


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence that is in both, in order, gaps allowed: (a b c d, a x c) -> 2."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, start=1):
            above = row[j]
            row[j] = diagonal + 1 if x == y else max(above, row[j - 1])
            diagonal = above
    return row[-1]
