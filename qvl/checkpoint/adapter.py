"""An adapter folder in PEFT's layout <-> the adapters of a model.

Knows: adapter_config.json, adapter_model.safetensors, the names PEFT gives to tensors.
Does not know: what an adapter computes (`qvl.models.lora`), training.

Written names are those of transformers since 4.52 (`base_model.model.model.language_model.layers.0...`); both
generations are read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from qvl.checkpoint.jsonfile import Fields, dump
from qvl.checkpoint.stage import staged_folder
from qvl.checkpoint.tensor_files import open_tensors
from qvl.checkpoint.weights import some
from qvl.models.keys import Part
from qvl.models.lora import Adapter, LoraConfig, Target, adapters, add_lora, has_lora, targets_of, where_of
from qvl.models.registry import family_of
from qvl.models.vlm import VisionLanguageModel

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
_OLD_WEIGHTS_FILE = "adapter_model.bin"
_PREFIX = "base_model.model."
_KEY = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_(A|B|magnitude_vector)(?:\.default)?(?:\.weight)?")
_REFUSED = (
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
    "lora_bias",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "arrow_config",
)
_INITS = (True, False, None, "gaussian", "orthogonal", "eva", "mica")
"""Ways to begin an adapter that leave the layer's own weight alone. PiSSA, OLoRA, CorDA, LoRA-GA and LoftQ take
something out of it, and PEFT does so again when it loads the adapter."""


def save_adapter(model: VisionLanguageModel, path: str | Path, config: LoraConfig, base: str = "") -> None:
    """Writes the adapters of `model` so that PEFT, vLLM and `load_adapter` read them.

    Args:
        base: the folder or hub id that the adapters belong on.

    Raises:
        OSError: no space left; nothing is changed then.
        ValueError: the model has no adapters.
    """
    if not has_lora(model):
        raise ValueError("the model has no adapters to save; save the model itself")
    new_name = family_of(model).new_name
    tensors: dict[str, Tensor] = {}
    modules = []
    for adapter in adapters(model):
        part = adapter.target.part
        module = new_name(adapter.target.name)
        modules.append(module)
        tensors[f"{_PREFIX}{module}.lora_A.weight"] = _ready(adapter.a)
        tensors[f"{_PREFIX}{module}.lora_B.weight"] = _ready(_official(part, adapter.b))
        if adapter.magnitude is not None:
            tensors[f"{_PREFIX}{module}.lora_magnitude_vector"] = _ready(_official(part, adapter.magnitude))
    settings = {
        "base_model_name_or_path": base or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": config.alpha,
        "lora_dropout": config.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": config.rank,
        "target_modules": modules,
        "task_type": None,
        "use_dora": config.dora,
        "use_rslora": False,
    }
    with staged_folder(Path(path), needs_bytes=sum(t.nbytes for t in tensors.values())) as stage:
        (stage / CONFIG_FILE).write_text(dump(settings), encoding="utf-8")
        save_file(tensors, stage / WEIGHTS_FILE, metadata={"format": "pt"})


def load_adapter(model: VisionLanguageModel, path: str | Path) -> LoraConfig:
    """Puts the adapters of a folder around layers of `model`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: another kind of adapter, one for other layers or sizes, or a damaged file.
    """
    folder = Path(path)
    fields = Fields.read(folder / CONFIG_FILE)
    file = folder / WEIGHTS_FILE
    opened = open_tensors(file if file.exists() else folder / _OLD_WEIGHTS_FILE)
    found = _by_module({name: opened.get(name) for name in opened.shapes()}, model, file)
    known = {target.name: target for target in targets_of(model)}
    if strange := [name for name in found if name not in known]:
        raise ValueError(
            f"{file} adapts layers that this model does not have or that cannot be adapted here ({some(strange)}): it "
            "belongs on another model"
        )
    targets = [known[name] for name in found]
    config = _config(fields, targets)
    _check(found, known, config, file)
    add_lora(model, config, targets=targets)
    with torch.no_grad():
        for adapter in adapters(model):
            _fill(adapter, found[adapter.target.name])
    return config


def _config(fields: Fields, targets: list[Target]) -> LoraConfig:
    fields.expect("peft_type", "LORA", "adapters of other kinds are not read")
    fields.expect("bias", "none", "biases are not adapted")
    fields.expect("fan_in_fan_out", False, "Qwen's layers hold outputs as rows")
    if refused := [key for key in _REFUSED if fields.data.get(key)]:
        raise ValueError(f"{fields.source}: {refused[0]} is {fields.data[refused[0]]!r}, which is not implemented")
    if (init := fields.data.get("init_lora_weights")) not in _INITS:
        raise ValueError(
            f"{fields.source}: init_lora_weights is {init!r}, so the adapter belongs on weights that were changed "
            "when it began; let PEFT convert it (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    rank, alpha = fields.integer("r"), fields.number("lora_alpha")
    if fields.flag("use_rslora", False):
        alpha *= math.sqrt(rank)  # rank-stabilised: alpha / sqrt(r) instead of alpha / r
    parts = tuple(dict.fromkeys(where_of(target.layer) for target in targets))
    dropout, dora = fields.number("lora_dropout", 0.0), fields.flag("use_dora", False)
    return LoraConfig(rank, alpha, dropout, parts, tuple(t.name for t in targets), dora)


def _by_module(tensors: Mapping[str, Tensor], model: VisionLanguageModel, file: Path) -> dict[str, dict[str, Tensor]]:
    """Official module name (old generation) -> `A`, `B`, perhaps `magnitude_vector`."""
    old_name = family_of(model).old_name
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = _KEY.fullmatch(name)
        if match is None:
            raise ValueError(f"{file} holds {name}, which is no LoRA tensor of a linear layer")
        found.setdefault(old_name(match[1]), {})[match[2]] = tensor
    return found


def _check(
    found: Mapping[str, Mapping[str, Tensor]], known: Mapping[str, Target], config: LoraConfig, file: Path
) -> None:
    for name, tensors in found.items():
        rows, *inputs = known[name].part.shape
        wanted = {"A": (config.rank, *inputs), "B": (rows, config.rank)}
        if config.dora:
            wanted["magnitude_vector"] = (rows,)
        shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
        if shapes != wanted:
            raise ValueError(
                f"{file}: the tensors of {name} are {shapes}, this model and r={config.rank} want {wanted}"
            )


def _fill(adapter: Adapter, tensors: Mapping[str, Tensor]) -> None:
    adapter.a.copy_(tensors["A"])
    ours = {"B": adapter.b, "magnitude_vector": adapter.magnitude}
    for key, parameter in ours.items():
        if parameter is not None:
            view = _official(adapter.target.part, parameter)
            view.copy_(tensors[key].reshape(view.shape))


def _official(part: Part, rows: Tensor) -> Tensor:
    """A view of our rows in the official order."""
    return part.view(rows) if part.layout == "per_head" else rows


def _ready(view: Tensor) -> Tensor:
    tensor = view.detach().cpu()
    return tensor.flatten(0, 2).contiguous() if tensor.ndim > 2 else tensor.contiguous()
