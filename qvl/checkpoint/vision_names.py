"""What DINOv2 and CLIP towers call their tensors, in each kind of file.

Knows: names. Does not know: files, what is done with the tensors (`vision_part`).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Names:
    """What a kind of file calls the pieces; prefixes of `weight` and `bias`, `{}` is a block's number."""

    patch: str
    positions: tuple[str, ...]
    """Full names; laid end to end they are the class token's position and those of the patches."""
    pre_norm: str
    post_norm: str
    attn_norm: str
    qkv: tuple[str, ...]
    out: str
    mlp_norm: str
    fc1: str
    fc2: str
    scales: tuple[str, str] | None = None
    """LayerScale of the two halves of a block, full names."""


_DINO_BLOCK = "encoder.layer.{}."
DINO = Names(
    patch="embeddings.patch_embeddings.projection.",
    positions=("embeddings.position_embeddings",),
    pre_norm="",
    post_norm="layernorm.",
    attn_norm=_DINO_BLOCK + "norm1.",
    qkv=tuple(f"{_DINO_BLOCK}attention.attention.{n}." for n in ("query", "key", "value")),
    out=_DINO_BLOCK + "attention.output.dense.",
    mlp_norm=_DINO_BLOCK + "norm2.",
    fc1=_DINO_BLOCK + "mlp.fc1.",
    fc2=_DINO_BLOCK + "mlp.fc2.",
    scales=(_DINO_BLOCK + "layer_scale1.lambda1", _DINO_BLOCK + "layer_scale2.lambda1"),
)
ONNX_POSITIONS = ("embeddings.Concat_6", "embeddings.Reshape_1")
"""The exporter took the table apart for its resizing; the two constants are named after their operations."""
_CLIP_BLOCK = "encoder.layers.{}."
CLIP = Names(
    patch="embeddings.patch_embedding.",
    positions=("embeddings.position_embedding.weight",),
    pre_norm="pre_layrnorm.",  # spelled so
    post_norm="post_layernorm.",
    attn_norm=_CLIP_BLOCK + "layer_norm1.",
    qkv=tuple(f"{_CLIP_BLOCK}self_attn.{n}_proj." for n in "qkv"),
    out=_CLIP_BLOCK + "self_attn.out_proj.",
    mlp_norm=_CLIP_BLOCK + "layer_norm2.",
    fc1=_CLIP_BLOCK + "mlp.fc1.",
    fc2=_CLIP_BLOCK + "mlp.fc2.",
)
_OPEN_BLOCK = "transformer.resblocks.{}."
OPEN_CLIP = Names(
    patch="conv1.",
    positions=("positional_embedding",),
    pre_norm="ln_pre.",
    post_norm="ln_post.",
    attn_norm=_OPEN_BLOCK + "ln_1.",
    qkv=(_OPEN_BLOCK + "attn.in_proj_",),
    out=_OPEN_BLOCK + "attn.out_proj.",
    mlp_norm=_OPEN_BLOCK + "ln_2.",
    fc1=_OPEN_BLOCK + "mlp.c_fc.",
    fc2=_OPEN_BLOCK + "mlp.c_proj.",
)
