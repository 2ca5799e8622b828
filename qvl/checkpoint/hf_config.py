"""`config.json` of a Qwen2-VL folder <-> `Qwen2VLConfig`.

Knows: both generations that exist. Flat: language fields at the top, `rope_scaling.mrope_section`, `torch_dtype`.
Nested: `text_config`, `rope_parameters`, `dtype`. Writes the flat one, which released checkpoints have and which
transformers (4.45 up to 5) and vLLM read.
Does not know: weights, tokenizers, pixels.

A vision tower that began as another ViT may have what no released one has: a position table, a norm before the first
block, no rotary positions. Such a model runs here only: other readers would take the rest of its tensors and see
nonsense. So it is marked with a `model_type` of its own, `qvl_qwen2_vl`, which they do not know, and its vision sizes
stand under `qvl_vision_config`, without which a reader that is told to take it all the same finds tensors of the wrong
shape. What is added stands there as `qvl_position_side`, `qvl_pre_norm`, `qvl_rope`. (Folders written before have these
keys in `vision_config` and are read too.) The activation is a key of the format.

One-axis positions (an ablation, `rope_sections=()`) do not exist in the official format: they are written as
`"qvl_rope_axes": 1` with no `rope_scaling`. vLLM then also uses one axis; transformers always uses three axes, so
such a model must not be run there. A file with neither `mrope_section` nor that key is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from qvl.checkpoint.jsonfile import Fields
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, TokenIds, VisionConfig

MODEL_TYPE = "qwen2_vl"
OWN_MODEL_TYPE = "qvl_qwen2_vl"
"""Of a model that other readers cannot run."""
_OWN_VISION = "qvl_vision_config"
ROPE_AXES_KEY = "qvl_rope_axes"
_VISION_THETA = 10000.0
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def read_config(path: Path) -> Qwen2VLConfig:
    """Reads `config.json` in the folder `path`.

    Raises:
        FileNotFoundError: no config.json there.
        ValueError: a key is missing, has the wrong kind, or asks for something that is not implemented.
    """
    return parse_config(Fields.read(path / "config.json"))


def parse_config(top: Fields) -> Qwen2VLConfig:
    """The same from a parsed file."""
    own = top.data.get("model_type") == OWN_MODEL_TYPE
    if not own:
        top.expect("model_type", MODEL_TYPE, "this reader is Qwen2-VL's")
    vision = _OWN_VISION if own else "vision_config"
    if top.has("quantization_config"):
        raise ValueError(f"{top.source}: quantised checkpoints are not read; take the original bf16 one")
    if not top.has(vision):
        raise ValueError(f"{top.source}: {vision} is missing: this is a language model without a vision tower")
    nested = top.child("text_config")
    text = nested if nested.data else top
    return Qwen2VLConfig(
        text=_text(text),
        vision=_vision(top.child(vision), text.size("hidden_size")),
        vocab_size=text.size("vocab_size"),
        # Versions 4.52 to 4.57 kept the flag inside text_config only, version 5 at the top only.
        tie_embeddings=top.flag("tie_word_embeddings", False) or text.flag("tie_word_embeddings", False),
        max_positions=text.size("max_position_embeddings"),
        ids=TokenIds(
            image_pad=top.integer("image_token_id"),
            video_pad=top.integer("video_token_id"),
            vision_start=top.integer("vision_start_token_id"),
            vision_end=top.integer("vision_end_token_id"),
            # Where nobody set them, version 4 leaves both out and version 5 writes the released ids.
            bos=text.integer("bos_token_id", TokenIds().bos),
            eos=text.integers("eos_token_id", (TokenIds().eos,))[0],
        ),
    )


def config_json(config: Qwen2VLConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What goes into config.json (flat generation) for weights stored as `dtype`.

    Raises:
        ValueError: the format cannot express this configuration (a head size other than width / heads, rope
            sections on other than three axes, a vision mlp that is no whole multiple of its width).
    """
    _check_expressible(config)
    text = config.text
    own = not runs_elsewhere(config)
    data: dict[str, Any] = {
        "architectures": ["QvlQwen2VLForConditionalGeneration" if own else "Qwen2VLForConditionalGeneration"],
        "model_type": OWN_MODEL_TYPE if own else MODEL_TYPE,
        "attention_dropout": 0.0,
        "bos_token_id": config.ids.bos,
        "eos_token_id": config.ids.eos,
        "vision_start_token_id": config.ids.vision_start,
        "vision_end_token_id": config.ids.vision_end,
        "image_token_id": config.ids.image_pad,
        "video_token_id": config.ids.video_pad,
        "hidden_act": "silu",
        "hidden_size": text.width,
        "initializer_range": 0.02,
        "intermediate_size": text.mlp_hidden,
        "max_position_embeddings": config.max_positions,
        "max_window_layers": text.layers,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "num_key_value_heads": text.kv_heads,
        "rms_norm_eps": text.norm_eps,
        "rope_theta": text.rope_theta,
        "sliding_window": config.max_positions,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype_name(dtype),
        "use_cache": True,
        "use_sliding_window": False,
        _OWN_VISION if own else "vision_config": _vision_json(config.vision, text.width),
        "vocab_size": config.vocab_size,
    }
    if text.rope_sections:
        data["rope_scaling"] = {"type": "mrope", "mrope_section": list(text.rope_sections)}
    else:
        data[ROPE_AXES_KEY] = 1
    return data


def runs_elsewhere(config: Qwen2VLConfig) -> bool:
    """Whether other readers of the format compute what this package does: the vision tower is one of the format."""
    vision = config.vision
    return vision.rope and not vision.table_side and not vision.pre_norm


