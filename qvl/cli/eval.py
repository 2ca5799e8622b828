"""`qvl eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal


def evaluate_model(
    *,
    model: str,
    task: Literal["world", "easy-vqa"] = "world",
    split: Literal["dev", "test"] = "test",
    samples: int = 200,
    floors: bool = True,
    recipe: Path | None = None,
    out: Path | None = None,
    device: str = "cpu",
    dtype: Literal["float32", "bfloat16"] | None = None,
    quantize: Literal["int8", "int4"] | None = None,
) -> None:
    """Measures a model on held-out scenes of the embedded world, or on easy-VQA, and saves every prediction.

    Args:
        model: folder of the model (or hub id).
        task: world, or easy-vqa (a public benchmark of drawn shapes; `qvl data parts --only easy-vqa` fetches it).
        split: which held-out scenes; dev is for choosing, test for reporting.
        samples: questions per task (easy-vqa: 0 = all 9,673).
        floors: measure the best constant answer and the model without the picture too.
        recipe: where the world is described (default: config.yaml of the run that the model lies in, else the
            default world, asked in plain questions).
        out: folder for metrics.json and predictions.jsonl (default: measured/SPLIT in that run, else in
            runs/measured).
        device: cpu, cuda, cuda:1 ...
        dtype: of the weights while computing (default: float32; with quantize, bfloat16).
        quantize: int8 or int4 = weights of the language model rounded to integers.
    """
    import qvl
    from qvl.cli.measure import measure, measure_easy_vqa, print_scores
    from qvl.cli.recipe import read_recipe
    from qvl.data.world import WorldConfig

    of_run = Path(model).resolve().parent / "config.yaml"
    described = recipe or (of_run if of_run.is_file() else None)
    world = read_recipe(described).stages[-1].world if described else WorldConfig(style="chat")
    if out is None:
        name = split if task == "world" else task
        out = of_run.parent / "measured" / name if of_run.is_file() else Path("runs/measured") / Path(model).name / name
    vlm = qvl.load(model, device=device, dtype=dtype, quantize=quantize)
    stamp = {"model": model, "device": device, "dtype": dtype, "quantize": quantize}
    if task == "easy-vqa":
        result = measure_easy_vqa(vlm.engine, samples, out, style=world.style, floors=floors, stamp=stamp)
    else:
        stamp["world"] = str(described or "default")
        result = measure(vlm.engine, world, split, samples, out, floors=floors, stamp=stamp)
    print_scores(out, {}, f"{model}: {len(result.predictions)} questions of {task} {split}")
    print(f"Every prediction: {out / 'predictions.jsonl'}")
