"""What a world is made of: one frozen object that, with a split, a seed and an index, fixes every sample."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Split = Literal["train", "dev", "test"]
Style = Literal["pretrain", "chat"]
Medium = Literal["pixels", "words", "both"]

SIZES = (
    (112, 112),
    (84, 84),
    (140, 140),
    (84, 112),
    (112, 84),
    (112, 140),
    (140, 112),
    (84, 168),
    (168, 84),
    (112, 168),
    (168, 112),
    (140, 168),
)
"""(height, width) in pixels, multiples of 28 so that Qwen2-VL's resize leaves the pixels alone."""

QUESTION_WEIGHTS: Mapping[str, float] = {
    "caption": 2.0,
    "caption_grounded": 1.0,
    "grounding": 2.0,
    "referring": 1.0,
    "box_to_name": 1.0,
    "what": 1.5,
    "count": 0.7,
    "exists": 1.0,
    "background": 0.5,
    "left_right": 1.0,
    "above_below": 1.0,
    "where": 1.0,
    "bigger": 0.5,
}


@dataclass(frozen=True)
class WorldConfig:
    """The embedded world.

    Raises:
        ValueError: a value out of its range (the message gives the range).
    """

    concepts: int = 112
    """How many of the default objects exist; at least the square of the most objects a scene can hold."""
    seed: int = 0
    sizes: tuple[tuple[int, int], ...] = SIZES
    """Scene sizes to choose from, (height, width) in pixels."""
    any_size: bool = False
    """Draw any size and aspect ratio (to 1:3) with an area between the smallest and the largest of `sizes`."""
    objects: tuple[float, ...] = (0.35, 0.35, 0.30)
    """Probability of 1, 2, 3 ... objects in a scene."""
    object_size: tuple[float, float] = (0.28, 0.6)
    """Longest side of an object relative to the scene's short side; scenes of several objects use the lower part."""
    max_overlap: float = 0.05
    """Largest part of an object's box that another object's box may cover."""
    gradients: float = 0.5
    """Share of backgrounds that are gradients (of one named colour), the rest is plain."""
    photos: tuple[str, ...] = ()
    """Photographs (paths) to use as backgrounds as well."""
    photo_share: float = 0.0
    repeats: float = 0.1
    """Share of scenes that show one concept several times (only they can ask "how many times ...")."""
    zh: float = 0.23
    """Share of Chinese samples; 0.23 is that of Qwen-VL's first stage."""
    tasks: Mapping[str, float] = field(default_factory=lambda: dict(QUESTION_WEIGHTS))
    """Weights of the tasks (`World.tasks` lists them)."""
    turns: int = 6
    """Questions about one training picture; evaluation samples ask one."""
    style: Style = "pretrain"
    """`pretrain`: Qwen-VL's stage-2 formats ("... Answer:" -> " dog"); `chat`: plain questions and answers."""

    medium: Medium = "pixels"
    """`words`: scenes are grids of words, one where a vision token would be (28 x 28 pixels), English in every
    language. `both`: the picture and behind it its grid of words. Only for training, and only for questions about
    scenes and `ocr` (`words`: `compare` and `text` too)."""

    words_side: int = 0
    """Words a side of a told grid, whatever the scene's size (0: see `medium`). A recipe's `queries` sets it."""

    text_lines: int = 3
    """Most lines of text in a picture of `ocr`."""
    text_size: tuple[float, float] = (0.0, 0.25)
    """Size of its font relative to the picture's height (at least 12 pixels)."""
    chinese_font: str = ""
    """Path of a font with Chinese characters for OCR pictures (`ocr.find_chinese_font` looks for one); without it,
    rendered text is English only."""
    video_frames: tuple[int, ...] = (4, 6, 8)
    """Lengths of clips, even because the patch embedding takes frames in twos."""

    def __post_init__(self):
        if not self.sizes or any(min(hw) < 56 for hw in self.sizes):
            raise ValueError(f"sizes must be (height, width) of at least 56 pixels, got {self.sizes}")
        if not self.objects or min(self.objects) < 0 or sum(self.objects) <= 0:
            raise ValueError(f"objects must be weights of 1, 2, 3 ... objects, not all zero, got {self.objects}")
        least = max(3, len(self.objects)) ** 2
        if self.concepts < least:
            raise ValueError(
                f"concepts must be at least {least} so that pairs can be held out with up to {len(self.objects)} "
                f"objects in a scene, got {self.concepts}"
            )
        low, high = self.object_size
        if not 0.1 <= low <= high <= 0.9:
            raise ValueError(f"object_size must be 0.1 <= low <= high <= 0.9, got {self.object_size}")
        low, high = self.text_size
        if not 0 <= low <= high <= 0.9 or self.text_lines < 1:
            raise ValueError(
                f"text_size must be 0 <= low <= high <= 0.9 and text_lines at least 1, got {self.text_size} and "
                f"{self.text_lines}"
            )
        for name in ("max_overlap", "gradients", "photo_share", "repeats", "zh"):
            value = vars(self)[name]
            if not 0 <= value <= 1:
                raise ValueError(f"{name} must lie between 0 and 1, got {value}")
        if self.photo_share and not self.photos:
            raise ValueError(f"photo_share is {self.photo_share} but photos is empty; give paths of photographs")
        if self.turns < 1:
            raise ValueError(f"turns must be at least 1, got {self.turns}")
        if self.words_side < 0:
            raise ValueError(f"words_side must not be negative, got {self.words_side}")
        if self.style not in get_args(Style):
            raise ValueError(f"style must be one of {', '.join(get_args(Style))}, got {self.style!r}")
        if self.medium not in get_args(Medium):
            raise ValueError(f"medium must be one of {', '.join(get_args(Medium))}, got {self.medium!r}")
        if not self.video_frames or any(n < 4 or n % 2 for n in self.video_frames):
            raise ValueError(f"video_frames must be even numbers of at least 4, got {self.video_frames}")
        if not self.tasks or min(self.tasks.values()) < 0 or sum(self.tasks.values()) <= 0:
            raise ValueError(f"tasks must be weights, not all zero, got {dict(self.tasks)}")
