"""Seconds per generated token of Qwen2-VL-2B's real shape with random weights, beside transformers' in bfloat16.

    python -m bench.decode [--layers 4 --dry] [--cases bf16-1 int8-1 ...]

`ours` is a whole step of the engine: scheduling, model over pages, choosing, text. `theirs` is a token of `generate`.
They take turns; each turn is the median of its tokens. `long` compares two lengths of context on our side alone.
"Share of memory" is the bytes of weights a step reads over the bytes this machine could have read meanwhile.
"""

from __future__ import annotations

import gc
import statistics
from typing import Any

import torch

import qvl
from bench.decode_step import started
from bench.peers import FULL, options, random_folder, ratio, read_gb_s, seconds, show, their_token_times, turns
from bench.peers import transformers_model as peer
from bench.record import record
from qvl.engine.native import ops
from qvl.engine.native.modules import PackedLinear
from qvl.engine.session import Session
from qvl.engine.vlm import VLM

CASES = ["bf16-1", "bf16-8", "int8-1", "int8-8", "int4-1", "int4-8", "bf16-long"]
TOKENS = 12


def weights_read(vlm: VLM) -> int:
    """Bytes of weights that a decoded token needs: everything but the tower and the rows of the embedding."""
    model: Any = vlm.model
    total = 0
    for module in [*model.decoder.modules(), model.head]:
        if isinstance(module, PackedLinear):
            total += module.packed.nbytes
        elif isinstance(module, torch.nn.Linear):
            total += module.weight.nbytes
    return total


def products_alone(vlm: VLM, rows: int) -> float:
    """Seconds of nothing but the linear layers of a step."""
    model: Any = vlm.model
    layers = [m for m in [*model.decoder.modules(), model.head] if isinstance(m, PackedLinear | torch.nn.Linear)]
    widths = [m.packed.shape[1] if isinstance(m, PackedLinear) else m.in_features for m in layers]
    inputs = {width: torch.randn(rows, width).bfloat16() for width in set(widths)}

    @torch.inference_mode()
    def once() -> None:
        for layer, width in zip(layers, widths, strict=True):
            layer(inputs[width])

    return statistics.median(seconds(once) for _ in range(5))


def our_turn(session: Session) -> float:
    session.step()
    return statistics.median(seconds(session.step) for _ in range(TOKENS))


def their_turn(theirs: Any, rows: int, context: int) -> float:
    ids = torch.randint(1000, 100_000, (rows, context))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": torch.zeros_like(ids)}
    return statistics.median(their_token_times(theirs, inputs, TOKENS + 2)[2:])


def measure(vlm: VLM, theirs: Any, rows: int, context: int, rounds: int) -> dict[str, Any]:
    session = started(vlm.model, vlm.processor, rows, context, room=(TOKENS + 2) * rounds)
    ours, peers = turns(rounds, lambda: our_turn(session), lambda: their_turn(theirs, rows, context))
    middle, read, speed = statistics.median(ours), weights_read(vlm), read_gb_s()
    alone = products_alone(vlm, rows)
    return {
        "ours ms": show(ours),
        "transformers bf16 ms": show(peers),
        "times faster": ratio(peers, ours),
        "ours tokens/s": round(rows / middle, 1),
        "GB of weights": round(read / 1e9, 2),
        "machine GB/s": round(speed, 1),
        "share of memory": round(read / 1e9 / middle / speed, 2),
        "products ms": round(1000 * alone, 1),
        "rest ms": round(1000 * (middle - alone), 1),
    }


def measure_long(vlm: VLM) -> dict[str, Any]:
    """Steps of one request at 500 and at 8000 tokens, in turns."""
    short, long = (started(vlm.model, vlm.processor, 1, n, room=200) for n in (500, 8000))
    a, b = turns(4, lambda: our_turn(short), lambda: our_turn(long))
    text = vlm.model.config.text
    more = 2 * text.layers * text.kv_heads * text.head_size * 2 * 7500 / 1e9
    floor = 1.3 * statistics.median(a) + more / read_gb_s()
    return {
        "500 tokens ms": show(a),
        "8000 tokens ms": show(b),
        "8000 over 500": round(statistics.median(b) / statistics.median(a), 3),
        "1.3 x 500 + reading 7500 more ms": round(1000 * floor, 1),
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--context", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    folder = random_folder(given.layers)
    theirs = peer(folder) if any("long" not in case for case in given.cases) else None
    print("kernels:", ops.available())
    loaded, vlm = "", None
    for case in given.cases:
        how, _, rows = case.partition("-")
        if how != loaded:
            vlm = None
            gc.collect()
            vlm = qvl.load(folder, dtype="bfloat16", quantize=None if how == "bf16" else how)  # pyrefly: ignore
            loaded = how
        assert vlm is not None, "loaded above"
        if rows == "long":
            name, row = f"{how}, one row, long context", measure_long(vlm)
        else:
            name = f"{how}, {rows} rows, context {given.context}"
            row = measure(vlm, theirs, int(rows), given.context, given.rounds)
        print("\n".join(f"{key:>34}: {value}" for key, value in {"case": name, **row}.items()), end="\n\n", flush=True)
        if not given.dry and given.layers == FULL:
            record("decode", {"case": name, **row})


if __name__ == "__main__":
    main()
