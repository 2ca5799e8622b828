"""Training samples per second against transformers: same weights, same data, same precision, taking turns.

    python bench/train_step.py                     # ragged and equal lengths, vocabulary 8192, float32
    python bench/train_step.py --vocab 151936 --precision bf16 --steps 6

One step is collating, forward, backward and AdamW (fused, on both sides) for 8 samples of one 64-token picture and
some text, of which the second half is supervised. transformers runs as its users run it: padded to the longest
sample, `labels=`, logits for every position. Ours packs, attends per sequence and computes logits where there is a
label. Steps alternate (theirs, ours, theirs, ours ...), so that a slow minute hits both; medians, with the lowest
and highest in brackets. Both train on, so the losses of every step are compared too.

Lengths of the text: `equal` 40 each; `ragged` 20 to 400 in equal ratios (20, 31, 47, ... 400: many short, few long,
as in instruction data); `uniform` 20 to 400 in equal steps.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.record import record
from qvl.batch import IGNORE
from qvl.checkpoint.folder import load_model, save_model
from qvl.inputs.positions import TextRun, VisionRun, mrope_positions
from qvl.inputs.sequence import Sequence, next_token_labels, pack
from qvl.layers.decoder import DecoderConfig
from qvl.media.load import Visual
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.train.loss import token_losses

SAMPLES = 8
GRID = (1, 16, 16)  # 224 x 224 pixels: 64 vision tokens
LENGTHS = {
    "equal": [40] * SAMPLES,
    "ragged": np.geomspace(20, 400, SAMPLES).round().astype(int).tolist(),
    "uniform": np.linspace(20, 400, SAMPLES).round().astype(int).tolist(),
}
LEARNING_RATE = 1e-4
WARM_UP = 2
Step = Callable[[list[Sequence]], float]


def model_config(vocab: int) -> Qwen2VLConfig:
    """About 15 million parameters without the embedding; the special tokens are the last ids."""
    return Qwen2VLConfig(
        DecoderConfig(384, 8, 6, 2, 64, 1024, rope_sections=(8, 12, 12)),
        VisionConfig(width=192, layers=6, heads=6, mlp_hidden=768),
        vocab_size=vocab,
        tie_embeddings=True,
        ids=TokenIds(*(vocab - i for i in range(1, 7))),
    )


def sample(rng: np.random.Generator, config: Qwen2VLConfig, text: int) -> Sequence:
    """`<|vision_start|>` picture `<|vision_end|>` and `text` tokens, the second half supervised."""
    vision, ids = config.vision, config.ids
    merged = (GRID[0], GRID[1] // vision.merge, GRID[2] // vision.merge)
    count = int(np.prod(merged))
    words = rng.integers(0, config.vocab_size - 10, text)
    tokens_T = np.concatenate(([ids.vision_start], [ids.image_pad] * count, [ids.vision_end], words)).astype(np.int64)
    positions_RT, following = mrope_positions([TextRun(1), VisionRun(merged), TextRun(1 + text)])
    patches = rng.standard_normal((int(np.prod(GRID)), vision.patch_values), dtype=np.float32)
    hw = (GRID[1] * vision.patch, GRID[2] * vision.patch)
    return Sequence(
        tokens_T=tokens_T,
        positions_RT=positions_RT,
        vision_rows_M=np.arange(1, 1 + count),
        visuals=(Visual(torch.from_numpy(patches), GRID, hw, hw),),
        next_position=following,
        labels_T=next_token_labels(tokens_T, np.arange(len(tokens_T)) >= len(tokens_T) - text // 2),
    )


def our_step(model: Qwen2VL, precision: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)
    vision = model.config.vision

    def step(samples: list[Sequence]) -> float:
        batch = pack(samples, vision.patch_values, vision.merge)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            losses, _ = token_losses(model, batch)
            loss = losses.mean()
        return _update(loss, optimizer)

    return step


def their_step(model: nn.Module, ids: TokenIds, precision: torch.dtype) -> Step:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def step(samples: list[Sequence]) -> float:
        inputs = padded(samples, ids)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
            loss = model(**inputs).loss
        return _update(loss, optimizer)

    return step


def _update(loss: Tensor, optimizer: torch.optim.Optimizer) -> float:
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def padded(samples: list[Sequence], ids: TokenIds) -> dict[str, Tensor]:
    """The same samples as a padded batch; their labels are not shifted (transformers shifts them itself)."""
    longest = max(len(s.tokens_T) for s in samples)

    def stack(rows: list[np.ndarray], fill: int) -> Tensor:
        return torch.from_numpy(np.stack([np.pad(r, (0, longest - len(r)), constant_values=fill) for r in rows]))

    input_ids = stack([s.tokens_T for s in samples], ids.bos)
    unshifted = [np.concatenate(([IGNORE], s.labels_T[:-1])) for s in samples if s.labels_T is not None]
    return {
        "input_ids": input_ids,
        "attention_mask": stack([np.ones_like(s.tokens_T) for s in samples], 0),
        "labels": stack(unshifted, IGNORE),
        "mm_token_type_ids": (input_ids == ids.image_pad).int(),
        "pixel_values": torch.cat([v.patches_PC for s in samples for v in s.visuals]),
        "image_grid_thw": torch.tensor([v.grid for s in samples for v in s.visuals]),
    }


@dataclass(frozen=True)
class Side:
    name: str
    step: Step
    seconds: list[float]
    losses: list[float]


def sides(config: Qwen2VLConfig, precision: torch.dtype, which: str) -> list[Side]:
    """Both models from one folder, so from the same weights."""
    first = Qwen2VL(config)
    first.init_weights(seed=0)
    made: list[Side] = []
    with tempfile.TemporaryDirectory() as folder:
        save_model(first, f"{folder}/model")
        if which in ("both", "theirs"):
            from transformers import Qwen2VLForConditionalGeneration

            theirs = Qwen2VLForConditionalGeneration.from_pretrained(f"{folder}/model", dtype=torch.float32).train()
            made.append(Side("transformers", their_step(theirs, config.ids, precision), [], []))
        if which in ("both", "ours"):
            made.append(Side("ours", our_step(load_model(f"{folder}/model"), precision), [], []))
    return made


def run(case: str, options: argparse.Namespace) -> dict[str, Any]:
    config = model_config(options.vocab)
    precision = {"fp32": torch.float32, "bf16": torch.bfloat16}[options.precision]
    running = sides(config, precision, options.side)
    clock = time.process_time if options.clock == "cpu" else time.perf_counter
    rng = np.random.default_rng(0)
    for i in range(WARM_UP + options.steps):
        samples = [sample(rng, config, n) for n in rng.permutation(LENGTHS[case]).tolist()]
        for side in running:
            begin = clock()
            side.losses.append(side.step(samples))
            if i >= WARM_UP:
                side.seconds.append(clock() - begin)
    lens = [len(sample(rng, config, n).tokens_T) for n in LENGTHS[case]]
    row: dict[str, Any] = {
        "case": f"{case}, vocab {options.vocab}, {options.precision}",
        "real / padded tokens": f"{sum(lens)} / {max(lens) * len(lens)}",
    }
    for side in running:
        middle = statistics.median(side.seconds)
        row[f"{side.name} s/step"] = f"{middle:.3f} ({min(side.seconds):.3f}-{max(side.seconds):.3f})"
        row[f"{side.name} samples/s"] = round(SAMPLES / middle, 2)
        row[f"{side.name} last loss"] = round(side.losses[-1], 6)
    if len(running) == 2:
        theirs, ours = running
        row["times faster"] = round(statistics.median(theirs.seconds) / statistics.median(ours.seconds), 3)
        pairs = zip(theirs.seconds, ours.seconds, strict=True)
        row["of paired steps"] = round(statistics.median(a / b for a, b in pairs), 3)
        row["largest loss difference"] = max(abs(a - b) for a, b in zip(theirs.losses, ours.losses, strict=True))
    else:
        row["peak GB"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2)
    row |= {"steps": options.steps, "clock": options.clock}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(LENGTHS), default=["ragged", "uniform", "equal"])
    parser.add_argument("--vocab", type=int, default=8192)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each side")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu: on a busy machine, one thread")
    parser.add_argument("--side", choices=["both", "ours", "theirs"], default="both", help="one side: its peak memory")
    parser.add_argument("--dry", action="store_true", help="print only, keep no record")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for case in options.cases:
        row = run(case, options)
        print("\n".join(f"{key:>24}: {value}" for key, value in row.items()), end="\n\n")
        if not options.dry and options.side == "both":
            record("train_step", row)


if __name__ == "__main__":
    main()
