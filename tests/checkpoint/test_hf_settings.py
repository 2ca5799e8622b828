"""generation_config.json and preprocessor_config.json, both ways and against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qvl.checkpoint.hf_settings import (
    GenerationDefaults,
    Preprocessing,
    generation_json,
    preprocessing_json,
    read_generation,
    read_preprocessing,
)
from qvl.media.resize import Geometry, PixelBudget
from qvl.models.qwen2_vl.config import TokenIds

RELEASED = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2VLProcessor",
}
OTHER = Preprocessing(
    Geometry(patch=4, merge=3, temporal=1, mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)), PixelBudget(100, 4000)
)


def write(folder: Path, name: str, data: object) -> Path:
    (folder / name).write_text(json.dumps(data))
    return folder


def test_released_preprocessing(tmp_path: Path) -> None:
    assert read_preprocessing(write(tmp_path, "preprocessor_config.json", RELEASED)) == Preprocessing()


@pytest.mark.parametrize("settings", [Preprocessing(), OTHER])
def test_preprocessing_round_trip(settings: Preprocessing, tmp_path: Path) -> None:
    assert read_preprocessing(write(tmp_path, "preprocessor_config.json", preprocessing_json(settings))) == settings


def test_preprocessing_of_transformers_5(tmp_path: Path) -> None:
    """Bounds under `size`, and all of it inside processor_config.json."""
    data = {k: v for k, v in RELEASED.items() if not k.endswith("_pixels")}
    data["size"] = {"shortest_edge": 3136, "longest_edge": 50000}
    write(tmp_path, "processor_config.json", {"image_processor": data, "processor_class": "Qwen2VLProcessor"})
    assert read_preprocessing(tmp_path).budget == PixelBudget(3136, 50000)


def test_plain_bounds_win_over_size(tmp_path: Path) -> None:
    data = RELEASED | {"max_pixels": 70000, "size": {"shortest_edge": 1, "longest_edge": 2}}
    assert read_preprocessing(write(tmp_path, "preprocessor_config.json", data)).budget == PixelBudget(3136, 70000)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_pixels": None}, "max_pixels is missing"),
        ({"do_normalize": False}, "do_normalize is False"),
        ({"resample": 2}, "resample is 2, only 3"),
        ({"rescale_factor": 1.0}, "rescale_factor is 1.0, only 0.0039"),
        ({"image_mean": [0.5]}, r"three numbers, got \[0.5\]"),
        ({"image_std": [float("nan"), 0.3, 0.3]}, r"image_std must be three numbers, got \[nan"),
        ({"min_pixels": 20000000}, "min_pixels=20000000 is larger than max_pixels"),
    ],
)
def test_preprocessing_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_preprocessing(write(tmp_path, "preprocessor_config.json", RELEASED | change))


def test_no_preprocessing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no preprocessor_config.json"):
        read_preprocessing(tmp_path)


@pytest.mark.parametrize("settings", [Preprocessing(), OTHER])
def test_transformers_reads_ours(settings: Preprocessing, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    write(tmp_path, "preprocessor_config.json", preprocessing_json(settings))
    theirs = Qwen2VLImageProcessorPil.from_pretrained(tmp_path)
    geometry, budget = settings.geometry, settings.budget
    assert (theirs.patch_size, theirs.merge_size, theirs.temporal_patch_size) == (
        geometry.patch,
        geometry.merge,
        geometry.temporal,
    )
    assert (theirs.size["shortest_edge"], theirs.size["longest_edge"]) == (budget.min_pixels, budget.max_pixels)
    assert (tuple(theirs.image_mean), tuple(theirs.image_std)) == (geometry.mean, geometry.std)


def test_generation_round_trip(tmp_path: Path) -> None:
    plain = GenerationDefaults.of(TokenIds())
    assert plain.stop_ids == (151645, 151643)
    sampled = GenerationDefaults((7,), 8, 9, True, temperature=0.01, top_p=0.001, top_k=1, repetition_penalty=1.05)
    for defaults in (plain, sampled):
        write(tmp_path, "generation_config.json", generation_json(defaults))
        assert read_generation(tmp_path, TokenIds()) == defaults


def test_generation_as_released(tmp_path: Path) -> None:
    assert read_generation(tmp_path, TokenIds()) == GenerationDefaults.of(TokenIds())
    data = {"do_sample": True, "eos_token_id": 151645, "temperature": 0.01, "top_k": 1, "top_p": 0.001}
    read = read_generation(write(tmp_path, "generation_config.json", data), TokenIds())
    assert read == GenerationDefaults((151645,), 151643, 151643, True, 0.01, 0.001, 1)
