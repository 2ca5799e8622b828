"""The model a run begins with: random, from a folder, or with pretrained halves.

Knows: whole folders, and the two halves of a Qwen-VL. Does not know: files' insides, vocabularies, training.
"""

from __future__ import annotations

import torch

from qvl.checkpoint.folder import load_model
from qvl.checkpoint.parts import load_clip_vision, load_language_model
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.registry import build_model
from qvl.models.vlm import VisionLanguageModel, VLMConfig
from qvl.train.config import PartsConfig


def first_model(sizes: VLMConfig, parts: PartsConfig, seed: int) -> VisionLanguageModel:
    """A model of these sizes: `parts` where they are named, random elsewhere.

    Raises:
        FileNotFoundError: a part is not there.
        ValueError: a part is of other sizes, or damaged; parts for a model that is not a Qwen-VL.
    """
    model = build_model(sizes)
    model.init_weights(seed)
    if parts == PartsConfig():
        return model
    if not isinstance(model, QwenVL):
        raise ValueError("parts are those of a Qwen-VL; another model starts from a folder (model: FOLDER)")
    if parts.language:
        load_language_model(model, parts.language)
    if parts.vision:
        load_clip_vision(model, parts.vision)
    return model


def model_of_folder(sizes: VLMConfig, folder: str) -> VisionLanguageModel:
    """The folder's model for pictures as in `sizes`, which may be larger or smaller than the folder's were: the tables
    of places are resized to any grid.

    Raises:
        FileNotFoundError, ValueError: as `load_model`; or the recipe wants another number of queries.
    """
    model = load_model(folder)
    with torch.device("meta"):
        wanted = {name: list(tensor.shape) for name, tensor in build_model(sizes).state_dict().items()}
    for name, tensor in model.state_dict().items():
        if list(tensor.shape) != wanted[name]:
            raise ValueError(
                f"{folder} is not what the recipe wants: {name} is {list(tensor.shape)}, it wants {wanted[name]}; "
                "queries can only be chosen for a new adapter"
            )
    model.config = sizes
    return model
