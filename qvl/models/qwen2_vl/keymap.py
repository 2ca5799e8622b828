"""Official tensor names of Qwen2-VL and ours: one literal table, used in both directions.

Knows: the old names (`visual.*`, `model.*`, `lm_head.weight`), which the released safetensors hold and which we
write, and the new ones (`model.visual.*`, `model.language_model.*`), which transformers uses in memory.
Does not know: files, values.
"""

from __future__ import annotations

from qvl.models.keys import Entry, Part, Table, expand
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.model import Qwen2VL

HEAD = "lm_head.weight"
"""Absent from a checkpoint whose head is the embedding (2B)."""
EMBED = "model.embed_tokens.weight"
_GENERATIONS = (("model.visual.", "visual."), ("model.language_model.", "model."))
"""Prefixes, new and old."""
_PATCH_EMBED = "visual.patch_embed.proj.weight"

_VISION: Table = (
    ("visual.patch_embed.weight", (_PATCH_EMBED,)),
    ("visual.blocks.{}.attn_norm.weight", ("visual.blocks.{}.norm1.weight",)),
    ("visual.blocks.{}.attn_norm.bias", ("visual.blocks.{}.norm1.bias",)),
    ("visual.blocks.{}.qkv.weight", ("visual.blocks.{}.attn.qkv.weight",)),
    ("visual.blocks.{}.qkv.bias", ("visual.blocks.{}.attn.qkv.bias",)),
    ("visual.blocks.{}.out.weight", ("visual.blocks.{}.attn.proj.weight",)),
    ("visual.blocks.{}.out.bias", ("visual.blocks.{}.attn.proj.bias",)),
    ("visual.blocks.{}.mlp_norm.weight", ("visual.blocks.{}.norm2.weight",)),
    ("visual.blocks.{}.mlp_norm.bias", ("visual.blocks.{}.norm2.bias",)),
    ("visual.blocks.{}.fc1.weight", ("visual.blocks.{}.mlp.fc1.weight",)),
    ("visual.blocks.{}.fc1.bias", ("visual.blocks.{}.mlp.fc1.bias",)),
    ("visual.blocks.{}.fc2.weight", ("visual.blocks.{}.mlp.fc2.weight",)),
    ("visual.blocks.{}.fc2.bias", ("visual.blocks.{}.mlp.fc2.bias",)),
    ("visual.merger.norm.weight", ("visual.merger.ln_q.weight",)),
    ("visual.merger.norm.bias", ("visual.merger.ln_q.bias",)),
    ("visual.merger.fc1.weight", ("visual.merger.mlp.0.weight",)),
    ("visual.merger.fc1.bias", ("visual.merger.mlp.0.bias",)),
    ("visual.merger.fc2.weight", ("visual.merger.mlp.2.weight",)),
    ("visual.merger.fc2.bias", ("visual.merger.mlp.2.bias",)),
)
_TABLE: Table = (("visual.position_embed", ("visual.pos_embed.weight",)),)
_PRE_NORM: Table = (
    ("visual.pre_norm.weight", ("visual.ln_pre.weight",)),
    ("visual.pre_norm.bias", ("visual.ln_pre.bias",)),
)
"""Not in released towers: our own names for what `VisionConfig.table_side` and `pre_norm` add."""
_LAYER = "model.layers.{}."
_ATTN = _LAYER + "self_attn."
_TEXT: Table = (
    ("embed.weight", (EMBED,)),
    ("decoder.layers.{}.attn_norm.weight", (_LAYER + "input_layernorm.weight",)),
    (
        "decoder.layers.{}.qkv.weight",
        (_ATTN + "q_proj.weight", _ATTN + "k_proj.weight", _ATTN + "v_proj.weight"),
    ),
    ("decoder.layers.{}.qkv.bias", (_ATTN + "q_proj.bias", _ATTN + "k_proj.bias", _ATTN + "v_proj.bias")),
    ("decoder.layers.{}.out.weight", (_ATTN + "o_proj.weight",)),
    ("decoder.layers.{}.mlp_norm.weight", (_LAYER + "post_attention_layernorm.weight",)),
    (
        "decoder.layers.{}.mlp.gate_up.weight",
        (_LAYER + "mlp.gate_proj.weight", _LAYER + "mlp.up_proj.weight"),
    ),
    ("decoder.layers.{}.mlp.down.weight", (_LAYER + "mlp.down_proj.weight",)),
    ("decoder.norm.weight", ("model.norm.weight",)),
)
_UNTIED: Table = (("head.weight", (HEAD,)),)


def entries(model: Qwen2VL) -> tuple[Entry, ...]:
    """Every parameter of `model` (meta is enough) with the official tensors it is made of (730 in all for 7B).

    A tied head is the embedding, so it has no entry of its own.
    """
    config = model.config
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    rows = [*expand(_VISION, config.vision.layers), *_text_rows(config)]
    rows += _TABLE if config.vision.table_side else ()
    rows += _PRE_NORM if config.vision.pre_norm else ()
    assert {ours for ours, _ in rows} == set(shapes), "the table and the model's parameters differ"
    return tuple(Entry(ours, shapes[ours], _parts(config, shapes[ours], official)) for ours, official in rows)


def language_entries(model: Qwen2VL) -> tuple[Entry, ...]:
    """The language model's share of `entries`: the names are those of a Qwen2 (and of a Llama)."""
    wanted = {ours for ours, _ in _text_rows(model.config)}
    return tuple(entry for entry in entries(model) if entry.ours in wanted)


def _text_rows(config: Qwen2VLConfig) -> list[tuple[str, tuple[str, ...]]]:
    return [*expand(_TEXT, config.text.layers), *(() if config.tie_embeddings else _UNTIED)]


def old_name(name: str) -> str:
    """The old spelling of an official tensor name of either generation.

    `model.visual.x` -> `visual.x`, `model.language_model.x` -> `model.x`; an old name stays as it is.
    """
    for new, old in _GENERATIONS:
        if name.startswith(new):
            return old + name.removeprefix(new)
    return name


def new_name(name: str) -> str:
    """The new spelling of an old name: what the module or tensor is called in transformers' memory."""
    for new, old in _GENERATIONS:
        if name.startswith(old):
            return new + name.removeprefix(old)
    return name


def _parts(config: Qwen2VLConfig, shape: tuple[int, ...], official: tuple[str, ...]) -> tuple[Part, ...]:
    if official == (_PATCH_EMBED,):
        v = config.vision
        return (Part(_PATCH_EMBED, (v.width, v.channels, v.temporal_patch, v.patch, v.patch)),)
    if len(official) == 3:
        t = config.text
        rows = tuple(heads * t.head_size for heads in (t.heads, t.kv_heads, t.kv_heads))
    else:
        rows = (shape[0] // len(official),) * len(official)
    return tuple(Part(name, (n, *shape[1:])) for name, n in zip(official, rows, strict=True))
