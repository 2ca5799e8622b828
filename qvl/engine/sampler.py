"""Choosing the next token.

Knows: logits, what a request asked for, what it has seen. Does not know: models, text, other requests: each request
draws from a generator of its own, so its sample does not depend on what runs beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from qvl.engine.api import Sampling


@final
class Sampler:
    """The chooser of one request: options, seed, and the tokens that a repetition penalty looks at."""

    def __init__(self, sampling: Sampling, prompt_ids: Sequence[int]) -> None:
        self._sampling = sampling
        self._seen = set(prompt_ids) if sampling.repetition_penalty != 1.0 else None
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    @property
    def plain(self) -> bool:
        """The most likely token is the answer, whatever came before."""
        return self._sampling.temperature == 0 and self._seen is None

    def choose(self, logits_V: Tensor) -> int:
        """The next token from raw logits [V]: repetition penalty, then temperature, top-k, top-p, then the draw."""
        s = self._sampling
        logits_V = logits_V.float().cpu()
        if self._seen is not None:
            logits_V = penalise(logits_V, self._seen, s.repetition_penalty)
        if s.temperature == 0:
            return int(logits_V.argmax())
        probs_V = keep_likely((logits_V / s.temperature), s.top_k, s.top_p).softmax(-1)
        return int(torch.multinomial(probs_V, 1, generator=self._generator))

    def saw(self, token_id: int) -> None:
        """Tells the sampler that `token_id` was generated."""
        if self._seen is not None:
            self._seen.add(token_id)


def choose_tokens(logits_BV: Tensor, samplers: Sequence[Sampler]) -> tuple[list[int], list[float]]:
    """The next token of each row, and its log-probability under the raw distribution (before any option).

    Raises:
        ValueError: logits that are not finite.
    """
    picked = logits_BV.argmax(-1).tolist()
    for row, sampler in enumerate(samplers):
        if not sampler.plain:
            picked[row] = sampler.choose(logits_BV[row])
        sampler.saw(picked[row])
    logits_BV = logits_BV.float()
    chosen_B = logits_BV.gather(1, torch.tensor(picked, device=logits_BV.device)[:, None])[:, 0]
    logprobs = (chosen_B - logits_BV.logsumexp(-1)).tolist()
    bad = [row for row, value in enumerate(logprobs) if not value <= 0.01]  # NaN compares false
    if bad:
        raise ValueError(
            f"the model gave logits that are not finite numbers in {len(bad)} of {len(picked)} rows; "
            "its weights are damaged, or its dtype overflows (use bfloat16 or float32)"
        )
    return picked, logprobs


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
