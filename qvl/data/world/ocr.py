"""Rendered lines of text with exact quads.

Knows: drawing and turning text, where its corners are.
Does not know: concepts' pictures. Lines are held out by a hash of their text.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image as PillowImage
from PIL import ImageDraw, ImageFont

from qvl.data.world.compose import Composer
from qvl.data.world.config import Split
from qvl.data.world.questions import Asker, Turn
from qvl.data.world.story import Activity, Story
from qvl.data.world.told import grid_hw
from qvl.text.grounding import Coordinates, quad, ref
from qvl.text.messages import Image, Part, WordPicture

MAX_DEGREES = 12.0
LEAST_PX = 12
"""Of a font: smaller ones are not readable."""
INK_THRESHOLD = 64
"""A pixel is ink when its coverage is above this (of 255)."""
_IS_INK = tuple(255 * (v > INK_THRESHOLD) for v in range(256))
_TRIES = 60
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of text in a picture; corners (x, y) in pixels: start top, end top, end bottom, start bottom."""

    text: str
    quad_px: tuple[Point, Point, Point, Point]


@final
class Ocr(Activity):
    """ "OCR with grounding" (Qwen-VL's seventh format) and reading without places."""

    name = "ocr"

    def play(self, split: Split, composer: Composer, asker: Asker, wanted: int) -> Story | None:
        config = composer.config
        hw = composer.draw_size(asker.rng)
        pixels, background = composer.background(hw, asker.rng)
        lines: list[Line] = []
        taken = np.zeros(hw, dtype=bool)
        for _ in range(1 + int(asker.rng.integers(config.text_lines))):
            line = _add_line(pixels, taken, split, composer, asker)
            if line is not None:
                lines.append(line)
        if not lines:
            return None
        lines.sort(key=lambda line: min(y for _, y in line.quad_px))
        truth = {"lines": [{"text": line.text, "quad_px": line.quad_px} for line in lines]}
        turns = (_with_places(lines, hw, asker, truth), _plain(lines, asker, truth))
        meta = {"hw": hw, "names": [], "boxes_px": [], "background": background, **truth}
        if wanted == 1:
            turns = (turns[int(asker.rng.integers(2))],)
        shown: list[Part] = [Image(pixels)] if config.medium != "words" else []
        if config.medium != "pixels":
            told = in_words(lines, hw, background, config.words_side)
            if told is None:
                return None
            shown.append(told)
        return Story(turns, tuple(shown), "", meta)


def find_chinese_font() -> str:
    """Path of a Chinese font from an installed font package, or "" if there is none.

    Set it as `WorldConfig.chinese_font`; the config names it so that a sample stays a function of the config.
    """
    for package in ("pylopdf_fonts_zh_cn",):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in sorted(Path(folder).rglob("*")):
                if path.suffix.lower() in (".otf", ".ttf", ".ttc"):
                    return str(path)
    return ""


def split_of_line(text: str) -> Split:
    """One line in 20 belongs to dev, another one to test."""
    bucket = hashlib.sha256(f"line {text}".encode()).digest()[0] % 20
    return "dev" if bucket == 0 else "test" if bucket == 1 else "train"


def line_quad(hw_px: tuple[float, float], degrees: float, centre: Point) -> tuple[Point, Point, Point, Point]:
    """Corners of a (height, width) rectangle turned counter-clockwise about its centre; y points down."""
    turn = np.deg2rad(degrees)
    height, width = hw_px
    corners = []
    for dx, dy in ((-width, -height), (width, -height), (width, height), (-width, height)):
        x = centre[0] + (dx * np.cos(turn) + dy * np.sin(turn)) / 2
        y = centre[1] + (-dx * np.sin(turn) + dy * np.cos(turn)) / 2
        corners.append((round(float(x), 2), round(float(y), 2)))
    return corners[0], corners[1], corners[2], corners[3]


def in_words(lines: Sequence[Line], hw: tuple[int, int], background: str, side: int = 0) -> WordPicture | None:
    """The picture as a grid, as `told.in_words` tells scenes: cells under a name hold the name, those under a digit the
    digit, in one column: two beside each other are two digits.

    A written word so looks to the language model like the thing itself.

    Returns:
        None where digits are so small that two share a cell: read from the grid, the number would be another one.
    """
    rows, columns = grid_hw(hw, side)
    words = np.full((rows, columns), background, dtype=object)
    cell_yx = np.asarray((hw[0] / rows, hw[1] / columns))
    middles_yx = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, indexing="ij")
    middles_RC2 = np.stack(middles_yx, axis=-1) * cell_yx
    own: dict[tuple[int, int], str] = {}
    for line in lines:
        name = line.text.rstrip("0123456789 ")
        first_yx, along_yx, down_yx = _axes(line)
        # How far along the line and down its height a middle is, as shares of both.
        shares_RC2 = (middles_RC2 - first_yx) @ np.linalg.inv(np.stack((along_yx, down_yx)))
        under_RC = np.all((shares_RC2 >= 0) & (shares_RC2 < 1), axis=-1)
        if name:
            words[under_RC & (shares_RC2[..., 0] < len(name) / len(line.text))] = name
        for place, letter in enumerate(line.text):
            if letter == " ":
                continue
            y, x = (first_yx + down_yx / 2 + along_yx * (place + 0.5) / len(line.text)) / cell_yx
            cell = min(rows - 1, int(y)), min(columns - 1, int(x))
            if place < len(name):
                own.setdefault(cell, name)
                continue
            if cell in own:
                return None
            own[cell] = letter
            words[under_RC[:, cell[1]], cell[1]] = letter
    for cell, word in own.items():
        words[cell] = word
    return WordPicture(tuple(map(tuple, words)))


