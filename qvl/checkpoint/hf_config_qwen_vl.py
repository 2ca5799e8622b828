"""`config.json` of a Qwen-VL folder <-> `QwenVLConfig`.

Knows: the official keys ("model_type": "qwen" with a `visual` object). `intermediate_size` counts both halves of the
SwiGLU; `n_queries` in `visual` is the official code's own name, left out by the released file (256).
Does not know: weights, tokenizers, pixels.

What the official code fixes and this package leaves free is written under keys of our own, only where it differs: the
number of the adapter's heads (theirs: width / 128) and the side of the learned table of positions (theirs: 16).
"""

from __future__ import annotations

import math
from typing import Any

import torch

from qvl.checkpoint.hf_config import dtype_name
from qvl.checkpoint.jsonfile import Fields
from qvl.layers.decoder import BeyondTraining, DecoderConfig
from qvl.models.qwen_vl.config import AdapterConfig, QwenVLConfig, TokenIds, VisionConfig

HEADS_KEY = "qvl_adapter_heads"
TABLE_KEY = "qvl_table_side"
_QUERIES = 256
_TABLE_SIDE = 16
_HEAD_SIZE = 128
_END_OF_TEXT = 151643


def parse_config(top: Fields) -> QwenVLConfig:
    """Reads a parsed config.json.

    Raises:
        ValueError: a key is missing, has the wrong kind, or asks for something that is not implemented.
    """
    top.expect("model_type", "qwen", "this reader is Qwen-VL's")
    if top.has("quantization_config"):
        raise ValueError(f"{top.source}: quantised checkpoints are not read; take the original bf16 one")
    if not top.has("visual"):
        raise ValueError(
            f"{top.source}: visual is missing: this is a language model without a vision tower (Qwen-7B). "
            "qvl.checkpoint.parts.load_language_model reads it into the language half of a Qwen-VL"
        )
    text = parse_text(top)
    visual = top.child("visual")
    eos = top.integers("eos_token_id", (_END_OF_TEXT,))[0]
    return QwenVLConfig(
        text=text,
        vision=_vision(visual),
        adapter=_adapter(visual, text.width),
        vocab_size=top.size("vocab_size"),
        tie_embeddings=top.flag("tie_word_embeddings", False),
        max_positions=top.size("max_position_embeddings"),
        ids=TokenIds(
            image_start=visual.integer("image_start_id", 151857),
            bos=top.integer("bos_token_id", eos),
            eos=eos,
        ),
    )


def parse_text(top: Fields) -> DecoderConfig:
    """The language model's sizes: of a Qwen-VL, or of a Qwen-7B folder."""
    top.expect("rotary_pct", 1.0, "all of a head's channels turn")
    top.expect("no_bias", True, "the only bias of a layer is that of queries, keys and values")
    top.expect("scale_attn_weights", True, "scores are divided by the square root of the head size")
    width, heads = top.size("hidden_size"), top.size("num_attention_heads")
    size = top.size("kv_channels")
    if heads * size != width:
        raise ValueError(
            f"{top.source}: num_attention_heads {heads} x kv_channels {size} = {heads * size} must be the "
            f"hidden_size {width}"
        )
    halves = top.size("intermediate_size")
    if halves % 2:
        raise ValueError(f"{top.source}: intermediate_size counts both halves of the SwiGLU, so {halves} must be even")
    trained = BeyondTraining(
        trained_len=top.size("seq_length"),
        dynamic_ntk=top.flag("use_dynamic_ntk", False),
        logn=top.flag("use_logn_attn", False),
    )
    return DecoderConfig(
        width=width,
        layers=top.size("num_hidden_layers"),
        heads=heads,
        kv_heads=heads,
        head_size=size,
        mlp_hidden=halves // 2,
        norm_eps=top.number("layer_norm_epsilon"),
        rope_theta=top.positive("rotary_emb_base"),
        rope_float32=True,
        beyond=trained,
    )


