"""A language model and a vision tower of a few thousand numbers, as folders in the Hugging Face layout."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from qvl.text.vocabulary import BYTE_CHARACTERS


def _write(folder: Path, config: dict[str, object], shapes: dict[str, tuple[int, ...]]) -> Path:
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for name in tensors:
        if "norm" in name and name.endswith("weight"):
            tensors[name] += 1
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def language_folder(folder: Path) -> Path:
    """A Llama of two layers; its special tokens come first, as SmolLM2's do."""
    words = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *BYTE_CHARACTERS, "ab", "Ġab"]
    shapes = {"model.embed_tokens.weight": (len(words), 32), "model.norm.weight": (32,)}
    for i in range(2):
        layer = f"model.layers.{i}."
        shapes |= {f"{layer}{n}.weight": (32,) for n in ("input_layernorm", "post_attention_layernorm")}
        shapes |= {f"{layer}self_attn.{n}_proj.weight": (32, 32) for n in "qo"}
        shapes |= {f"{layer}self_attn.{n}_proj.weight": (16, 32) for n in "kv"}
        shapes |= {f"{layer}mlp.{n}_proj.weight": (48, 32) for n in ("gate", "up")}
        shapes[f"{layer}mlp.down_proj.weight"] = (32, 48)
    config = {
        "model_type": "llama", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 48, "rms_norm_eps": 1e-5, "rope_theta": 1e4,
        "vocab_size": len(words), "tie_word_embeddings": True, "max_position_embeddings": 2048,
    }  # fmt: skip
    _write(folder, config, shapes)
    tokenizer = {
        "version": "1.0", "normalizer": None, "post_processor": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "decoder": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "model": {"type": "BPE", "vocab": {w: i for i, w in enumerate(words)}, "merges": ["a b", "Ġ ab"]},
        "added_tokens": [
            {"id": i, "content": w, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
             "special": True} for i, w in enumerate(words[:3])
        ],
    }  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def vision_folder(folder: Path) -> Path:
    """A DINOv2 of two layers, patch 14, 4 x 4 places."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, 16),
        "embeddings.position_embeddings": (1, 17, 16),
        "embeddings.patch_embeddings.projection.weight": (16, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (16,),
    }
    norms = ["layernorm."]
    for i in range(2):
        layer = f"encoder.layer.{i}."
        norms += [f"{layer}norm1.", f"{layer}norm2."]
        maps = {f"attention.attention.{n}": (16, 16) for n in ("query", "key", "value")}
        maps |= {"attention.output.dense": (16, 16), "mlp.fc1": (32, 16), "mlp.fc2": (16, 32)}
        shapes |= {f"{layer}{name}.weight": shape for name, shape in maps.items()}
        shapes |= {f"{layer}{name}.bias": shape[:1] for name, shape in maps.items()}
        shapes |= {f"{layer}layer_scale{n}.lambda1": (16,) for n in (1, 2)}
    shapes |= {f"{norm}{kind}": (16,) for norm in norms for kind in ("weight", "bias")}
    config = {"model_type": "dinov2", "hidden_size": 16, "num_attention_heads": 2, "mlp_ratio": 2, "hidden_act": "gelu"}
    return _write(folder, config, shapes)
