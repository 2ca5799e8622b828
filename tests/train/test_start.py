"""A run that begins with pretrained parts: built, stepped, saved, gone on with, asked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_parts import language_folder, vision_folder

import qvl
from qvl.checkpoint.folder import load_model, save_model
from qvl.cli.recipe import read_recipe
from qvl.cli.start import begin, processor_of, restore
from qvl.cli.training import train_run
from qvl.layers.attention import PackedContext
from qvl.models.qwen2_vl.config import preset
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen_vl.config import PRESETS
from qvl.models.qwen_vl.model import QwenVL
from qvl.train.build import build
from qvl.train.config import PartsConfig, TrainConfig
from qvl.train.start import fill_qwen_vl


@pytest.fixture
def parts(tmp_path: Path) -> PartsConfig:
    return PartsConfig(str(language_folder(tmp_path / "language")), str(vision_folder(tmp_path / "vision")))


def recipe(parts: PartsConfig, run: Path) -> TrainConfig:
    settings = [f"parts.language={parts.language}", f"parts.vision={parts.vision}", "parts.rope_sections=[1,2,5]"]
    short = ("steps=2", "world.sizes=[[56,56]]", "evaluate=false", "easy_vqa=0", "frozen=[]")
    for stage in ("stage0-told", "stage1-words", "stage1", "stage2", "stage3"):
        settings += [f"stages.{stage}.{key}" for key in short]
    return read_recipe("recipes/small.yaml", {"run": str(run), "threads": 1}, settings)


def test_what_a_model_begins_as(parts: PartsConfig, tmp_path: Path) -> None:
    built = build(recipe(parts, tmp_path / "run"), tmp_path / "tokenizer")
    model = built.model
    assert isinstance(model, Qwen2VL)
    assert (model.config.text.width, model.config.text.layers) == (32, 2)
    assert (model.config.vision.width, model.config.vision.table_side) == (16, 4)
    assert built.processor.config.geometry.mean == (0.485, 0.456, 0.406)
    tokenizer = built.processor.tokenizer
    assert model.config.ids.eos == tokenizer.special("<|im_end|>")
    stored = json.loads((Path(parts.language) / "tokenizer.json").read_text())["model"]["vocab"]
    rows = load_file(Path(parts.language) / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(model.embed.weight[tokenizer.encode("ab")[0]], rows[stored["ab"]])
    assert torch.equal(model.embed.weight[tokenizer.special("<|im_end|>")], rows[2])
    new = model.embed.weight[tokenizer.special("<|box_start|>")]
    assert (new - rows.mean(0)).abs().max() < rows.std(0).max()
    assert not torch.equal(new, model.embed.weight[tokenizer.special("<|box_end|>")])
    assert model.decoder.layers[0].qkv.bias.abs().max() == 0
    assert model.config.text.rope_sections == (1, 2, 5)


def test_a_picture_begins_as_long_as_words(parts: PartsConfig, tmp_path: Path) -> None:
    """Else a pretrained decoder's layers would add next to nothing to it."""
    built = build(recipe(parts, tmp_path / "run"))
    pixels = torch.randint(0, 255, (112, 112, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    question = {"role": "user", "content": [{"type": "image", "image": pixels.numpy()}, {"type": "text", "text": "?"}]}
    batch = built.processor([[question]])
    with torch.no_grad():
        seen = built.model.see(batch, PackedContext(batch)).norm(dim=1).mean()
    assert 0.5 < seen / built.model.embed.weight.norm(dim=1).mean() < 2


@pytest.mark.slow
def test_train_save_go_on_and_ask(parts: PartsConfig, tmp_path: Path) -> None:
    config = recipe(parts, tmp_path / "run")
    done = train_run(config)
    again = train_run(config)  # a finished run is read from its state: nothing is trained twice
    for (name, p), q in zip(done.vlm.model.named_parameters(), again.vlm.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    folder = tmp_path / "run" / "model"
    loaded = load_model(folder)
    assert loaded.config == done.vlm.model.config
    vlm = qvl.load(folder)
    assert vlm.processor.config.geometry.std == (0.229, 0.224, 0.225)
    picture = torch.zeros(56, 56, 3, dtype=torch.uint8).numpy()
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "ab?"}]
    reply = vlm.chat([{"role": "user", "content": question}], max_new_tokens=3)
    assert reply.usage.completion_tokens >= 1


@pytest.mark.slow
def test_a_run_is_exported_without_its_parts(parts: PartsConfig, tmp_path: Path) -> None:
    config = recipe(parts, tmp_path / "run")
    done = train_run(config)
    shutil.rmtree(parts.language)
    shutil.rmtree(parts.vision)
    _, built, where = restore(tmp_path / "run")
    assert where
    for (name, p), q in zip(done.vlm.model.named_parameters(), built.model.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert built.processor.config.geometry == done.vlm.processor.config.geometry
    assert built.processor.config.pixels == done.vlm.processor.config.pixels
    assert built.processor.tokenizer.encode("ab ab") == done.vlm.processor.tokenizer.encode("ab ab")


def test_pictures_are_enlarged_for_a_tower_that_wants_large_ones(parts: PartsConfig, tmp_path: Path) -> None:
    config = replace(recipe(parts, tmp_path / "run"), min_pixels=224 * 224)
    built = build(config)
    batch = built.processor(
        [[{"role": "user", "content": [{"type": "image", "image": np.zeros((112, 112, 3), np.uint8)}]}]]
    )
    assert batch.grids == ((1, 16, 16),)
    built = build(replace(config, min_pixels=0))
    batch = built.processor(
        [[{"role": "user", "content": [{"type": "image", "image": np.zeros((56, 56, 3), np.uint8)}]}]]
    )
    assert batch.grids == ((1, 4, 4),)
    with pytest.raises(ValueError, match="min_pixels is Qwen2-VL's; Qwen-VL makes a square of every picture"):
        build(replace(config, model="tiny-qwen-vl", parts=PartsConfig()))


def test_parts_beside_a_whole_model(parts: PartsConfig, tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    save_model(Qwen2VL(preset("tiny")), folder)
    both = replace(recipe(parts, tmp_path / "run"), model=str(folder))
    for start in (begin, lambda config, _run: processor_of(config)):
        with pytest.raises(
            ValueError, match=r"is a whole model, and the recipe names pretrained parts besides \(parts."
        ):
            start(both, tmp_path / "run")
        with pytest.raises(ValueError, match="has its own bounds for pictures, and the recipe has min_pixels=50176"):
            start(replace(both, parts=PartsConfig()), tmp_path / "run")


def test_the_preset_is_what_its_parts_are() -> None:
    """`small` without its parts (for `qvl plan`) has the sizes that building with them gives; measured once with the
    real ones: 49,170 tokens, 49,216 rows."""
    small = preset("small")
    assert (small.text.width, small.text.layers, small.vision.width, small.vocab_size) == (576, 30, 384, 49216)


def test_parts_that_are_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QVL_CACHE", str(tmp_path))
    config = read_recipe("recipes/small.yaml")
    with pytest.raises(FileNotFoundError, match=r"smollm2-135m .* fetch it once with `qvl data parts"):
        build(config)
    with pytest.raises(FileNotFoundError, match="there is no part 'elsewhere'"):
        build(read_recipe("recipes/small.yaml", None, ["parts.language=elsewhere"]))
    with torch.device("meta"):
        first_generation = QwenVL(PRESETS["tiny-qwen-vl"])
    with pytest.raises(ValueError, match="smollm2-135m is a part of a Qwen2-VL, but the recipe's model is a Qwen-VL"):
        fill_qwen_vl(first_generation, config.parts)
