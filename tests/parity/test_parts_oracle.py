"""Pretrained parts against the models of transformers that they were: logits of language models, features of towers."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoint.containers import float32, write_gguf
from safetensors.torch import save_file
from torch import Tensor, nn

from parity.handmade import randomise, relative
from qvl.batch import Batch
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.language_part import fill_language, read_language_part
from qvl.checkpoint.onnx import ONNX
from qvl.checkpoint.vision_part import VisionPart, fill_vision, read_vision_part
from qvl.inputs.sequence import Sequence, pack
from qvl.layers.attention import PackedContext
from qvl.layers.decoder import DecoderConfig
from qvl.media.load import Visual
from qvl.media.patches import patch_hw
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.packages import packaged

transformers = pytest.importorskip("transformers")

VOCAB = 60
SMALL_TOWER = VisionConfig(16, 1, 2, 32, patch=2)
SMALL_TEXT = DecoderConfig(32, 1, 2, 1, 16, 16, rope_sections=(2, 3, 3))
CLOSE = 1e-5
"""Of the largest magnitude. Measured: small language models 1.1e-6, small towers 1.3e-6; SmolLM2-135M 1.5e-6 (6.1e-5 of
41.8, also when transformers reads the GGUF file itself), DINOv2 ViT-S/14 5e-6 (5.6e-5 of 11.6)."""


def text_batch(ids: list[int]) -> Batch:
    n = len(ids)
    s = Sequence(np.array(ids), np.tile(np.arange(n), (3, 1)), np.zeros(0, np.int64), (), n)
    return pack([s], 24, 2)


def language_model(path: Path) -> Qwen2VL:
    part = read_language_part(path)
    config = Qwen2VLConfig(part.config, SMALL_TOWER, part.vocab_size, part.tie_embeddings, part.max_positions)
    model = Qwen2VL(config).eval()
    fill_language(model, part)
    return model


def saved(kind: str, folder: Path, **sizes: Any) -> nn.Module:
    config = getattr(transformers, f"{kind}Config")(
        vocab_size=VOCAB, hidden_size=64, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=100, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **sizes,
    )  # fmt: skip
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    randomise(model, seed=1)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["Llama", "Qwen2"])
def test_language_models(kind: str, tied: bool, tmp_path: Path) -> None:
    theirs = saved(kind, tmp_path, tie_word_embeddings=tied)
    ids = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()
    ours = language_model(tmp_path)
    assert ours.config.tie_embeddings is tied
    assert relative(ours(text_batch(ids)), theirs(torch.tensor([ids])).logits[0]) < CLOSE


def gguf_of(model: nn.Module, file: Path) -> Path:
    """As llama.cpp's converter does it: rows j and j + H/2 of a query or key become neighbours."""
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    parts = {
        "input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    }  # fmt: skip
    tensors = {}
    for name, value in model.state_dict().items():
        stem = name.removesuffix(".weight")
        if stem.startswith("model.layers."):
            number, leaf = stem.removeprefix("model.layers.").split(".", 1)
            stem = f"blk.{number}.{parts[leaf]}"
            if leaf.endswith(("q_proj", "k_proj")):
                heads = 4 if leaf.endswith("q_proj") else 2
                value = value.reshape(heads, 2, 8, 64).swapaxes(1, 2).reshape(value.shape)
        else:
            stem = names[stem]
        tensors[f"{stem}.weight"] = float32(value)
    fields = {
        "general.architecture": "llama", "llama.block_count": 2, "llama.context_length": 100,
        "llama.embedding_length": 64, "llama.feed_forward_length": 48, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    return write_gguf(file, fields, tensors)


@torch.no_grad()
def test_gguf(tmp_path: Path) -> None:
    theirs = saved("Llama", tmp_path / "folder")
    ids = np.random.default_rng(0).integers(0, VOCAB, 20).tolist()
    ours = language_model(gguf_of(theirs, tmp_path / "a.gguf"))
    assert ours.config.text.norm_eps == 1e-5
    assert relative(ours(text_batch(ids)), theirs(torch.tensor([ids])).logits[0]) < CLOSE


def tower_batch(pixels_CYX: Tensor, patch: int) -> Batch:
    """A picture as packed rows of patches, both frames alike."""
    height, width = (n // patch for n in pixels_CYX.shape[1:])
    grid = (1, height, width)
    row_P, column_P = patch_hw(grid, 2)
    cut = pixels_CYX.unflatten(1, (height, patch)).unflatten(3, (width, patch)).permute(1, 3, 0, 2, 4)
    rows = cut[row_P, column_P][:, :, None].expand(-1, -1, 2, -1, -1).flatten(1)
    tokens = height * width // 4
    visual = Visual(rows, grid, (height * patch, width * patch), (height * patch, width * patch))
    s = Sequence(np.zeros(tokens, np.int64), np.zeros((3, tokens), np.int64), np.arange(tokens), (visual,), 1)
    return pack([s], rows.shape[1], 2)


@torch.no_grad()
def features(part: VisionPart, pixels_CYX: Tensor, config: VisionConfig | None = None) -> Tensor:
    """What the merger sees of each patch after its norm, in raster order."""
    model = Qwen2VL(Qwen2VLConfig(SMALL_TEXT, config or part.config, 100)).eval()
    fill_vision(model, part)
    batch = tower_batch(pixels_CYX, part.config.patch)
    seen: list[Tensor] = []
    model.visual.merger.norm.register_forward_hook(lambda _module, _inputs, out: seen.append(out))
    model.see(batch, PackedContext(batch))
    row_P, column_P = batch.patch_hw_2P
    raster = torch.empty_like(seen[0])
    raster[row_P * batch.grids[0][2] + column_P] = seen[0]
    return raster


@torch.no_grad()
def dino_features(model: Any, pixels_CYX: Tensor) -> Tensor:
    """Of transformers' DINOv2, its class token taken out before the first layer."""
    x = model.embeddings(pixels_CYX[None])[:, 1:]
    for layer in model.encoder.layer:
        out = layer(x)
        x = out[0] if isinstance(out, tuple) else out
    return model.layernorm(x)[0]


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (24, 16)])
def test_dinov2(size: tuple[int, int], tmp_path: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4
    )
    theirs = transformers.Dinov2Model(config).eval()
    randomise(theirs, seed=2)
    theirs.save_pretrained(tmp_path)
    part = read_vision_part(tmp_path)
    assert (part.config.table_side, part.config.rope, part.config.activation) == (4, False, "gelu")
    assert part.mean == (0.485, 0.456, 0.406)
    pixels = torch.randn(3, *size, generator=torch.Generator().manual_seed(0))
    assert relative(features(part, pixels), dino_features(theirs, pixels)) < CLOSE


@torch.no_grad()
@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
def test_clip(activation: str, tmp_path: Path) -> None:
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=4,
        hidden_act=activation, layer_norm_eps=1e-6,
    )  # fmt: skip
    theirs = transformers.CLIPVisionModel(config).eval()
    randomise(theirs, seed=3)
    theirs.save_pretrained(tmp_path)
    part = read_vision_part(tmp_path)
    pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    body: Any = theirs.vision_model if hasattr(theirs, "vision_model") else theirs
    x = body.pre_layrnorm(body.embeddings(pixels[None])[:, 1:])
    for layer in body.encoder.layers:
        out = layer(x, attention_mask=None)
        x = out[0] if isinstance(out, tuple) else out
    assert relative(features(part, pixels), body.post_layernorm(x)[0]) < CLOSE


