"""Starting from a language model and an OpenCLIP tower: tiny ones, with the official names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.handmade import relative
from parity.handmade_qwen_vl import batch_of, made, sequence, small_config
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qvl.checkpoint.folder import save_model
from qvl.checkpoint.parts import load_clip_vision, load_language_model
from qvl.layers.attention import PackedContext
from qvl.models.keys import stored_tensors
from qvl.models.qwen_vl.model import QwenVL

CONFIG = small_config()


@pytest.fixture
def language(tmp_path: Path) -> Path:
    """A Qwen-7B folder: a Qwen-VL's without anything visual."""
    folder = tmp_path / "lm"
    save_model(made(CONFIG, seed=1), folder)
    tensors = {n: t for n, t in load_file(folder / "model.safetensors").items() if "visual" not in n}
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    del config["visual"]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_language_half(language: Path) -> None:
    model, source, before = made(CONFIG, seed=2), made(CONFIG, seed=1), made(CONFIG, seed=2)
    load_language_model(model, language)
    theirs, untouched = stored_tensors(source), stored_tensors(before)
    for name, tensor in stored_tensors(model).items():
        assert torch.equal(tensor, (untouched if name.startswith("visual.") else theirs)[name]), name
    batch = batch_of([sequence(0, [12], CONFIG)], CONFIG)
    with torch.no_grad():
        assert torch.equal(model(batch), source(batch))


def test_language_half_of_a_qwen_vl(tmp_path: Path) -> None:
    model, source = made(CONFIG, seed=2), made(CONFIG, seed=1)
    save_model(source, tmp_path)
    load_language_model(model, tmp_path)
    assert torch.equal(model.head.weight, source.head.weight)
    assert not torch.equal(model.visual.position_embed, source.visual.position_embed)


def test_language_models_that_do_not_fit(language: Path) -> None:
    deeper = made(small_config(layers=3))
    with pytest.raises(ValueError, match=r"another language model: layers 2 \(the model: 3\)"):
        load_language_model(deeper, language)
    model, before = made(CONFIG, seed=2), made(CONFIG, seed=2)
    tensors = torch.load(language / "pytorch_model.bin", weights_only=True)
    torch.save(tensors | {"transformer.extra": torch.zeros(1)}, language / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"does not have \(1: transformer.extra\)"):
        load_language_model(model, language)
    del tensors["transformer.h.1.mlp.w1.weight"]
    torch.save(tensors, language / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"do not fit the model: missing 1: transformer.h.1.mlp.w1.weight"):
        load_language_model(model, language)
    assert torch.equal(model.embed.weight, before.embed.weight), "changed before everything was checked"


def clip_tower(model: QwenVL) -> dict[str, Tensor]:
    """Random OpenCLIP tensors for the model's sizes, and what is not used of such a file."""
    v = model.config.vision
    shapes: dict[str, tuple[int, ...]] = {
        "visual.conv1.weight": (v.width, 3, v.patch, v.patch),
        "visual.class_embedding": (v.width,),
        "visual.positional_embedding": (1 + v.table_side**2, v.width),
        "visual.ln_pre.weight": (v.width,),
        "visual.ln_pre.bias": (v.width,),
        "visual.ln_post.weight": (v.width,),
        "visual.ln_post.bias": (v.width,),
        "visual.proj": (v.width, 10),
        "positional_embedding": (77, 10),
        "token_embedding.weight": (50, 10),
        "transformer.resblocks.0.ln_1.weight": (10,),
        "logit_scale": (),
    }
    for i in range(v.layers):
        block = f"visual.transformer.resblocks.{i}."
        for name, shape in {
            "ln_1": (v.width,),
            "ln_2": (v.width,),
            "attn.in_proj_": (3 * v.width, v.width),
            "attn.out_proj": (v.width, v.width),
            "mlp.c_fc": (v.mlp_hidden, v.width),
            "mlp.c_proj": (v.width, v.mlp_hidden),
        }.items():
            dot = "" if name.endswith("_") else "."
            shapes[f"{block}{name}{dot}weight"] = shape
            shapes[f"{block}{name}{dot}bias"] = shape[:1]
    generator = torch.Generator().manual_seed(0)
    return {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def clip_features(w: dict[str, Tensor], model: QwenVL, patches: Tensor) -> Tensor:
    """What OpenCLIP's tower computes of a picture's patches without a class token, by torch's own attention."""
    v = model.config.vision
    x = patches @ w["visual.conv1.weight"].flatten(1).T + w["visual.positional_embedding"][1:]

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, y.shape[1:], w[name + ".weight"], w[name + ".bias"], 1e-6)

    x = norm(x, "visual.ln_pre")
    for i in range(v.layers):
        block = f"visual.transformer.resblocks.{i}."
        attention = nn.MultiheadAttention(v.width, v.heads)
        attention.load_state_dict({n: w[f"{block}attn.{n}"] for n in attention.state_dict()})
        y = norm(x, block + "ln_1")[:, None]
        x = x + attention(y, y, y)[0][:, 0]
        y = F.gelu(norm(x, block + "ln_2") @ w[block + "mlp.c_fc.weight"].T + w[block + "mlp.c_fc.bias"])
        x = x + y @ w[block + "mlp.c_proj.weight"].T + w[block + "mlp.c_proj.bias"]
    return x


@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_vision_half(suffix: str, tmp_path: Path) -> None:
    model, before = made(CONFIG, seed=2), made(CONFIG, seed=2)
    tower = clip_tower(model)
    file = tmp_path / f"open_clip_pytorch_model.{suffix}"
    (torch.save if suffix == "bin" else save_file)(tower, file)
    load_clip_vision(model, file)
    kept = stored_tensors(before)
    for name, tensor in stored_tensors(model).items():
        filled = name.startswith("visual.") and not name.startswith("visual.adapter.")
        assert torch.equal(tensor, kept[name]) != filled, name
    batch = batch_of([sequence(0, [1, (4, 4)], CONFIG)], CONFIG)
    seen = {}
    model.visual.adapter.register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    with torch.no_grad():
        model.see(batch, PackedContext(batch))
        assert relative(seen["x"], clip_features(tower, model, batch.patches_PC)) < 1e-5


def test_towers_that_do_not_fit(tmp_path: Path) -> None:
    model = made(CONFIG)
    tower = clip_tower(model)
    file = tmp_path / "clip.safetensors"
    save_file(tower | {"visual.positional_embedding": torch.zeros(50, 24)}, file)
    with pytest.raises(ValueError, match=r"visual.positional_embedding is \[49, 24\], the model wants \[16, 24\]"):
        load_clip_vision(model, file)
    deeper = made(small_config(vision=(24, 3, 3, 40)))
    save_file(tower, file)
    with pytest.raises(
        ValueError, match=r"clip.safetensors do not fit the model: missing 12: visual.transformer.resblocks.2"
    ):
        load_clip_vision(deeper, file)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_clip_vision(model, tmp_path / "nowhere.bin")


def test_a_tied_model_takes_no_head(language: Path) -> None:
    model = made(replace(CONFIG, tie_embeddings=True))
    load_language_model(model, language)
    assert model.head.weight is model.embed.weight
