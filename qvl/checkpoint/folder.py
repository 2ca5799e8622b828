"""A model folder in the Hugging Face layout <-> a model.

Knows: which files make a folder, how tensors fill a model, what can be wrong with them.
Does not know: tokenizer files (`qvl.text`), optimizer state, what the model computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from qvl.checkpoint.configs import config_json, parse_config, runs_elsewhere
from qvl.checkpoint.hf_settings import GENERATION_FILE, GenerationDefaults, generation_json
from qvl.checkpoint.jsonfile import Fields, dump
from qvl.checkpoint.stage import staged_folder
from qvl.checkpoint.weights import OLD_FILES, Stored, WeightFiles, some, write_weights
from qvl.models.hollow import hollow
from qvl.models.keys import Entry, stored_tensors
from qvl.models.registry import Family, family_of
from qvl.models.vlm import VisionLanguageModel
from qvl.runtime import ask_for_huge_pages

_log = logging.getLogger(__name__)


def load_model(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    mapped: bool = False,
    filled: Callable[[VisionLanguageModel, str], None] | None = None,
) -> VisionLanguageModel:
    """Builds the model that the folder's config.json describes and fills it tensor by tensor.

    Peak memory is the model plus its largest stored tensor. Stored values of another dtype are cast.

    Args:
        mapped: on the CPU, values that are stored as `dtype` stay in the file, which is mapped: nothing is read before
            it is used, and several processes share the memory. The model can still be changed, but the file must not be
            written into while the model lives (replacing it is fine).
        filled: called with the model and the name of each parameter once that is filled; it may exchange the
            parameter's module for another, so that the whole model never lies in memory as it is stored. It must not
            write into the parameter.

    Raises:
        FileNotFoundError: no config.json, no weights, or a shard is missing.
        ValueError: the configuration is not implemented; a file is damaged; tensors are missing, left over or of
            another shape than config.json says; float16 asked for on the CPU.
    """
    folder = Path(path)
    if dtype == torch.float16 and torch.device(device).type == "cpu":
        raise ValueError(
            "float16 on the CPU is refused: there are no kernels for it (about 1 GFLOP/s, 400 times slower than "
            "bfloat16). Load with dtype bfloat16 or float32; float16 files are cast"
        )
    fields = Fields.read(folder / "config.json")
    kind, config = parse_config(fields)
    stored = _by_old_name(WeightFiles.find(folder), kind)
    if not config.tie_embeddings and kind.head not in stored.files and kind.embed in stored.files:
        _log.warning("%s has no %s: the head is taken to be the embedding (tied)", folder, kind.head)
        config = replace(config, tie_embeddings=True)
    model = hollow(config)
    entries = kind.entries(model)
    if config.tie_embeddings:
        _check_tied_head(stored, kind, folder)
    _check_fit(entries, stored, kind, folder)
    source = _Source(stored, torch.device(device), dtype, mapped)
    _fill(model, entries, source, filled)
    return model


def save_model(
    model: VisionLanguageModel,
    path: str | Path,
    *,
    max_shard_bytes: float = 5e9,
    dtype: torch.dtype | None = None,
    generation: GenerationDefaults | None = None,
) -> None:
    """Writes config.json, generation_config.json and the weights in official names (old generation).

    The folder is complete or not there at all (`staged_folder`); other files in it (tokenizer ...) stay. A model that
    other programs cannot run (a vision tower with parts that the format lacks) is marked so that they refuse it.

    Args:
        dtype: of the stored tensors; None = as they are.
        generation: None = greedy, ending at the model's end tokens.

    Raises:
        OSError: no space left; nothing is changed then.
        ValueError: the format cannot express the configuration (`config_json`).
    """
    kind = family_of(model)
    dtype = dtype or model.embed.weight.dtype
    tensors = list(_to_store(model, kind, dtype))
    total = sum(tensor.bytes for tensor in tensors)
    if not runs_elsewhere(model.config):
        _log.warning(
            "this model is for this package only: transformers and vLLM have no such vision tower (a position table "
            "instead of rotary positions) and refuse its config.json"
        )
    with staged_folder(Path(path), replaces=OLD_FILES, needs_bytes=total) as stage:
        write_settings(model, stage, dtype, generation)
        write_weights(stage, tensors, max_shard_bytes)


def write_settings(
    model: VisionLanguageModel, folder: Path, dtype: torch.dtype, generation: GenerationDefaults | None = None
) -> None:
    """Writes what a model folder holds besides weights: config.json and generation_config.json (None = greedy).

    Raises:
        ValueError: the format cannot express the configuration (`config_json`).
    """
    generation = generation or GenerationDefaults.of(model.config.ids)
    (folder / "config.json").write_text(dump(config_json(model.config, dtype)), encoding="utf-8")
    (folder / GENERATION_FILE).write_text(dump(generation_json(generation)), encoding="utf-8")


def _to_store(model: nn.Module, kind: Family, dtype: torch.dtype) -> Iterator[Stored]:
    tensors = stored_tensors(model)
    for entry in kind.entries(model):
        for part, view in entry.views(tensors[entry.ours].detach()):
            yield Stored(part.name, view.numel() * dtype.itemsize, partial(_ready, view, part.shape, dtype))


def _ready(view: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return view.to("cpu", dtype).reshape(shape).contiguous()


def _by_old_name(found: WeightFiles, kind: Family) -> WeightFiles:
    """Raises `ValueError` if a tensor is there under both its old and its new name."""
    names: dict[str, str] = {}
    for name in found.files:
        old = kind.old_name(name)
        if old in names:
            raise ValueError(f"{found.files[name]}: {names[old]} and {name} are two names of one tensor")
        names[old] = name
    return found.renamed(names)


def _check_tied_head(stored: WeightFiles, kind: Family, folder: Path) -> None:
    """A tied checkpoint may still hold the head; then it has to be the embedding, or config.json is wrong."""
    if kind.head not in stored.files or kind.embed not in stored.files:
        return
    (head,), (embed,) = stored.read([kind.head]), stored.read([kind.embed])
    if not torch.equal(head, embed):
        raise ValueError(
            f"{folder}: config.json says tie_word_embeddings, but {kind.head} differs from {kind.embed}; "
            "set tie_word_embeddings to false if the head was trained on its own"
        )


def _check_fit(entries: tuple[Entry, ...], stored: WeightFiles, kind: Family, folder: Path) -> None:
    """All that is wrong in one message, before anything is read."""
    wanted = {part.name: part.shape for entry in entries for part in entry.parts}
    tied = kind.head not in wanted
    missing = [name for name in wanted if name not in stored.files]
    extra = [name for name in stored.files if name not in wanted and not (tied and name == kind.head)]
    wrong = [
        f"{name} is {list(stored.shapes[name])}, config.json wants {list(shape)}"
        for name, shape in wanted.items()
        if name in stored.files and stored.shapes[name] != shape
    ]
    problems = []
    if missing:
        problems.append(f"missing {some(missing)}")
    if extra:
        problems.append(f"not part of the model {some(extra)} (in {stored.files[extra[0]].name})")
    if wrong:
        problems.append(f"of another shape {some(wrong, 2)} (in {stored.files[wrong[0].split()[0]].name})")
    if not problems:
        return
    if extra or wrong:
        fix = "config.json and the weights come from different models: take both from one folder"
    else:
        fix = "the download or copy is incomplete: fetch the weights again"
    raise ValueError(f"the tensors in {folder} do not fit its config.json: {'; '.join(problems)}. Likely: {fix}")


@dataclass(frozen=True)
class _Source:
    """Where values come from, and the form in which they are wanted."""

    stored: WeightFiles
    device: torch.device
    dtype: torch.dtype
    mapped: bool

    def values(self, entry: Entry) -> Tensor:
        """Where the file holds them if it may be mapped; else in memory of their own, part by part in their rows."""
        names = [part.name for part in entry.parts]
        if self.mapped and self.device.type == "cpu" and all(part.layout == "rows" for part in entry.parts):
            there = self.stored.mapped(names, entry.shape, self.dtype)
            if there is not None:
                return there
        values = torch.empty(entry.shape, dtype=self.dtype, device=self.device)
        if self.device.type == "cpu":
            ask_for_huge_pages(values.data_ptr(), values.nbytes)
        for part, view in entry.views(values):
            self.stored.fill(part.name, view)
        return values


@torch.no_grad()
def _fill(
    model: VisionLanguageModel,
    entries: tuple[Entry, ...],
    source: _Source,
    filled: Callable[[VisionLanguageModel, str], None] | None = None,
) -> None:
    """Gives every parameter and table its values."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names_of.setdefault(id(parameter), []).append(name)
    aliases = {names[0]: names for names in names_of.values()}
    for entry in entries:
        values = source.values(entry)
        names = aliases.get(entry.ours)
        made = nn.Parameter(values) if names else values  # what is not a parameter is a fixed table
        for name in names or [entry.ours]:
            module, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(module), leaf, made)
        if filled is not None:
            filled(model, entry.ours)
            source.stored.let_go(part.name for part in entry.parts)
    assert not any(tensor.is_meta for tensor in stored_tensors(model).values()), "a tensor was not filled"
