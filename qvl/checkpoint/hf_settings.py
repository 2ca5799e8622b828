"""The two small files beside the weights: `generation_config.json` and `preprocessor_config.json`.

Knows: their keys, in the spellings of transformers 4 and 5. Does not know: how sampling or resizing is done.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from qvl.checkpoint.jsonfile import Fields
from qvl.media.resize import Geometry, PixelBudget

GENERATION_FILE = "generation_config.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
_PROCESSOR_FILE = "processor_config.json"
_BICUBIC = 3
_RESCALE = 1 / 255


class EndIds(Protocol):
    """What is needed of any family's token ids."""

    @property
    def bos(self) -> int: ...

    @property
    def eos(self) -> int: ...


@dataclass(frozen=True)
class GenerationDefaults:
    """How a model wants to be sampled. The defaults are greedy."""

    stop_ids: tuple[int, ...]
    """Ids that end a reply (`eos_token_id`)."""
    pad_id: int
    bos_id: int
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = off. A file without the key means 50 (transformers' default) when `do_sample` is true."""
    repetition_penalty: float = 1.0

    @classmethod
    def of(cls, ids: EndIds) -> GenerationDefaults:
        """Greedy, ending at `<|endoftext|>` (which also serves as padding, as released) or, Qwen2-VL, `<|im_end|>`."""
        return cls(stop_ids=tuple(dict.fromkeys((ids.eos, ids.bos))), pad_id=ids.bos, bos_id=ids.bos)


def read_generation(path: Path, ids: EndIds) -> GenerationDefaults:
    """`generation_config.json` of folder `path`; without the file, `GenerationDefaults.of(ids)`."""
    file = path / GENERATION_FILE
    if not file.exists():
        return GenerationDefaults.of(ids)
    fields = Fields.read(file)
    plain = GenerationDefaults.of(ids)
    do_sample = fields.flag("do_sample", False)
    return GenerationDefaults(
        stop_ids=fields.integers("eos_token_id", plain.stop_ids),
        pad_id=fields.integer("pad_token_id", plain.pad_id),
        bos_id=fields.integer("bos_token_id", plain.bos_id),
        do_sample=do_sample,
        temperature=fields.number("temperature", 1.0),
        top_p=fields.number("top_p", 1.0),
        top_k=fields.integer("top_k", 50 if do_sample else 0),
        repetition_penalty=fields.number("repetition_penalty", 1.0),
    )


def generation_json(defaults: GenerationDefaults) -> dict[str, Any]:
    """What goes into generation_config.json. Sampling numbers appear only with `do_sample` (transformers warns)."""
    data: dict[str, Any] = {
        "bos_token_id": defaults.bos_id,
        "do_sample": defaults.do_sample,
        # The official code of Qwen-VL takes a number only.
        "eos_token_id": list(defaults.stop_ids) if len(defaults.stop_ids) > 1 else defaults.stop_ids[0],
        "pad_token_id": defaults.pad_id,
        "repetition_penalty": defaults.repetition_penalty,
    }
    if defaults.do_sample:
        data |= {"temperature": defaults.temperature, "top_k": defaults.top_k, "top_p": defaults.top_p}
    return data


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become patch rows for a model."""

    geometry: Geometry = field(default_factory=Geometry)
    budget: PixelBudget = field(default_factory=PixelBudget)


def read_preprocessing(path: Path) -> Preprocessing:
    """`preprocessor_config.json` of folder `path`, or the `image_processor` part of `processor_config.json`
    (transformers 5 writes that one).

    Raises:
        FileNotFoundError: neither file is there.
        ValueError: a step is switched off or another resampling is asked for; the pixel bounds are missing (no
            default is assumed: the released files and transformers' class disagree by a factor of 12.8).
    """
    file, other = path / PREPROCESSOR_FILE, path / _PROCESSOR_FILE
    if not file.exists() and other.exists():
        fields = Fields.read(other).child("image_processor")
    else:
        fields = Fields.read(file)
    for step in ("do_resize", "do_rescale", "do_normalize", "do_convert_rgb"):
        fields.expect(step, True, "every Qwen2-VL checkpoint was trained with it")
    fields.expect("resample", _BICUBIC, "3 = bicubic")
    if not math.isclose(fields.number("rescale_factor", _RESCALE), _RESCALE, rel_tol=1e-4):
        fields.expect("rescale_factor", _RESCALE, "pixels 0..255 become 0..1")
    size = fields.child("size")
    bounds = {}
    for key, edge in (("min_pixels", "shortest_edge"), ("max_pixels", "longest_edge")):
        if fields.has(key):  # transformers lets these win over `size`
            bounds[key] = fields.integer(key)
        elif size.has(edge):
            bounds[key] = size.integer(edge)
        else:
            bounds[key] = size.integer(key)
    plain = Geometry()
    return Preprocessing(
        geometry=Geometry(
            patch=fields.integer("patch_size", plain.patch),
            merge=fields.integer("merge_size", plain.merge),
            temporal=fields.integer("temporal_patch_size", plain.temporal),
            mean=_channels(fields, "image_mean", plain.mean),
            std=_channels(fields, "image_std", plain.std),
        ),
        budget=PixelBudget(**bounds),
    )


def preprocessing_json(settings: Preprocessing) -> dict[str, Any]:
    """What goes into preprocessor_config.json: the released files' keys, plus `size` for versions that read it."""
    geometry, budget = settings.geometry, settings.budget
    return {
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(geometry.mean),
        "image_processor_type": "Qwen2VLImageProcessor",
        "image_std": list(geometry.std),
        "max_pixels": budget.max_pixels,
        "merge_size": geometry.merge,
        "min_pixels": budget.min_pixels,
        "patch_size": geometry.patch,
        "processor_class": "Qwen2VLProcessor",
        "resample": _BICUBIC,
        "rescale_factor": _RESCALE,
        "size": {"longest_edge": budget.max_pixels, "shortest_edge": budget.min_pixels},
        "temporal_patch_size": geometry.temporal,
    }


def _channels(fields: Fields, key: str, default: tuple[float, ...]) -> tuple[float, float, float]:
    value = fields.data.get(key, default)
    # python's json reads NaN and Infinity too
    numeric = isinstance(value, (list, tuple)) and all(isinstance(v, (int, float)) and math.isfinite(v) for v in value)
    if not numeric or len(value) != 3:
        raise ValueError(f"{fields.source}: {key} must be three numbers, got {value!r}")
    return tuple(float(v) for v in value)  # type: ignore[return-value]
