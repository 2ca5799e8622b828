"""What bfloat16, int8 and int4 cost in quality: errors of logits against float32, and what a trained model still knows.

    python -m bench.quantised --model runs/demo/model [--samples 60]

Logits: of held-out questions of the embedded world and their true answers, where an answer's token is predicted.
Knowledge: the headline of every task of the world, on the same questions for all. `plain bfloat16` is torch's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

import qvl
from bench.record import record
from qvl.checkpoint.folder import load_model
from qvl.cli.measure import measure
from qvl.cli.recipe import read_recipe
from qvl.data.world import World, WorldConfig
from qvl.engine.vlm import VLM
from qvl.evals.tasks.world import world_samples

HOW: dict[str, dict[str, Any]] = {
    "float32": {},
    "plain bfloat16": {},
    "bfloat16": {"dtype": "bfloat16"},
    "int8": {"quantize": "int8"},
    "int4": {"quantize": "int4"},
}


def loaded(folder: Path, how: str) -> VLM:
    if how != "plain bfloat16":
        return qvl.load(folder, **HOW[how])
    return VLM(load_model(folder, dtype=torch.bfloat16).eval(), qvl.load(folder).processor)


@torch.no_grad()
def logits(vlm: VLM, world: WorldConfig, count: int) -> Tensor:
    """[answer tokens, V] in float32."""
    samples = world_samples(World(world), "dev", count)
    parts = []
    for sample in samples:
        batch = vlm.processor([sample.messages])
        assert batch.labels_T is not None, "answers are there"
        rows = (batch.labels_T >= 0).nonzero()[:, 0]
        parts.append(vlm.model(batch, rows=rows).float())
    return torch.cat(parts)


def compared(exact_TV: Tensor, found_TV: Tensor) -> dict[str, Any]:
    exact, found = exact_TV.log_softmax(-1), found_TV.log_softmax(-1)
    return {
        "logit error": f"{float((found_TV - exact_TV).norm() / exact_TV.norm()):.2g}",
        "KL, nats": f"{float((exact.exp() * (exact - found)).sum(-1).mean()):.2g}",
        "same first choice": round(float((exact.argmax(-1) == found.argmax(-1)).float().mean()), 4),
        "answer tokens": len(exact_TV),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("runs/demo/model"))
    parser.add_argument("--samples", type=int, default=60, help="questions of each task")
    parser.add_argument("--dry", action="store_true", help="print only, keep no record")
    given = parser.parse_args()
    recipe = given.model.resolve().parent / "config.yaml"
    world = read_recipe(recipe).stages[-1].world if recipe.is_file() else WorldConfig(style="chat")
    exact: Tensor | None = None
    for how in HOW:
        vlm = loaded(given.model, how)
        found = logits(vlm, world, max(2, given.samples // 8))
        exact = found if exact is None else exact
        row: dict[str, Any] = {"case": how, "model": given.model.resolve().parent.name, **compared(exact, found)}
        with TemporaryDirectory() as out:
            result = measure(vlm.engine, world, "test", given.samples, Path(out))
        row |= {name: round(result.value(name), 4) for name in result.tasks}
        print(row, flush=True)
        if not given.dry:
            record("quantised", row)


if __name__ == "__main__":
    main()
