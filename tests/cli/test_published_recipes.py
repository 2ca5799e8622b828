"""The recipes of Qwen-VL's paper against its table, at full size on the meta device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from qvl.cli.main import USER_ERROR, main
from qvl.cli.recipe import read_recipe
from qvl.data.user.config import DataConfig, DataFile
from qvl.models.registry import build_model
from qvl.models.vlm import VisionLanguageModel
from qvl.train.build import check_data, model_sizes
from qvl.train.config import Part, PartsConfig, TrainConfig
from qvl.train.optim import Optimizers, part_of, rate
from qvl.train.smoke import smoke

RECIPES = Path(__file__).parents[2] / "recipes"


@dataclass(frozen=True)
class Row:
    """One column of the table of arXiv 2308.12966's appendix (rows marked * in its transcriptions only)."""

    begins: str
    """Stages 2 and 3 with the model of the stage before."""
    trains: tuple[Part, ...]
    image_px: int
    patches: int
    text_tokens: int
    peak: float
    lowest: float
    warmup: int
    steps: int
    batch: int
    vision_layer_decay: float
    rounds: int
    """* Gradient accumulation; the batch and this give the sequences that all ranks take at once."""
    frozen: int
    """Parameters."""


TEXT, VISION, ADAPTER = 7_721_324_544, 1_842_770_688, 76_054_528 + 16_785_408 - 256 * 4096
"""ADAPTER without its fixed sines, which the released file counts."""

TABLE = {
    "qwen_vl_stage1": Row(
        "qwen-vl",
        ("vision", "merger"),
        *(224, 256, 512, 2e-4, 1e-6, 500, 50_000, 30_720, 0.95, 6, TEXT),
    ),
    "qwen_vl_stage2": Row(
        "runs/qwen_vl_stage1/model",
        ("vision", "merger", "text"),
        *(448, 1024, 2048, 5e-5, 1e-5, 400, 19_000, 4_096, 0.95, 8, 0),
    ),
    "qwen_vl_stage3": Row(
        "runs/qwen_vl_stage2/model",
        ("merger", "text"),
        *(448, 1024, 2048, 1e-5, 1e-6, 3_000, 8_000, 128, 1.0, 8, VISION),
    ),
}
ALL = pytest.mark.parametrize("name", TABLE)


@cache
def recipe(name: str) -> TrainConfig:
    return read_recipe(RECIPES / f"{name}.yaml")


@cache
def full_size() -> VisionLanguageModel:
    """The parameters of all three recipes: none depends on the size of a picture."""
    with torch.device("meta"):
        return build_model(model_sizes(recipe("qwen_vl_stage1")))


