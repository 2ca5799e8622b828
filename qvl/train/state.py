"""What the state of a run holds, by name, so that any number of ranks can take it up again.

Knows: `model/NAME`, `optimizer/NAME/KEY` (by the parameter's name), `random/LANE/DEVICE`.
Does not know: files (`saved`), when it is saved (`saver`).

A tensor of which ranks hold parts (`DTensor`) is saved in parts and read in whatever parts the reader holds.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from qvl.train.saved import Saved, read_tensors, stored_tensors


def named_tensors(model: nn.Module, optimizers: Sequence[torch.optim.Optimizer] = ()) -> dict[str, Tensor]:
    """What a state holds of these, in the order and layout that their state dicts show. All ranks call it.

    Not copies: mostly the very memory that training changes. A parameter with two names is there once.
    """
    second = _second_names(model)
    found = {f"model/{name}": t for name, t in model.state_dict().items() if name not in second}
    for optimizer in optimizers:
        names = _param_names(model, optimizer)
        for index, values in optimizer.state_dict()["state"].items():
            found |= {f"optimizer/{names[index]}/{key}": value for key, value in values.items()}
    return found


def random_states(lane: int, device: torch.device) -> dict[str, Tensor]:
    """States of torch's random generators in this lane (the data has its own, by sample index), as copies."""
    found = {f"random/{lane}/cpu": torch.get_rng_state()}
    if device.type == "cuda":
        found[f"random/{lane}/cuda"] = torch.cuda.get_rng_state(device)
    return found


def set_random_states(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Sets what `random_states` gave."""
    for key, state in states.items():
        if key.endswith("/cpu"):
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def load_into(
    saved: Saved,
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer] = (),
    random: Mapping[str, Tensor] | None = None,
    group: dist.ProcessGroup | None = None,
) -> frozenset[str]:
    """Fills model, optimizers and `random` (as `random_states` gives it) from a state. All ranks of `group` call it.

    Returns:
        What of `random` the state has: nothing for a lane that was not there when it was saved.

    Raises:
        Damaged: a file cannot be read.
        ValueError: the state belongs to another model.
    """
    stored, tensors = stored_tensors(saved), named_tensors(model)
    _check_fit(saved, {k: v for k, v in stored.items() if k.startswith("model/")}, tensors)
    states = [_empty_states(model, optimizer, stored) for optimizer in optimizers]
    for state in states:
        tensors |= state
    known = {key: value for key, value in (random or {}).items() if key in stored}
    read_tensors(saved, tensors | known, group)
    own = {key.removeprefix("model/"): t for key, t in tensors.items() if key.startswith("model/")}
    model.load_state_dict(own | {second: own[first] for second, first in _second_names(model).items()})
    for optimizer, state in zip(optimizers, states, strict=True):
        numbers = {name: index for index, name in enumerate(_param_names(model, optimizer))}
        by_number: dict[int, dict[str, Tensor]] = {}
        for key, tensor in state.items():
            _, name, kind = key.split("/")
            by_number.setdefault(numbers[name], {})[kind] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": by_number})
    return frozenset(known)


def fill_model(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Gives a model, which may be without memory, the tensors of a state (by name) as its own.

    Raises:
        RuntimeError: they are those of another model.
    """
    second = _second_names(model)
    model.load_state_dict({**tensors, **{name: tensors[first] for name, first in second.items()}}, assign=True)
    for name, first in second.items():
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, model.get_parameter(first))


def _empty_states(
    model: nn.Module, optimizer: torch.optim.Optimizer, stored: Mapping[str, TensorStorageMetadata]
) -> dict[str, Tensor]:
    """Room for what is stored of an optimizer, laid out as its parameters are."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    of_param: dict[str, list[str]] = defaultdict(list)
    for key in stored:
        if key.startswith("optimizer/"):
            of_param[key.split("/")[1]].append(key)
    found = {}
    for p, name in zip(params, _param_names(model, optimizer), strict=True):
        for key in of_param[name]:
            size, dtype = stored[key].size, stored[key].properties.dtype
            # A counter has not the parameter's shape: every rank has it whole.
            room = torch.zeros_like(p, dtype=dtype) if size == p.shape else torch.zeros(size, dtype=dtype)
            found[key] = room.detach()
    return found


def _check_fit(saved: Saved, stored: dict[str, TensorStorageMetadata], own: dict[str, Tensor]) -> None:
    there, here = (
        {k: tuple(v.size if isinstance(v, TensorStorageMetadata) else v.shape) for k, v in d.items()}
        for d in (stored, own)
    )
    if there != here:
        name = next(k for k in (there | here) if there.get(k) != here.get(k))
        raise ValueError(
            f"{saved.folder} is of another model: {name.removeprefix('model/')} is {there.get(name, 'not there')}, "
            f"here it is {here.get(name, 'not there')}; choose another run folder (--run) or delete that one"
        )


def _param_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of an optimizer's parameters, in the order in which its state dict counts them."""
    names = {p: name for name, p in model.named_parameters()}
    return [names[p] for group in optimizer.param_groups for p in group["params"]]


def _second_names(model: nn.Module) -> dict[str, str]:
    """Names beyond the first of shared parameters (a tied head), and that first name."""
    first = {p: name for name, p in model.named_parameters()}
    return {name: first[p] for name, p in model.named_parameters(remove_duplicate=False) if first[p] != name}