def open_clip_folder(folder: Path, activation: str, suffix: str) -> dict[str, Tensor]:
    """OpenCLIP's folder of a tower of width 32, two heads and two layers, patch 4, with a text tower beside it."""
    shapes = {
        "visual.conv1.weight": (32, 3, 4, 4), "visual.class_embedding": (32,), "visual.positional_embedding": (17, 32),
        "visual.proj": (32, 10), "positional_embedding": (77, 10), "token_embedding.weight": (50, 10),
        "transformer.resblocks.0.ln_1.weight": (10,), "logit_scale": (),
    }  # fmt: skip
    for norm in ("ln_pre", "ln_post", *(f"transformer.resblocks.{i}.ln_{n}" for i in range(2) for n in (1, 2))):
        shapes |= {f"visual.{norm}.{kind}": (32,) for kind in ("weight", "bias")}
    maps = {"attn.in_proj_": (96, 32), "attn.out_proj.": (32, 32), "mlp.c_fc.": (48, 32), "mlp.c_proj.": (32, 48)}
    for i in range(2):
        for name, shape in maps.items():
            shapes[f"visual.transformer.resblocks.{i}.{name}weight"] = shape
            shapes[f"visual.transformer.resblocks.{i}.{name}bias"] = shape[:1]
    generator = torch.Generator().manual_seed(4)
    tensors = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    folder.mkdir()
    if suffix == "bin":
        torch.save(tensors, folder / "open_clip_pytorch_model.bin")
    else:
        save_file(tensors, folder / "open_clip_model.safetensors")
    vision = {"image_size": 16, "layers": 2, "width": 32, "head_width": 16, "mlp_ratio": 1.5, "patch_size": 4}
    settings = {"embed_dim": 10, "quick_gelu": activation == "quick_gelu", "vision_cfg": vision, "text_cfg": {}}
    pixels = {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": settings, "preprocess_cfg": pixels}))
    return tensors


def open_clip_features(w: dict[str, Tensor], pixels_CYX: Tensor, activation: str) -> Tensor:
    """What that tower computes without its class token, by torch's convolution and attention."""
    functional = nn.functional

    def norm(y: Tensor, name: str) -> Tensor:
        return functional.layer_norm(y, (32,), w[f"visual.{name}.weight"], w[f"visual.{name}.bias"], 1e-6)

    x = functional.conv2d(pixels_CYX[None], w["visual.conv1.weight"], stride=4).flatten(2)[0].T
    x = norm(x + w["visual.positional_embedding"][1:], "ln_pre")
    for i in range(2):
        block = f"transformer.resblocks.{i}"
        attention = nn.MultiheadAttention(32, 2)
        attention.load_state_dict({n: w[f"visual.{block}.attn.{n}"] for n in attention.state_dict()})
        y = norm(x, f"{block}.ln_1")[:, None]
        x = x + attention(y, y, y)[0][:, 0]
        mlp = f"visual.{block}.mlp."
        y = norm(x, f"{block}.ln_2") @ w[mlp + "c_fc.weight"].T + w[mlp + "c_fc.bias"]
        y = y * torch.sigmoid(1.702 * y) if activation == "quick_gelu" else functional.gelu(y)
        x = x + y @ w[mlp + "c_proj.weight"].T + w[mlp + "c_proj.bias"]
    return norm(x, "ln_post")


@torch.no_grad()
@pytest.mark.parametrize(("activation", "suffix"), [("quick_gelu", "bin"), ("gelu", "safetensors")])
def test_open_clip(activation: str, suffix: str, tmp_path: Path) -> None:
    tensors = open_clip_folder(tmp_path / "tower", activation, suffix)
    part = read_vision_part(tmp_path / "tower")
    c = part.config
    assert (c.layers, c.heads, c.mlp_hidden, c.table_side, c.rope, c.pre_norm) == (2, 2, 48, 4, False, True)
    assert c.activation == activation
    assert (part.mean, part.std) == ((0.5, 0.4, 0.3), (0.2, 0.2, 0.1))
    pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert relative(features(part, pixels), open_clip_features(tensors, pixels, activation)) < CLOSE


def test_an_open_clip_folder_without_weights(tmp_path: Path) -> None:
    open_clip_folder(tmp_path / "tower", "gelu", "bin")
    (tmp_path / "tower" / "open_clip_pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"no open_clip_model.safetensors or open_clip_pytorch_model.bin in"):
        read_vision_part(tmp_path / "tower")


@pytest.mark.parametrize("tower", [{"rope": False, "table_side": 4}, {"pre_norm": True}], ids=["table", "pre-norm"])
def test_others_refuse_a_tower_that_they_do_not_have(
    tower: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They would leave the table or the norm out and see nonsense."""
    vision = replace(SMALL_TOWER, width=32, heads=2, **tower)
    model = Qwen2VL(Qwen2VLConfig(SMALL_TEXT, vision, 100, tie_embeddings=True)).eval()
    randomise(model, seed=5)
    save_model(model, tmp_path)
    assert "is for this package only: transformers and vLLM" in caplog.text
    ours = load_model(tmp_path)
    assert ours.config == model.config
    for name, p in ours.named_parameters():
        assert torch.equal(p, model.get_parameter(name)), name
    for name in ("AutoConfig", "AutoModelForImageTextToText"):
        with pytest.raises(ValueError, match="qvl_qwen2_vl"):
            getattr(transformers, name).from_pretrained(tmp_path)
    # Told to take it all the same, it makes a model of its own defaults, if that can be, and finds other shapes.
    with pytest.raises((RuntimeError, ValueError, ArithmeticError)):
        transformers.Qwen2VLForConditionalGeneration.from_pretrained(tmp_path)
    # A folder written before the mark was there.
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {"model_type": "qwen2_vl", "vision_config": config.pop("qvl_vision_config")}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(tmp_path).config == model.config


def test_towers_that_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "siglip"}))
    with pytest.raises(ValueError, match="model_type 'siglip' is not one of: dinov2, clip"):
        read_vision_part(tmp_path)


def real(name: str) -> Path:
    try:
        return packaged(name)
    except FileNotFoundError as error:
        pytest.skip(str(error))


@pytest.mark.slow
@torch.no_grad()
def test_smollm2() -> None:
    """The right order of rows gives 2.9 nats a token on English text, the wrong one 3.8 (measured)."""
    from qvl.train.config import PartsConfig
    from qvl.train.start import Start

    start = Start.of(PartsConfig(language=str(real("smollm2-135m"))))
    assert start.language is not None
    assert start.vocabulary is not None
    part, vocabulary = start.language, start.vocabulary
    config = transformers.LlamaConfig(
        vocab_size=part.vocab_size, hidden_size=576, intermediate_size=1536, num_hidden_layers=30,
        num_attention_heads=9, num_key_value_heads=3, rope_theta=1e5, rms_norm_eps=1e-5, tie_word_embeddings=True,
    )  # fmt: skip
    theirs = transformers.LlamaForCausalLM(config).eval()
    names = list(part.weights.shapes)
    state = dict(zip(names, (t.clone() for t in part.weights.read(names)), strict=True))
    theirs.load_state_dict(state | {"lm_head.weight": state["model.embed_tokens.weight"]})
    model = Qwen2VL(replace(start.fitted(Qwen2VLConfig(part.config)), vision=SMALL_TOWER, vocab_size=49216)).eval()
    start.fill(model, seed=0)
    words = Path(__file__).parents[2].joinpath("LICENSE").read_text()[200:2600]
    ids = vocabulary.tokenizer.encode(words)
    rows = torch.tensor(vocabulary.rows)
    logits = model(text_batch(ids))
    wanted = theirs(rows[torch.tensor(ids)][None]).logits[0]
    known = rows >= 0
    assert relative(logits[:, : len(rows)][:, known], wanted[:, rows[known]]) < CLOSE
    assert nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:])) < 2.95


@pytest.mark.slow
@torch.no_grad()
def test_dinov2_from_onnx() -> None:
    file = real("dinov2-s14")
    stored = ONNX(file)
    config = transformers.Dinov2Config(hidden_size=384, num_attention_heads=6, image_size=518, patch_size=14)
    theirs = transformers.Dinov2Model(config).eval()
    state = {}
    for name in theirs.state_dict():
        old = name.replace("attention.o_proj", "attention.output.dense")
        for short, long in (("q", "query"), ("k", "key"), ("v", "value")):
            old = old.replace(f"attention.{short}_proj", f"attention.attention.{long}")
        if name.endswith("position_embeddings"):
            places = ("backbone.embeddings.Concat_6", "backbone.embeddings.Reshape_1")
            state[name] = torch.cat([stored.get(place) for place in places], dim=1)
        elif not name.endswith("mask_token"):
            state[name] = stored.get(f"backbone.{old}")
    theirs.load_state_dict(state, strict=False)
    part = read_vision_part(file)
    pixels = torch.randn(3, 56, 84, generator=torch.Generator().manual_seed(0))
    ours = features(part, pixels)
    assert relative(ours, dino_features(theirs, pixels)) < CLOSE
    # Without the class token: on photographs the mean cosine to the original is 0.985 at 224 x 224 and
    # 0.995 at 532 x 532. With rope as well it is 0.91, with rope instead of the table 0.23. Noise, as here, says less:
    # 0.93 and 0.89.
    original = theirs(pixels[None]).last_hidden_state[0, 1:]
    cosine = nn.functional.cosine_similarity
    turned = features(part, pixels, replace(part.config, rope=True, table_side=0))
    assert cosine(ours, original).mean() > max(0.9, float(cosine(turned, original).mean()))
