"""Starting a Qwen-VL from the parts that the published one started from: a language model and a vision tower.

Knows: which tensors of a Qwen-7B folder and of an OpenCLIP ViT-bigG/14 file fill which half of the model.
Does not know: how the rest is initialised (the model's `init_weights`), training.

    model = build_model(preset("qwen-vl"))
    model.init_weights(seed=0)                                  # what neither part has: the adapter
    load_language_model(model, "Qwen-7B")
    load_clip_vision(model, "open_clip_pytorch_model.bin")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from qvl.checkpoint.hf_config_qwen_vl import parse_text
from qvl.checkpoint.jsonfile import Fields
from qvl.checkpoint.tensor_files import open_tensors
from qvl.checkpoint.weights import WeightFiles, some
from qvl.models.keys import Entry, stored_tensors
from qvl.models.qwen_vl.keymap import CLIP_POSITIONS, clip_entries, language_entries
from qvl.models.qwen_vl.model import QwenVL

_VISION_PREFIX = "transformer.visual."


def load_language_model(model: QwenVL, path: str | Path) -> None:
    """Fills embedding, decoder and head from a Qwen-7B folder (config.json and weights, official names).

    The vision half stays as it is; one in the folder (a Qwen-VL's) is passed over. Values are cast to the model's.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the folder's sizes are not those of `model`; tensors are missing, left over or of another shape.
    """
    folder = Path(path)
    fields = Fields.read(folder / "config.json")
    fields.expect("model_type", "qwen", "the language half of a Qwen-VL is a Qwen-7B")
    ours, theirs = asdict(model.config.text), asdict(parse_text(fields))
    different = [f"{key} {theirs[key]} (the model: {ours[key]})" for key in ours if ours[key] != theirs[key]]
    if different:
        raise ValueError(f"{fields.source} describes another language model: {', '.join(different)}")
    stored = WeightFiles.find(folder)
    entries = language_entries(model)
    own = {part.name for entry in entries for part in entry.parts}
    left = [name for name in stored.files if name not in own and not name.startswith(_VISION_PREFIX)]
    if model.config.tie_embeddings:
        left = [name for name in left if name != "lm_head.weight"]
    if left:
        raise ValueError(f"{folder} holds tensors that the language model does not have ({some(left)})")
    check_shapes(_wanted(entries), stored.shapes, str(folder))
    names = [part.name for entry in entries for part in entry.parts]
    copy_entries(model, entries, stored.read(names))


def load_clip_vision(model: QwenVL, file: str | Path) -> None:
    """Fills the vision tower from OpenCLIP's ViT-bigG/14 (`open_clip_pytorch_model.bin` or `.safetensors`).

    Not used: the class token and its position, `ln_post` and `proj` of the tower, everything of the text tower. The
    adapter stays as it is. OpenCLIP's norms add 1e-5 to the variance, Qwen-VL's 1e-6.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, or tensors are missing or of another shape.
    """
    opened = open_tensors(Path(file))
    shapes = opened.shapes()
    if CLIP_POSITIONS in shapes:
        rows, *width = shapes[CLIP_POSITIONS]
        shapes[CLIP_POSITIONS] = (rows - 1, *width)
    entries = clip_entries(model)
    check_shapes(_wanted(entries), shapes, str(file))

    def read(name: str) -> Tensor:
        tensor = opened.get(name)
        return tensor[1:] if name == CLIP_POSITIONS else tensor

    copy_entries(model, entries, (read(part.name) for entry in entries for part in entry.parts))


def _wanted(entries: Iterable[Entry]) -> dict[str, tuple[int, ...]]:
    return {part.name: part.shape for entry in entries for part in entry.parts}


def check_shapes(wanted: Mapping[str, tuple[int, ...]], shapes: Mapping[str, tuple[int, ...]], source: str) -> None:
    """All that is wrong in one message, before anything is changed. Raises `ValueError`."""
    missing = [name for name in wanted if name not in shapes]
    wrong = [
        f"{name} is {list(shapes[name])}, the model wants {list(shape)}"
        for name, shape in wanted.items()
        if name in shapes and shapes[name] != shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {some(missing)}")
    if wrong:
        problems.append(f"of another shape {some(wrong, 2)}")
    if problems:
        raise ValueError(f"the tensors in {source} do not fit the model: {'; '.join(problems)}")


@torch.no_grad()
def copy_entries(model: nn.Module, entries: Iterable[Entry], tensors: Iterable[Tensor]) -> None:
    """Fills the parameters of `entries` from their official tensors, given in the entries' order."""
    own = stored_tensors(model)
    values = iter(tensors)
    for entry in entries:
        for _, view in entry.views(own[entry.ours]):
            view.copy_(next(values).reshape(view.shape))
