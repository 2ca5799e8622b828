"""Sizes of Qwen2-VL: the three released ones and the small presets, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from qvl.layers.decoder import DecoderConfig


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower (paper section 2.1): ViT with 2-D RoPE, then a 2x2 merger into the text width.

    The defaults are the released tower's. The last four fields let a tower begin as an existing ViT and compute what
    that one computes (`qvl.checkpoint.vision_part`).
    """

    width: int = 1280
    """E."""
    layers: int = 32
    heads: int = 16
    mlp_hidden: int = 5120
    patch: int = 14
    temporal_patch: int = 2
    merge: int = 2
    channels: int = 3
    rope_theta: float = 10000.0
    rope: bool = True
    """Queries and keys turn with the patch's row and column."""
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    """Inside the blocks; `gelu` is the exact one."""
    table_side: int = 0
    """Side of a learned square table of positions, resized to each picture and added to its patches; 0 = none."""
    pre_norm: bool = False
    """A norm before the first block (CLIP's)."""

    @property
    def patch_values(self) -> int:
        """C: values in one patch row."""
        return self.channels * self.temporal_patch * self.patch**2


@dataclass(frozen=True)
class TokenIds:
    """Ids the model and its processor must agree on."""

    image_pad: int = 151655
    video_pad: int = 151656
    vision_start: int = 151652
    vision_end: int = 151653
    bos: int = 151643
    eos: int = 151645


@dataclass(frozen=True)
class Qwen2VLConfig:
    text: DecoderConfig
    vision: VisionConfig = VisionConfig()
    vocab_size: int = 151936
    tie_embeddings: bool = False
    max_positions: int = 32768
    ids: TokenIds = TokenIds()

    def __post_init__(self) -> None:
        if not self.vision.rope and not self.vision.table_side:
            raise ValueError(
                "a vision tower without rope needs a position table (table_side), or all places look alike"
            )
        if self.vision.width % self.vision.heads or (self.vision.width // self.vision.heads) % 4:
            raise ValueError(
                f"vision width {self.vision.width} over {self.vision.heads} heads gives a head size that 2-D RoPE "
                "cannot halve twice; choose a width that is a multiple of 4 x heads"
            )


_MROPE = (16, 24, 24)

PRESETS: dict[str, Qwen2VLConfig] = {
    "qwen2-vl-2b": Qwen2VLConfig(DecoderConfig(1536, 28, 12, 2, 128, 8960, rope_sections=_MROPE), tie_embeddings=True),
    "qwen2-vl-7b": Qwen2VLConfig(DecoderConfig(3584, 28, 28, 4, 128, 18944, rope_sections=_MROPE), vocab_size=152064),
    "qwen2-vl-72b": Qwen2VLConfig(DecoderConfig(8192, 80, 64, 8, 128, 29568, rope_sections=_MROPE), vocab_size=152064),
    # On a grid of 4 x 4 tokens the frequencies of the released models (theta 1e6) hardly turn: the small model could
    # not tell where a patch is. Row and column get the fast ones here, and the slow rest serves matching by content.
    "tiny": Qwen2VLConfig(
        DecoderConfig(192, 4, 4, 2, 48, 256, rope_theta=1000.0, rope_sections=(1, 2, 21)),
        VisionConfig(width=128, layers=4, heads=4, mlp_hidden=512),
        vocab_size=4096,
        tie_embeddings=True,
        max_positions=4096,
    ),
    # SmolLM2-135M and DINOv2 ViT-S/14: pretrained parts that come in packages (`qvl data parts`).
    "small": Qwen2VLConfig(
        DecoderConfig(576, 30, 9, 3, 64, 1536, norm_eps=1e-5, rope_theta=1e5, rope_sections=(8, 12, 12)),
        VisionConfig(384, 12, 6, 1536, rope=False, activation="gelu", table_side=37),
        vocab_size=49216,
        tie_embeddings=True,
        max_positions=8192,
    ),
}


def preset(name: str) -> Qwen2VLConfig:
    """A named configuration. Raises `ValueError` listing the names there are."""
    if name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_vocabulary(config: Qwen2VLConfig, vocab_size: int, ids: TokenIds) -> Qwen2VLConfig:
    """The same model over another vocabulary, its embedding rounded up to a multiple of 64 rows."""
    return replace(config, vocab_size=-(-vocab_size // 64) * 64, ids=ids)