def config_json(config: QwenVLConfig, dtype: torch.dtype) -> dict[str, Any]:
    """What goes into config.json for weights stored as `dtype`.

    Raises:
        ValueError: the format cannot express this configuration (shared key heads, a head size other than width /
            heads, no `beyond`).
    """
    text = config.text
    if text.kv_heads != text.heads or text.heads * text.head_size != text.width:
        raise ValueError(
            f"config.json cannot express {text.heads} heads of size {text.head_size} with {text.kv_heads} of keys and "
            f"width {text.width}: the format has as many key heads as heads, and heads x size = width"
        )
    if text.beyond is None or not text.rope_float32:
        raise ValueError("config.json needs the decoder's `beyond` (seq_length), and rope_float32 is fixed to true")
    return {
        "architectures": ["QWenLMHeadModel"],
        "auto_map": {
            "AutoConfig": "configuration_qwen.QWenConfig",
            "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
        },
        "model_type": "qwen",
        "attn_dropout_prob": 0.0,
        "bos_token_id": config.ids.bos,
        "emb_dropout_prob": 0.0,
        "eos_token_id": config.ids.eos,
        "hidden_size": text.width,
        "initializer_range": 0.02,
        "intermediate_size": 2 * text.mlp_hidden,
        "kv_channels": text.head_size,
        "layer_norm_epsilon": text.norm_eps,
        "max_position_embeddings": config.max_positions,
        "no_bias": True,
        "num_attention_heads": text.heads,
        "num_hidden_layers": text.layers,
        "onnx_safe": None,
        "rotary_emb_base": text.rope_theta,
        "rotary_pct": 1.0,
        "scale_attn_weights": True,
        "seq_length": text.beyond.trained_len,
        "tie_word_embeddings": config.tie_embeddings,
        "tokenizer_type": "QWenTokenizer",
        "torch_dtype": dtype_name(dtype),
        "use_cache": True,
        "use_dynamic_ntk": text.beyond.dynamic_ntk,
        "use_flash_attn": False,
        "use_logn_attn": text.beyond.logn,
        "visual": _visual_json(config),
        "vocab_size": config.vocab_size,
    }


def _vision(visual: Fields) -> VisionConfig:
    width = visual.size("width")
    return VisionConfig(
        width=width,
        layers=visual.size("layers"),
        heads=visual.size("heads"),
        mlp_hidden=int(width * visual.positive("mlp_ratio")),
        patch=visual.size("patch_size"),
        image_px=visual.size("image_size"),
        table_side=visual.size(TABLE_KEY, _TABLE_SIDE),
    )


def _adapter(visual: Fields, text_width: int) -> AdapterConfig:
    visual.expect("output_dim", text_width, "vision tokens have the width of the language model")
    queries = visual.size("n_queries", _QUERIES)
    heads = visual.size(HEADS_KEY, max(1, text_width // _HEAD_SIZE))
    return AdapterConfig(queries=queries, heads=heads)


def _mlp_ratio(vision: VisionConfig) -> float:
    """Rounded up to four digits, as released (4.9231), unless the reader, who rounds the product with the width down,
    would get another number from it (29 / 100 is 0.29, and 0.29 x 100 a little less than 29)."""
    ratio = math.ceil(vision.mlp_hidden / vision.width * 1e4) / 1e4
    if int(vision.width * ratio) == vision.mlp_hidden:
        return ratio
    return (vision.mlp_hidden + 0.5) / vision.width


def _visual_json(config: QwenVLConfig) -> dict[str, Any]:
    vision, adapter, width = config.vision, config.adapter, config.text.width
    data: dict[str, Any] = {
        "heads": vision.heads,
        "image_size": vision.image_px,
        "image_start_id": config.ids.image_start,
        "layers": vision.layers,
        "mlp_ratio": _mlp_ratio(vision),
        "output_dim": width,
        "patch_size": vision.patch,
        "width": vision.width,
    }
    if adapter.queries != _QUERIES:
        data["n_queries"] = adapter.queries
    if adapter.heads != max(1, width // _HEAD_SIZE):
        data[HEADS_KEY] = adapter.heads
    if vision.table_side != _TABLE_SIDE:
        data[TABLE_KEY] = vision.table_side
    return data
