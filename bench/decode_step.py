"""What one decoding step of the engine costs beside the model's own work, by rows and context.

    python -m bench.decode_step

The small preset with random weights, greedy. `step` is a whole step of a session: scheduling, batch, model over pages,
choosing, text. `dense` is the model alone with keys and values that lie side by side in one tensor per layer, as if
there were no pages and no requests. Milliseconds of processor time of one thread, not of the clock on the wall (other
people's jobs matter less then); the two take turns, medians with the lowest and highest in brackets.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from bench.record import record
from qvl.batch import Batch
from qvl.engine.api import Request, Sampling
from qvl.engine.limits import Limits
from qvl.engine.paged import attend_step
from qvl.engine.session import Session
from qvl.inputs.processor import Processor
from qvl.layers.attention import AttnContext, Span
from qvl.models.qwen2_vl.config import TokenIds, preset, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer

CASES = [(1, 128), (1, 1024), (1, 3500), (8, 128), (8, 1024), (32, 128), (32, 1024)]
STEPS = 31


@final
class DenseStep(AttnContext):
    """One more token for each of `rows` rows of `context` tokens, all in one tensor per layer."""

    def __init__(self, model: Qwen2VL, rows: int, context: int) -> None:
        c = model.config.text
        self._rows = rows
        shape = (c.layers, 2, rows, c.kv_heads, context + 1, c.head_size)
        self._kv = torch.zeros(shape)
        self._bias_B11Y = torch.zeros(rows, 1, 1, context + 1)

    @property
    def spans(self) -> tuple[Span, ...]:
        return (Span(1, 1),) * self._rows

    def text(self, layer: int, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        k_BKYH, v_BKYH = self._kv[layer]
        k_BKYH[:, :, -1], v_BKYH[:, :, -1] = k_TKH, v_TKH
        return attend_step(q_TNH, k_BKYH, v_BKYH, self._bias_B11Y)

    def vision(self, q_PNH: Tensor, k_PNH: Tensor, v_PNH: Tensor) -> Tensor:
        raise AssertionError("nothing is seen while decoding")


def made() -> tuple[Qwen2VL, Processor]:
    tokenizer = Tokenizer.reduced(["a few words"], base_ranks=3000)
    s = tokenizer.special
    ids = TokenIds(
        image_pad=s("<|image_pad|>"),
        video_pad=s("<|video_pad|>"),
        vision_start=s("<|vision_start|>"),
        vision_end=s("<|vision_end|>"),
        bos=s("<|endoftext|>"),
        eos=s("<|im_end|>"),
    )
    model = Qwen2VL(with_vocabulary(preset("tiny"), tokenizer.vocab_size, ids)).eval()
    model.init_weights(0)
    return model, Processor(tokenizer)


def started(model: Qwen2VL, processor: Processor, rows: int, context: int, room: int = 2 * STEPS + 20) -> Session:
    """A session in which `rows` requests of about `context` tokens are being answered, by `room` tokens each."""
    session = Session(model, processor, Limits(max_rows=rows, cache_tokens=rows * (context + room + 64)))
    words = len(processor.tokenizer.encode("a few words " * 10)) / 10
    sampling = Sampling(max_new_tokens=room, stop_on_repetition=False)
    for row in range(rows):
        text = f"{row} " + "a few words " * int(max(0, context - 30) / words)
        session.add(session.prepare(Request([{"role": "user", "content": text}], sampling)), lambda item: None)
    while session.stats().waiting or not _decodes(session):
        session.step()
    return session


def _decodes(session: Session) -> bool:
    return all(track.known - track.computed == 1 for track in session._scheduler.running)


def dense_step(model: Qwen2VL, rows: int, context: int) -> Callable[[], None]:
    attn = DenseStep(model, rows, context)
    none = torch.zeros(0, dtype=torch.long)
    tokens_T, positions_RT = torch.zeros(rows, dtype=torch.long), torch.full((3, rows), context)
    batch = Batch(tokens_T, positions_RT, (1,) * rows, torch.zeros(0, 0), none.expand(2, 0), (), (), none)
    vision_MD = torch.zeros(0, model.config.text.width)

    @torch.inference_mode()
    def step() -> None:
        model.head(model.hidden(batch, vision_MD, attn)).argmax(-1).tolist()

    return step


def timed(call: Callable[[], object]) -> float:
    before = time.thread_time()
    call()
    return 1000 * (time.thread_time() - before)


def show(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"


def main() -> None:
    torch.set_num_threads(1)
    model, processor = made()
    for rows, context in CASES:
        session, dense = started(model, processor, rows, context), dense_step(model, rows, context)
        pairs = [(timed(session.step), timed(dense)) for _ in range(STEPS)][3:]
        steps, denses = [a for a, _ in pairs], [b for _, b in pairs]
        row = record(
            "decode_step",
            {
                "case": f"{rows} rows, context {context}",
                "step ms": show(steps),
                "dense ms": show(denses),
                "over dense ms": round(statistics.median(steps) - statistics.median(denses), 2),
                "times dense": round(statistics.median(steps) / statistics.median(denses), 2),
                "rounds": len(pairs),
            },
        )
        print(row)


if __name__ == "__main__":
    main()
