"""What a run begins with when its recipe names pretrained parts.

Knows: how parts, their vocabulary and a preset make one model. Does not know: files' formats (`qvl.checkpoint`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from qvl.checkpoint.gguf import GGUF
from qvl.checkpoint.language_part import LanguagePart, fill_language, read_language_part
from qvl.checkpoint.parts import load_clip_vision, load_language_model
from qvl.checkpoint.vision_part import VisionPart, fill_vision, read_vision_part
from qvl.media.resize import Geometry
from qvl.models import fresh
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.qwen2_vl.vit import Merger
from qvl.models.qwen_vl.model import QwenVL
from qvl.packages import PACKAGES, packaged
from qvl.text.adopted import Adopted, adopt_folder, adopt_pieces
from qvl.train.config import PartsConfig

_SPECIAL = 3
"""`tokenizer.ggml.token_type` of control tokens."""


@final
@dataclass(frozen=True)
class Start:
    """The parts of a Qwen2-VL, not read yet (sizes are)."""

    language: LanguagePart | None
    vision: VisionPart | None
    vocabulary: Adopted | None
    """The language model's, with Qwen2-VL's special tokens."""

    @classmethod
    def of(cls, parts: PartsConfig) -> Start:
        """Finds the parts that a recipe names.

        Raises:
            FileNotFoundError: a part is not there; the message says how to fetch it.
            ValueError: a part is of a kind that is not read.
        """
        sections = parts.rope_sections or None
        language = read_language_part(_path(parts.language), sections) if parts.language else None
        vision = read_vision_part(_path(parts.vision)) if parts.vision else None
        return cls(language, vision, _vocabulary(_path(parts.language)) if language else None)

    def fitted(self, sizes: Qwen2VLConfig) -> Qwen2VLConfig:
        """`sizes` with those of the parts in their place. The vocabulary is the caller's business."""
        if self.language is not None:
            sizes = replace(
                sizes,
                text=self.language.config,
                tie_embeddings=self.language.tie_embeddings,
                max_positions=self.language.max_positions,
            )
        return sizes if self.vision is None else replace(sizes, vision=self.vision.config)

    def fill(self, model: Qwen2VL, seed: int) -> None:
        """Copies the parts into a freshly initialised model, whose merger then begins in the scale of their words."""
        if self.language is not None and self.vocabulary is not None:
            fill_language(model, self.language, self.vocabulary.rows, seed)
        if self.vision is not None:
            fill_vision(model, self.vision)
        if self.language is not None:
            merger = model.visual.merger
            assert isinstance(merger, Merger)
            fresh.begin_as_long_as_words(merger, model.embed.weight, seed)

    def geometry(self, model: Qwen2VLConfig) -> Geometry:
        """How pictures are cut up, and the mean and deviation of pixels that the vision tower was trained with."""
        plain = Geometry(patch=model.vision.patch, merge=model.vision.merge, temporal=model.vision.temporal_patch)
        return plain if self.vision is None else replace(plain, mean=self.vision.mean, std=self.vision.std)


def fill_qwen_vl(model: QwenVL, parts: PartsConfig) -> None:
    """Copies the parts of a Qwen-VL into a freshly initialised one. They have its sizes, and its vocabulary.

    Raises:
        FileNotFoundError: a part is not there.
        ValueError: a part is damaged, or of other sizes, or one for a Qwen2-VL.
    """
    for part in (parts.language, parts.vision):
        if part in PACKAGES:
            raise ValueError(
                f"{part} is a part of a Qwen2-VL, but the recipe's model is a Qwen-VL; name another model, or a "
                "Qwen-7B folder (parts.language) and a file of OpenCLIP's ViT-bigG/14 (parts.vision)"
            )
    if parts.language:
        load_language_model(model, parts.language)
    if parts.vision:
        load_clip_vision(model, parts.vision)


def _path(part: str) -> Path:
    if part in PACKAGES:
        return packaged(part)
    path = Path(part).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no part {part!r}: neither a file or folder, nor one of: {', '.join(PACKAGES)}"
        )
    return path


def _vocabulary(path: Path) -> Adopted:
    if path.is_dir():
        return adopt_folder(path)
    file = GGUF(path)
    if file.field("tokenizer.ggml.model") != "gpt2":
        raise ValueError(
            f"{path}: its vocabulary is {file.field('tokenizer.ggml.model')!r}, only byte-level BPE ('gpt2') is read"
        )
    tokens = file.field("tokenizer.ggml.tokens")
    specials = [i for i, kind in enumerate(file.field("tokenizer.ggml.token_type")) if kind == _SPECIAL]
    words = file.fields.get("tokenizer.ggml.pre", "gpt-2")
    return adopt_pieces(tokens, file.field("tokenizer.ggml.merges"), specials, words)