def _axes(line: Line) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Where the line's first corner is, and the way from there to its end and to its bottom; each (y, x)."""
    quad_42 = np.asarray(line.quad_px)[:, ::-1]
    return quad_42[0], quad_42[1] - quad_42[0], quad_42[3] - quad_42[0]


def _with_places(lines: list[Line], hw: tuple[int, int], asker: Asker, about: dict) -> Turn:
    answer = asker.answer("".join(ref(line.text) + quad(_quad_1000(line, hw)) for line in lines))
    return Turn("ocr", asker.prompt("ocr"), answer, {**about, "grounded": True})


def _plain(lines: list[Line], asker: Asker, about: dict) -> Turn:
    answer = asker.answer(" ".join(line.text for line in lines))
    return Turn("ocr", asker.question(asker.say("ocr_plain")), answer, {**about, "grounded": False})


def _quad_1000(line: Line, hw: tuple[int, int]) -> list[tuple[int, int]]:
    coordinates = Coordinates(hw, hw)
    return [coordinates.box_px_to_1000((x, y, x, y))[:2] for x, y in line.quad_px]


def _words(split: Split, composer: Composer, asker: Asker, chinese: bool) -> str:
    while True:
        kind = int(asker.rng.integers(3))
        concept = composer.concepts[int(asker.rng.integers(len(composer.concepts)))]
        word = concept.zh if chinese else concept.en
        number = str(int(asker.rng.integers(10 ** int(asker.rng.integers(1, 5)))))
        text = (number, word, f"{word}{'' if chinese else ' '}{number}")[kind]
        if split_of_line(text) == split:
            return text


def _add_line(pixels: np.ndarray, taken: np.ndarray, split: Split, composer: Composer, asker: Asker) -> Line | None:
    """Draws one line where nothing stands yet; None if it found no room."""
    height, width = taken.shape
    rng, (low, high) = asker.rng, composer.config.text_size
    chinese = asker.language == "zh" and bool(composer.config.chinese_font)
    for _ in range(_TRIES):
        text = _words(split, composer, asker, chinese)
        least_px = max(LEAST_PX, int(low * height))
        size_px = int(rng.integers(least_px, max(least_px + 1, int(high * height))))
        ink = _ink(text, _font(composer.config.chinese_font if chinese else "", size_px))
        degrees = float(rng.uniform(-MAX_DEGREES, MAX_DEGREES)) if rng.random() < 0.5 else 0.0
        corners = line_quad((ink.height, ink.width), degrees, (0.0, 0.0))
        half_w = max(ink.width / 2, *(x for x, _ in corners)) + 1
        half_h = max(ink.height / 2, *(y for _, y in corners)) + 1
        if 2 * half_w > width or 2 * half_h > height:
            continue
        left = round(rng.uniform(half_w, width - half_w) - ink.width / 2)
        top = round(rng.uniform(half_h, height - half_h) - ink.height / 2)
        centre = left + ink.width / 2, top + ink.height / 2
        x1, y1 = max(0, int(centre[0] - half_w)), max(0, int(centre[1] - half_h))
        x2, y2 = int(np.ceil(centre[0] + half_w)), int(np.ceil(centre[1] + half_h))
        if taken[y1:y2, x1:x2].any():
            continue
        taken[y1:y2, x1:x2] = True
        _draw(pixels[y1:y2, x1:x2], ink, (left - x1, top - y1), degrees)
        return Line(text, line_quad((ink.height, ink.width), degrees, centre))
    return None


def _ink(text: str, font: ImageFont.FreeTypeFont) -> PillowImage.Image:
    """The text in white on black (mode L), cropped to its ink: a font's own box includes side bearings."""
    _, _, right, bottom = font.getbbox(text)
    mask = PillowImage.new("L", (int(right) + 16, int(bottom) + 16))
    ImageDraw.Draw(mask).text((8, 8), text, fill=255, font=font)
    return mask.crop(mask.point(_IS_INK).getbbox())


def _draw(region_HW3: np.ndarray, ink: PillowImage.Image, left_top: tuple[int, int], degrees: float) -> None:
    """Draws the ink into its region of the picture, turned about its own centre, dark on light or light on dark."""
    height, width = region_HW3.shape[:2]
    mask = PillowImage.new("L", (width, height))
    mask.paste(ink, left_top)
    if degrees:
        centre = left_top[0] + ink.width / 2, left_top[1] + ink.height / 2
        mask = mask.rotate(degrees, PillowImage.Resampling.BICUBIC, center=centre)
    alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255
    tone = 20.0 if region_HW3.mean() > 110 else 240.0
    region_HW3[...] = (region_HW3 * (1 - alpha) + tone * alpha + 0.5).astype(np.uint8)


@lru_cache(maxsize=256)
def _font(path: str, size_px: int) -> ImageFont.FreeTypeFont:
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"chinese_font {path} is not there; ocr.find_chinese_font() looks for one")
    font = ImageFont.truetype(path, size_px) if path else ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise ValueError("this Pillow was built without FreeType and cannot draw text of any size; install its wheel")
    return font
