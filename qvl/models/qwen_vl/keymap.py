"""Official tensor names of Qwen-VL and ours: one literal table, used in both directions.

Knows: the names of the released checkpoint (`transformer.*`, `transformer.visual.*`, `lm_head.weight`), and OpenCLIP's
for the vision tower, which Qwen-VL started from.
Does not know: files, values.
"""

from __future__ import annotations

from qvl.models.keys import Entry, Part, Table, expand, stored_tensors
from qvl.models.qwen_vl.config import QwenVLConfig
from qvl.models.qwen_vl.model import QwenVL

HEAD = "lm_head.weight"
EMBED = "transformer.wte.weight"
CLIP_POSITIONS = "visual.positional_embedding"
"""In OpenCLIP's file its first row is the class token's, which the model does not have."""

_TOWER: Table = (
    ("patch_embed.weight", ("conv1.weight",)),
    ("position_embed", ("positional_embedding",)),
    ("pre_norm.weight", ("ln_pre.weight",)),
    ("pre_norm.bias", ("ln_pre.bias",)),
    ("blocks.{}.attn_norm.weight", ("transformer.resblocks.{}.ln_1.weight",)),
    ("blocks.{}.attn_norm.bias", ("transformer.resblocks.{}.ln_1.bias",)),
    ("blocks.{}.qkv.weight", ("transformer.resblocks.{}.attn.in_proj.weight",)),
    ("blocks.{}.qkv.bias", ("transformer.resblocks.{}.attn.in_proj.bias",)),
    ("blocks.{}.out.weight", ("transformer.resblocks.{}.attn.out_proj.weight",)),
    ("blocks.{}.out.bias", ("transformer.resblocks.{}.attn.out_proj.bias",)),
    ("blocks.{}.mlp_norm.weight", ("transformer.resblocks.{}.ln_2.weight",)),
    ("blocks.{}.mlp_norm.bias", ("transformer.resblocks.{}.ln_2.bias",)),
    ("blocks.{}.fc1.weight", ("transformer.resblocks.{}.mlp.c_fc.weight",)),
    ("blocks.{}.fc1.bias", ("transformer.resblocks.{}.mlp.c_fc.bias",)),
    ("blocks.{}.fc2.weight", ("transformer.resblocks.{}.mlp.c_proj.weight",)),
    ("blocks.{}.fc2.bias", ("transformer.resblocks.{}.mlp.c_proj.bias",)),
)
_ADAPTER: Table = (
    ("adapter.query", ("attn_pool.query",)),
    ("adapter.places_QD", ("attn_pool.pos_embed",)),
    ("adapter.query_norm.weight", ("attn_pool.ln_q.weight",)),
    ("adapter.query_norm.bias", ("attn_pool.ln_q.bias",)),
    ("adapter.kv_proj.weight", ("attn_pool.kv_proj.weight",)),
    ("adapter.kv_norm.weight", ("attn_pool.ln_kv.weight",)),
    ("adapter.kv_norm.bias", ("attn_pool.ln_kv.bias",)),
    ("adapter.qkv.weight", ("attn_pool.attn.in_proj_weight",)),
    ("adapter.qkv.bias", ("attn_pool.attn.in_proj_bias",)),
    ("adapter.out.weight", ("attn_pool.attn.out_proj.weight",)),
    ("adapter.out.bias", ("attn_pool.attn.out_proj.bias",)),
    ("adapter.post_norm.weight", ("ln_post.weight",)),
    ("adapter.post_norm.bias", ("ln_post.bias",)),
    ("adapter.proj.weight", ("proj",)),
)
_TEXT: Table = (
    ("embed.weight", (EMBED,)),
    ("decoder.layers.{}.attn_norm.weight", ("transformer.h.{}.ln_1.weight",)),
    ("decoder.layers.{}.qkv.weight", ("transformer.h.{}.attn.c_attn.weight",)),
    ("decoder.layers.{}.qkv.bias", ("transformer.h.{}.attn.c_attn.bias",)),
    ("decoder.layers.{}.out.weight", ("transformer.h.{}.attn.c_proj.weight",)),
    ("decoder.layers.{}.mlp_norm.weight", ("transformer.h.{}.ln_2.weight",)),
    # The reference computes w1(x) * silu(w2(x)): its second matrix is the gate.
    ("decoder.layers.{}.mlp.gate_up.weight", ("transformer.h.{}.mlp.w2.weight", "transformer.h.{}.mlp.w1.weight")),
    ("decoder.layers.{}.mlp.down.weight", ("transformer.h.{}.mlp.c_proj.weight",)),
    ("decoder.norm.weight", ("transformer.ln_f.weight",)),
)
_UNTIED: Table = (("head.weight", (HEAD,)),)


def entries(model: QwenVL) -> tuple[Entry, ...]:
    """Every stored tensor of `model` (meta is enough) with the official tensors it is made of (853 in all).

    A tied head is the embedding, so it has no entry of its own.
    """
    found = (*_tower_entries(model, "transformer.visual."), *language_entries(model))
    assert {entry.ours for entry in found} == set(stored_tensors(model)), "the table and the model's tensors differ"
    return found


def language_entries(model: QwenVL) -> tuple[Entry, ...]:
    """The language model's half: what a Qwen-7B checkpoint holds, under the same names."""
    rows = [*expand(_TEXT, model.config.text.layers), *(() if model.config.tie_embeddings else _UNTIED)]
    return _entries(model, rows)


def clip_entries(model: QwenVL) -> tuple[Entry, ...]:
    """The vision tower without the adapter, in terms of an OpenCLIP checkpoint, whose positions have one row more."""
    rows = [("visual." + ours, tuple("visual." + _clip_name(n) for n in names)) for ours, names in _tower_rows(model)]
    return _entries(model, rows)


def old_name(name: str) -> str:
    """There is only one generation of names."""
    return name


def new_name(name: str) -> str:
    """As `old_name`."""
    return name


def _tower_entries(model: QwenVL, prefix: str) -> tuple[Entry, ...]:
    rows = [*_tower_rows(model), *_ADAPTER]
    if model.config.vision.width == model.config.text.width:
        rows = [row for row in rows if row[0] != "adapter.kv_proj.weight"]
    return _entries(model, [("visual." + ours, tuple(prefix + name for name in names)) for ours, names in rows])


def _tower_rows(model: QwenVL) -> list[tuple[str, tuple[str, ...]]]:
    return list(expand(_TOWER, model.config.vision.layers))


def _clip_name(name: str) -> str:
    """OpenCLIP uses torch's attention, whose projection is one parameter: `in_proj_weight`, all q over all k over v."""
    return name.replace("in_proj.", "in_proj_")


def _entries(model: QwenVL, rows: list[tuple[str, tuple[str, ...]]]) -> tuple[Entry, ...]:
    shapes = {name: tuple(tensor.shape) for name, tensor in stored_tensors(model).items()}
    return tuple(Entry(ours, shapes[ours], _parts(model.config, shapes[ours], names)) for ours, names in rows)


def _parts(config: QwenVLConfig, shape: tuple[int, ...], names: tuple[str, ...]) -> tuple[Part, ...]:
    name, vision = names[0], config.vision
    if name.endswith("conv1.weight"):
        return (Part(name, (vision.width, vision.channels, vision.patch, vision.patch)),)
    if name.endswith((".in_proj.weight", ".in_proj.bias")):
        return (Part(name, shape, "per_head", vision.heads),)
    if name.endswith("visual.proj"):
        return (Part(name, shape[::-1], "transposed"),)
    return tuple(Part(n, (shape[0] // len(names), *shape[1:])) for n in names)