@ALL
def test_every_row_of_the_table(name: str) -> None:
    config, row = recipe(name), TABLE[name]
    (stage,) = config.stages
    optim = stage.optim
    assert (config.model, config.precision) == (row.begins, "bfloat16")
    if name == "qwen_vl_stage1":  # an OpenCLIP ViT, a Qwen-7B with its vocabulary, a random adapter
        assert config.parts == PartsConfig("weights/Qwen-7B", "weights/open_clip_pytorch_model.bin")
        assert config.vocabulary == "official"
    assert stage.trains == row.trains
    assert stage.objective == "next_token"
    assert (config.image_px, config.queries) == (row.image_px, 256)
    assert (optim.name, optim.betas, optim.eps) == ("adamw", (0.9, 0.98), 1e-6)
    assert (optim.weight_decay, optim.clip) == (0.05, 1.0)
    assert (optim.vision_lr, optim.merger_lr, optim.text_lr) == (1.0, 1.0, 1.0)
    assert optim.vision_layer_decay == row.vision_layer_decay
    assert (stage.steps, optim.warmup_steps) == (row.steps, row.warmup)
    sequences = stage.samples_per_pack or 1
    assert stage.accumulate * sequences == row.batch
    assert stage.accumulate % row.rounds == 0, "some number of ranks takes a step in the paper's rounds"
    sequence = stage.tokens_per_sample or stage.tokens_per_pack
    assert sequence == row.text_tokens
    assert stage.same_task == (name == "qwen_vl_stage2")
    assert stage.chat_format == ("chatml" if name == "qwen_vl_stage3" else "raw")
    sizes: Any = model_sizes(replace(config, model="qwen-vl"))
    assert (sizes.vision.image_px // sizes.vision.patch) ** 2 == row.patches
    pictures = stage.samples_per_pack if row.text_tokens == 512 else row.text_tokens // 258
    assert stage.patches_per_pack == pictures * row.patches


@ALL
def test_rates_over_a_stage(name: str) -> None:
    """Linear for the table's steps, then a cosine to the table's lowest rate."""
    row = TABLE[name]
    optim = recipe(name).stages[0].schedule

    def at(step: int) -> float:
        return optim.lr * rate(step / row.steps, optim)

    assert at(row.warmup // 2) == pytest.approx(row.peak / 2)
    assert at(row.warmup) == pytest.approx(row.peak)
    assert at((row.warmup + row.steps) // 2) == pytest.approx((row.peak + row.lowest) / 2)
    assert at(row.steps) == pytest.approx(row.lowest)


@ALL
def test_what_is_frozen_and_how_fast_each_layer_learns(name: str) -> None:
    row, config = TABLE[name], recipe(name)
    model = full_size()
    (stage,) = config.stages
    (adamw,) = Optimizers(model, stage.trains, stage.optim).all
    assert sum(p.numel() for p in model.parameters()) == TEXT + VISION + ADAPTER
    assert sum(p.numel() for p in model.parameters() if not p.requires_grad) == row.frozen
    assert not any(isinstance(module, nn.Dropout) for module in model.modules()), "dropout and drop path are 0"
    names = {p: n for n, p in model.named_parameters()}
    peak = {names[p]: group["peak"] for group in adamw.param_groups for p in group["params"]}
    assert {part_of(n) for n in peak} == set(row.trains)
    for found, value in peak.items():
        if part_of(found) != "vision":
            assert value == row.peak
    if "vision" not in row.trains:
        return
    layers = [value for n, value in peak.items() if n.endswith("attn_norm.weight") and n.startswith("visual.")]
    assert layers == pytest.approx([row.peak * 0.95 ** (48 - i) for i in range(48)])
    first = [n for n in peak if part_of(n) == "vision" and ".blocks." not in n]
    assert first == [
        "visual.position_embed",
        "visual.patch_embed.weight",
        "visual.pre_norm.weight",
        "visual.pre_norm.bias",
    ]
    assert [peak[n] for n in first] == pytest.approx([row.peak * 0.95**49] * 4)


@ALL
def test_without_data_a_recipe_says_what_to_do(name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(["train", "--config", str(RECIPES / f"{name}.yaml"), "--run", str(run)]) == USER_ERROR
    said = capsys.readouterr().err
    assert "your own data and names none" in said
    assert "--smoke" in said
    assert not run.exists()


@ALL
def test_a_smoke_run_keeps_what_the_recipe_is_about(name: str) -> None:
    config = recipe(name)
    short = smoke(config, "somewhere")
    (stage,), (before,) = short.stages, config.stages
    kept = ("trains", "same_task", "samples_per_pack", "tokens_per_sample", "tokens_per_pack", "chat_format", "world")
    assert all(getattr(stage, key) == getattr(before, key) for key in kept)
    assert (short.model, short.parts) == ("tiny-qwen-vl", PartsConfig())
    assert (short.image_px, short.queries) == (config.image_px, 256)
    assert (stage.steps, short.needs_data) == (2, False)


def test_a_smoke_run_of_a_recipe_for_files_is_on_the_world() -> None:
    config = read_recipe(RECIPES / "lora.yaml", settings=["data.files=[{path: my.jsonl}]"])
    short = smoke(config, "somewhere")
    assert (short.model, short.data, short.lora) == ("tiny", DataConfig(), config.lora)
    assert (short.stages[0].steps, short.stages[0].epochs) == (2, 0.0)


def test_with_files_a_recipe_has_its_data() -> None:
    config = recipe("qwen_vl_stage1")
    with pytest.raises(ValueError, match="--data FILE"):
        check_data(config)
    check_data(replace(config, data=DataConfig((DataFile("my.jsonl"),))))


@pytest.mark.slow
@ALL
def test_a_smoke_run_runs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """At a quarter of the side, so that it takes seconds on one thread."""
    small = ["image_px=112", "queries=16", "stages.0.tokens_per_pack=512", "stages.0.tokens_per_sample=0"]
    options = [word for setting in small for word in ("--set", setting)]
    assert main(["train", "--config", str(RECIPES / f"{name}.yaml"), "--smoke", "--threads", "1", *options]) == 0
    assert "The recipe runs: 1 stage with tiny-qwen-vl" in capsys.readouterr().out
