"""Time to the first token about one picture of 1024 x 768 and 64 tokens of text, beside transformers (bfloat16, sdpa).

    python -m bench.first_token [--layers 4 --dry]

Qwen2-VL-2B's real shape with random weights. Opening and resizing the picture is in neither side's time (see
bench/preprocess). "Share of the peak" is the arithmetic of a phase over what this machine's best product of matrices
would have done meanwhile. `again` asks a second question about the same picture.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor

import qvl
from bench.peers import FULL, gemm_gflop_s, options, random_folder, ratio, show, their_token_times, transformers_model
from bench.record import record
from qvl.engine.answer import Answer
from qvl.engine.api import Reply, Request, Sampling
from qvl.engine.session import Session
from qvl.engine.vlm import VLM

TEXT_TOKENS = 64


def messages(vlm: VLM, seed: int, first_word: str) -> list[dict[str, Any]]:
    """A new picture, and words that make the prompt's text 64 tokens long, marks of the chat included."""
    picture = np.random.default_rng(seed).integers(0, 256, (768, 1024, 3), dtype=np.uint8)

    def ask(words: int) -> list[dict[str, Any]]:
        text = first_word + " word" * words
        return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": text}]}]

    sequence = vlm.processor.sequence(ask(1), generation_prompt=True)
    return ask(1 + TEXT_TOKENS - (len(sequence.tokens_T) - len(sequence.vision_rows_M)))


class Ours:
    """One session for all turns, so that its caches live on."""

    def __init__(self, vlm: VLM) -> None:
        self._session = Session(vlm.model, vlm.processor, vlm.engine.limits)
        self.phases: list[dict[str, float]] = []

    def first_token(self, asked: list[dict[str, Any]]) -> float:
        answer: Answer = self._session.prepare(Request(asked, Sampling(max_new_tokens=1)))
        replies: list[Any] = []
        begin = time.perf_counter()
        self._session.add(answer, replies.append)
        while self._session.busy:
            self._session.step()
        took = time.perf_counter() - begin
        (reply,) = (r for r in replies if isinstance(r, Reply))
        self.phases.append(reply.usage.milliseconds)
        return took


class Theirs:
    def __init__(self, vlm: VLM, model: Any) -> None:
        self._processor, self._model = vlm.processor, model
        self.vision: list[float] = []
        begun = [0.0]
        tower = model.model.visual
        tower.register_forward_pre_hook(lambda *_: begun.__setitem__(0, time.perf_counter()))
        tower.register_forward_hook(lambda *_: self.vision.append(time.perf_counter() - begun[0]))

    def first_token(self, asked: list[dict[str, Any]]) -> float:
        sequence = self._processor.sequence(asked, generation_prompt=True)
        batch = self._processor.pack([sequence])
        ids = batch.tokens_T[None]
        inputs: dict[str, Tensor] = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self._model.config.image_token_id).int(),
            "pixel_values": batch.patches_PC.bfloat16(),
            "image_grid_thw": torch.tensor(batch.grids),
        }
        return their_token_times(self._model, inputs, 1)[0]


def arithmetic(vlm: VLM, patches: int, tokens: int) -> tuple[float, float]:
    """GFLOP of the tower and of the language model (causal attention counted as half)."""
    model: Any = vlm.model

    def of(part: torch.nn.Module) -> int:
        return sum(m.weight.numel() for m in part.modules() if isinstance(m, torch.nn.Linear))

    v, t = model.config.vision, model.config.text
    merger = of(model.visual.merger)
    seeing = 2 * patches * (of(model.visual) - merger) + 2 * patches / v.merge**2 * merger
    seeing += v.layers * 4 * patches**2 * v.width
    reading = 2 * tokens * of(model.decoder) + t.layers * 2 * tokens**2 * t.heads * t.head_size
    return seeing / 1e9, reading / 1e9


def main() -> None:
    given = options(__doc__).parse_args()
    torch.set_num_threads(given.threads)
    folder = random_folder(given.layers)
    vlm = qvl.load(folder, dtype="bfloat16")
    ours, theirs = Ours(vlm), Theirs(vlm, transformers_model(folder))
    asked = [messages(vlm, seed, "first") for seed in range(given.rounds)]
    a: list[float] = []
    b: list[float] = []
    for question in asked:
        a.append(ours.first_token(question))
        b.append(theirs.first_token(question))
    phases = list(ours.phases)
    again = [ours.first_token(messages(vlm, seed, "second")) for seed in range(given.rounds)]
    sequence = vlm.processor.sequence(asked[0], generation_prompt=True)
    seeing, reading = arithmetic(vlm, len(sequence.visuals[0].patches_PC), len(sequence.tokens_T))
    peak = gemm_gflop_s()
    vision, prefill = (statistics.median(p[key] / 1000 for p in phases) for key in ("vision", "prefill"))
    row = {
        "case": "one picture 1024 x 768 and 64 tokens, bfloat16",
        "ours s": show(a, 1, 2),
        "transformers s": show(b, 1, 2),
        "times faster": ratio(b, a),
        "vision s": round(vision, 2),
        "transformers vision s": show(theirs.vision, 1, 2),
        "prefill s": round(prefill, 2),
        "peak GFLOP/s": round(peak),
        "vision share of the peak": round(seeing / vision / peak, 2),
        "prefill share of the peak": round(reading / prefill / peak, 2),
        "again s": show(again, 1, 2),
        "again over first": round(statistics.median(again) / statistics.median(a), 3),
        "rounds": given.rounds,
    }
    print("\n".join(f"{key:>28}: {value}" for key, value in row.items()))
    if not given.dry and given.layers == FULL:
        record("first_token", row)


if __name__ == "__main__":
    main()
