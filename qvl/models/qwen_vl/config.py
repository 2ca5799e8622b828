"""Sizes of Qwen-VL (first generation): the released one and a small preset, as frozen data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isqrt

from qvl.layers.decoder import BeyondTraining, DecoderConfig


@dataclass(frozen=True)
class VisionConfig:
    """The vision tower: OpenCLIP's ViT-bigG/14 without its class token and without its last norm."""

    width: int = 1664
    """E."""
    layers: int = 48
    heads: int = 16
    mlp_hidden: int = 8192
    patch: int = 14
    channels: int = 3
    image_px: int = 448
    """Side that pictures are resized to (stage 1 of the paper: 224). The model takes any grid all the same."""
    table_side: int = 16
    """Side of the learned table of positions, which is resized to a picture's grid."""

    @property
    def patch_values(self) -> int:
        """C: values in one patch row."""
        return self.channels * self.patch**2


@dataclass(frozen=True)
class AdapterConfig:
    """The position-aware adapter: learned queries that attend to a picture's patches."""

    queries: int = 256
    """Q: vision tokens of every picture, whatever its size."""
    heads: int = 32

    @property
    def side(self) -> int:
        """The queries stand on a square grid of this side."""
        return isqrt(self.queries)


@dataclass(frozen=True)
class TokenIds:
    """Ids the model and its processor must agree on."""

    image_start: int = 151857
    bos: int = 151643
    """`<|endoftext|>`: also the end and the padding."""
    eos: int = 151643

    @property
    def image_end(self) -> int:
        """The official code counts on: `</img>` follows `<img>`, `<imgpad>` follows `</img>`."""
        return self.image_start + 1

    @property
    def image_pad(self) -> int:
        return self.image_start + 2


@dataclass(frozen=True)
class QwenVLConfig:
    text: DecoderConfig
    vision: VisionConfig = VisionConfig()
    adapter: AdapterConfig = AdapterConfig()
    vocab_size: int = 151936
    tie_embeddings: bool = False
    max_positions: int = 8192
    ids: TokenIds = TokenIds()

    def __post_init__(self) -> None:
        queries, side = self.adapter.queries, self.adapter.side
        if queries < 1 or side**2 != queries:
            raise ValueError(
                f"{queries} queries do not stand on a square grid; choose a square such as 64, 144, 256 or 400"
            )
        if self.text.width % 4 or self.text.width % self.adapter.heads:
            raise ValueError(
                f"text width {self.text.width} must be a multiple of 4 (sine and cosine of two axes) and of the "
                f"adapter's {self.adapter.heads} heads"
            )
        if self.vision.width % self.vision.heads:
            raise ValueError(f"vision width {self.vision.width} is not a multiple of its {self.vision.heads} heads")
        if self.text.rope_sections:
            raise ValueError(f"Qwen-VL has one rope axis, got rope_sections {self.text.rope_sections}")


def _qwen(width: int, layers: int, heads: int, mlp_hidden: int) -> DecoderConfig:
    return DecoderConfig(
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        head_size=width // heads,
        mlp_hidden=mlp_hidden,
        rope_theta=10000.0,
        rope_float32=True,
        beyond=BeyondTraining(),
    )


PRESETS: dict[str, QwenVLConfig] = {
    "qwen-vl": QwenVLConfig(_qwen(4096, 32, 32, 11008)),
    "tiny-qwen-vl": QwenVLConfig(
        _qwen(192, 4, 4, 256),
        VisionConfig(width=128, layers=4, heads=4, mlp_hidden=512, image_px=112, table_side=8),
        AdapterConfig(queries=16, heads=4),
        vocab_size=4096,
        tie_embeddings=True,
        max_positions=4096,
    ),
}


def with_vocabulary(config: QwenVLConfig, vocab_size: int, ids: TokenIds) -> QwenVLConfig:
    """The same model over another vocabulary, its embedding rounded up to a multiple of 64 rows."""
    return replace(config, vocab_size=-(-vocab_size // 64) * 64, ids=ids)


def with_image_size(config: QwenVLConfig, image_px: int, queries: int) -> QwenVLConfig:
    """The same model for pictures of another size and another number of vision tokens per picture.

    Raises:
        ValueError: `image_px` is no multiple of the patch size, or `queries` no square.
    """
    if image_px < 1 or image_px % config.vision.patch:
        raise ValueError(f"an image side of {image_px} pixels is not a multiple of the patch's {config.vision.patch}")
    return replace(
        config,
        vision=replace(config.vision, image_px=image_px),
        adapter=replace(config.adapter, queries=queries),
    )