def dtype_name(dtype: torch.dtype) -> str:
    """How a config.json spells `dtype` ("bfloat16")."""
    return next(name for name, value in _DTYPES.items() if value == dtype)


def stored_dtype(data: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype a config.json says its weights have (`dtype` or `torch_dtype`), or None if it says nothing."""
    name = data.get("dtype") or data.get("torch_dtype")
    return _DTYPES.get(str(name))


def _text(text: Fields) -> DecoderConfig:
    text.expect("hidden_act", "silu", "the SwiGLU of Qwen2")
    text.expect("use_sliding_window", False, "no released Qwen2-VL uses a sliding window")
    width, heads = text.size("hidden_size"), text.size("num_attention_heads")
    if width % heads:
        raise ValueError(f"{text.source}: hidden_size {width} is not a multiple of num_attention_heads {heads}")
    text.expect("head_dim", width // heads, "the head size is hidden_size / num_attention_heads")
    theta, sections = _rope(text)
    return DecoderConfig(
        width=width,
        layers=text.size("num_hidden_layers"),
        heads=heads,
        kv_heads=text.size("num_key_value_heads"),
        head_size=width // heads,
        mlp_hidden=text.size("intermediate_size"),
        norm_eps=text.number("rms_norm_eps"),
        rope_theta=theta,
        rope_sections=sections,
    )


def _rope(text: Fields) -> tuple[float, tuple[int, ...]]:
    """Theta and frequencies per axis, from `rope_parameters` (5.x) or `rope_scaling` + `rope_theta`."""
    rope = text.child("rope_parameters") if text.has("rope_parameters") else text.child("rope_scaling")
    theta = rope.positive("rope_theta") if rope.has("rope_theta") else text.positive("rope_theta")
    for key in ("type", "rope_type"):
        if rope.has(key) and rope.data[key] not in ("mrope", "default"):
            raise ValueError(f"{rope.source}: {key} {rope.data[key]!r} is not implemented, only mrope (or default)")
    if rope.has("mrope_section"):
        sections = rope.integers("mrope_section")
        if len(sections) != 3:
            raise ValueError(f"{rope.source}: mrope_section must have three numbers, got {list(sections)}")
        return theta, sections
    if text.data.get(ROPE_AXES_KEY) == 1:
        return theta, ()
    raise ValueError(
        f"{text.source}: there is no rope_scaling.mrope_section (released models: [16, 24, 24]); "
        f'a model with one-axis positions says "{ROPE_AXES_KEY}": 1'
    )


def _vision(vision: Fields, text_width: int) -> VisionConfig:
    """Absent keys mean the released tower: transformers 4.x leaves out whatever equals its (same) defaults."""
    activation = vision.data.get("hidden_act") or "quick_gelu"
    if activation not in ("quick_gelu", "gelu"):
        raise ValueError(f"{vision.source}: hidden_act is {activation!r}, implemented are quick_gelu and gelu")
    vision.expect("hidden_size", text_width, "here it names the merger's output, the language model's hidden_size")
    released = VisionConfig()
    width = vision.size("embed_dim", released.width)
    return VisionConfig(
        width=width,
        layers=vision.size("depth", released.layers),
        heads=vision.size("num_heads", released.heads),
        mlp_hidden=int(width * vision.positive("mlp_ratio", released.mlp_hidden / released.width)),
        patch=vision.size("patch_size", released.patch),
        temporal_patch=vision.size("temporal_patch_size", released.temporal_patch),
        merge=vision.size("spatial_merge_size", released.merge),
        channels=vision.size("in_channels", released.channels),
        rope_theta=vision.child("rope_parameters").positive("rope_theta", _VISION_THETA),
        rope=vision.flag("qvl_rope", True),
        activation=activation,
        table_side=vision.integer("qvl_position_side", 0),
        pre_norm=vision.flag("qvl_pre_norm", False),
    )


def _vision_json(vision: VisionConfig, text_width: int) -> dict[str, Any]:
    data: dict[str, Any] = {
        "model_type": "qwen2_vl",
        "depth": vision.layers,
        "embed_dim": vision.width,
        "hidden_act": vision.activation,
        "hidden_size": text_width,
        "in_channels": vision.channels,
        "in_chans": vision.channels,
        "mlp_ratio": vision.mlp_hidden // vision.width,
        "num_heads": vision.heads,
        "patch_size": vision.patch,
        "spatial_merge_size": vision.merge,
        "spatial_patch_size": vision.patch,
        "temporal_patch_size": vision.temporal_patch,
    }
    if vision.rope_theta != _VISION_THETA:  # transformers 5 reads it; older readers have the number built in
        data["rope_parameters"] = {"rope_type": "axial", "rope_theta": vision.rope_theta}
    if not vision.rope:
        data["qvl_rope"] = False
    if vision.table_side:
        data["qvl_position_side"] = vision.table_side
    if vision.pre_norm:
        data["qvl_pre_norm"] = True
    return data


def _check_expressible(config: Qwen2VLConfig) -> None:
    text, vision = config.text, config.vision
    if text.heads * text.head_size != text.width:
        raise ValueError(
            f"config.json cannot express head size {text.head_size} with {text.heads} heads and width {text.width}: "
            f"the format fixes it to width / heads = {text.width / text.heads:g}"
        )
    if len(text.rope_sections) not in (0, 3):
        raise ValueError(f"config.json needs three rope_sections (or none), got {text.rope_sections}")
    if vision.mlp_hidden % vision.width:
        raise ValueError(
            f"config.json cannot express a vision mlp of {vision.mlp_hidden} values: the format stores the whole "
            f"number mlp_hidden / width, and the width is {vision.width}"
        )
