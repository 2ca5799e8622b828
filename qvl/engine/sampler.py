"""Choosing the next token.

Knows: logits, what a request asked for, what it has seen, what its grammar allows. Does not know: models, text, other
requests: each request draws from a generator of its own, so its sample does not depend on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from qvl.engine.api import Sampling
from qvl.engine.grammar import Grammar

_COLDEST = 1e-10
"""Any temperature below is as good as this one, and logits divided by it would leave what float32 can hold."""


@dataclass(frozen=True)
class Choice:
    """The next token of a row, as the model's own distribution (before any option) sees it."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and their log-probabilities, if the request wants them."""
    problem: str = ""
    """Why there is no next token; empty = fine."""


@final
class Sampler:
    """The chooser of one request: options, seed, grammar, and the tokens that a repetition penalty looks at."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int], grammar: Grammar | None = None) -> None:
        self._sampling = sampling
        self._grammar = grammar
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """The most likely token is the answer, whatever came before."""
        return self._sampling.temperature == 0 and self._seen is None and self._grammar is None

    @property
    def top_logprobs(self) -> int:
        return self._sampling.top_logprobs

    @property
    def complete(self) -> bool:
        """The grammar allows nothing more: the reply is whole."""
        return self._grammar is not None and self._grammar.complete

    def choose(self, logits_V: Tensor) -> int:
        """The next token from raw logits [V]: repetition penalty, what the grammar forbids, then temperature, top-k,
        top-p, then the draw.

        Raises:
            ValueError: the grammar grew beyond what can be followed.
        """
        s = self._sampling
        logits_V = logits_V.float().cpu()
        if self._seen is not None:
            logits_V = penalise(logits_V, self._seen, s.repetition_penalty)
        if self._grammar is not None:
            logits_V = logits_V.masked_fill(~self._grammar.allowed(len(logits_V)), float("-inf"))
        if s.temperature == 0:
            return int(logits_V.argmax())
        probs_V = keep_likely(logits_V / max(s.temperature, _COLDEST), s.top_k, s.top_p).softmax(-1)
        return int(torch.multinomial(probs_V, 1, generator=self._generator))

    def saw(self, token_id: int) -> None:
        """Tells the sampler that `token_id` was generated."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._grammar is not None:
            self._grammar.push(token_id)


def choose_tokens(logits_BV: Tensor, samplers: Sequence[Sampler]) -> list[Choice]:
    """The next token of each row. A row that has none says why and leaves the others alone."""
    picked = logits_BV.argmax(-1).tolist()
    logits_BV = logits_BV.float()
    total_B = logits_BV.logsumexp(-1)
    problems = ["" if fine else _NOT_FINITE for fine in total_B.isfinite().tolist()]
    for row, sampler in enumerate(samplers):
        if not problems[row]:
            try:
                if not sampler.plain:
                    picked[row] = sampler.choose(logits_BV[row])
                sampler.saw(picked[row])
            except ValueError as error:
                problems[row] = str(error)
    chosen_B = logits_BV.gather(1, torch.tensor(picked, device=logits_BV.device)[:, None])[:, 0]
    logprobs = (chosen_B - total_B).tolist()
    tops = _likeliest(logits_BV, total_B, [sampler.top_logprobs for sampler in samplers])
    return [Choice(*choice) for choice in zip(picked, logprobs, tops, problems, strict=True)]


_NOT_FINITE = (
    "the model gave logits that are not finite numbers; its weights are damaged, or its dtype overflows (use bfloat16 "
    "or float32)"
)


def _likeliest(logits_BV: Tensor, total_B: Tensor, counts: Sequence[int]) -> list[tuple[tuple[int, float], ...]]:
    if not any(counts):
        return [()] * len(counts)
    values_BX, ids_BX = logits_BV.topk(min(max(counts), logits_BV.shape[1]), dim=-1)
    rows = zip(ids_BX.tolist(), (values_BX - total_B[:, None]).tolist(), counts, strict=True)
    return [tuple(zip(ids[:n], values[:n], strict=True)) for ids, values, n in rows]


def penalise(logits_V: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Positive logits of seen tokens are divided by `penalty`, negative ones multiplied (CTRL, arXiv 1909.05858)."""
    seen_X = torch.tensor(sorted(seen), dtype=torch.long)
    values_X = logits_V[seen_X]
    return logits_V.index_copy(0, seen_X, torch.where(values_X > 0, values_X / penalty, values_X * penalty))


def keep_likely(logits_V: Tensor, top_k: int, top_p: float) -> Tensor:
    """-inf for all but the `top_k` most likely (0 = all), and of these all but the fewest that reach `top_p`."""
    if 0 < top_k < logits_V.shape[0]:
        logits_V = logits_V.masked_fill(logits_V < logits_V.topk(top_k).values[-1], float("-inf"))
    if top_p < 1:
        sorted_V, order_V = logits_V.sort(descending=True, stable=True)
        probs_V = sorted_V.softmax(-1)
        beyond_V = probs_V.cumsum(-1) - probs_V >= top_p  # reached before this token: it is not needed
        beyond_V[0] = False
        logits_V = logits_V.index_fill(0, order_V[beyond_V], float("-inf"))
    return logits_V
