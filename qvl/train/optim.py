"""Optimizers: who is updated by what, how fast, and how the rate changes over a stage.

Knows: parameter roles by name (vision, merger, text; matrix or not). Does not know: data, loss, stages' order.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from qvl.layers.linear import FusedLinear
from qvl.models.lora import has_lora, is_adapter
from qvl.runtime import fast_bfloat16
from qvl.train.config import OptimConfig, Part, StageConfig
from qvl.train.shards import Orders, is_sharded, local, norm, own_piece, show_in_order, whole

_TABLES = ("embed.", "head.", "visual.position_embed", "visual.adapter.query")
"""Two-dimensional, but rows looked up one by one and no maps from one space to another: nothing for Muon."""
_NS_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_MOST_GATHERED_BYTES = 512 << 20
"""Of whole matrices at a time where ranks hold pieces: with all of them sharding would save nothing."""


def part_of(name: str) -> Part:
    """The part a parameter belongs to: the merger (Qwen-VL: the adapter), other `visual.*` vision, the rest text."""
    if name.startswith(("visual.merger.", "visual.adapter.")):
        return "merger"
    return "vision" if name.startswith("visual.") else "text"


def is_map(name: str, p: Tensor) -> bool:
    """Whether a parameter is a matrix that maps one space to another: what Muon is for."""
    return p.ndim == 2 and not name.startswith(_TABLES)


def freeze(model: nn.Module, trains: Iterable[Part], frozen: Iterable[str] = ()) -> list[tuple[str, nn.Parameter]]:
    """Switches gradients on for the parts in `trains`, off elsewhere; returns the trained parameters by name.

    In a model with adapters only these learn.

    Args:
        frozen: patterns of names that stay off all the same.

    Raises:
        ValueError: a pattern that no parameter has, or nothing is left to train.
    """
    named = list(model.named_parameters())
    for pattern in frozen:
        if not any(fnmatchcase(name, pattern) for name, _ in named):
            examples = ", ".join(name for name, _ in named[:: max(1, len(named) // 4)])
            raise ValueError(f"frozen: no parameter is called {pattern!r}; names are such as {examples}")
    adapted = has_lora(model)
    trained = []
    for name, p in named:
        held = any(fnmatchcase(name, pattern) for pattern in frozen) or is_adapter(name) != adapted
        p.requires_grad_(part_of(name) in set(trains) and not held)
        if p.requires_grad:
            trained.append((name, p))
    if not trained:
        beside = (
            f" (lora adapts {', '.join(sorted({part_of(n) for n, _ in named if is_adapter(n)}))})" if adapted else ""
        )
        raise ValueError(f"nothing learns: trains={', '.join(trains)}{beside}, frozen={', '.join(frozen) or 'nothing'}")
    return trained


def untouched(model: nn.Module, stages: Iterable[StageConfig]) -> frozenset[str]:
    """Names of the parameters that none of these stages trains. Raises as `freeze` does, for any of the stages."""
    trained = {name for stage in stages for name, _ in freeze(model, stage.trains, stage.frozen)}
    return frozenset(name for name, _ in model.named_parameters() if name not in trained)


@final
class BatchedMuon(torch.optim.Muon):
    """`torch.optim.Muon` with matrices of one shape orthogonalised in one call, in a dtype the machine is fast at.

    The library iterates in bfloat16, which is hundreds of times slower on a CPU without bfloat16 units; there it is
    float32 here. The update is the same otherwise (momentum with Nesterov, `match_rms_adamw`, decoupled weight decay).

    Args:
        parts: rows of each projection in a fused matrix. Each is orthogonalised on its own: together, the large
            gradients of the values would leave next to nothing for queries and keys, and no attention is learned.
    """

    def __init__(
        self, params: Any, parts: Mapping[Tensor, tuple[int, ...]], orders: Orders | None = None, **options: Any
    ) -> None:
        """`orders`: of matrices whose rows are held in another order than the model's (`qvl.train.shards`)."""
        super().__init__(params, **options)
        self._parts = parts
        self._orders = orders or {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        assert closure is None, "closures are not supported"
        for group in self.param_groups:
            pairs: list[tuple[Tensor, Tensor]] = []
            wholes: list[tuple[Tensor, Tensor]] = []
            for p in group["params"]:
                if p.grad is None:
                    continue
                buffer = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                p.mul_(1 - group["lr"] * group["weight_decay"])
                target = p
                if isinstance(p, DTensor):
                    # Only a whole matrix can be orthogonalised: every rank does it, and takes its piece of the result.
                    update = whole(update, self._orders.get(p))
                    target = torch.zeros_like(update)
                    wholes.append((p, target))
                rows = self._parts.get(p, (p.shape[0],))
                pairs += zip(target.split(rows), update.split(rows), strict=True)
                if sum(target.nbytes for _, target in wholes) > _MOST_GATHERED_BYTES:
                    self._apply(group, pairs, wholes)
                    pairs, wholes = [], []
            self._apply(group, pairs, wholes)

    def _apply(
        self, group: dict[str, Any], pairs: list[tuple[Tensor, Tensor]], wholes: list[tuple[Tensor, Tensor]]
    ) -> None:
        """Subtracts from the first of each of `pairs` the orthogonalised second; `wholes`: parameters held in pieces,
        and which of these targets are theirs."""
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = defaultdict(list)
        for target, update in pairs:
            by_shape[target.shape].append((target, update))
        for (r, c), same in by_shape.items():
            # AdamW's updates have a root mean square near 0.2; an orthogonal matrix has 1 / sqrt(max side).
            lr = group["lr"] * 0.2 * math.sqrt(max(r, c))
            stacked = torch.stack([u for _, u in same])
            low = torch.bfloat16 if fast_bfloat16(stacked.device.type) else torch.float32
            updates = orthogonalise(stacked.to(low), group["ns_steps"]).to(stacked.dtype)
            for (target, _), update in zip(same, updates, strict=True):
                target.sub_(update, alpha=lr)
        for p, target in wholes:
            held = target[self._orders[p]] if p in self._orders else target
            local(p).add_(own_piece(held, p))


def fused_parts(model: nn.Module) -> dict[Tensor, tuple[int, ...]]:
    """Rows of each projection, by fused weight."""
    return {m.weight: m.parts for m in model.modules() if isinstance(m, FusedLinear)}


def orthogonalise(x_XRC: Tensor, steps: int) -> Tensor:
    """Brings the singular values of each matrix near 1 by Newton-Schulz iteration (Muon), in the input's dtype."""
    a, b, c = _NS_COEFFICIENTS
    tall = x_XRC.shape[-2] > x_XRC.shape[-1]
    x = x_XRC.mT if tall else x_XRC
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


@final
class Optimizers:
    """The optimizers of one stage, stepped together; rates follow a cosine with linear warm-up."""

    def __init__(
        self,
        model: nn.Module,
        trains: Iterable[Part],
        config: OptimConfig,
        frozen: Iterable[str] = (),
        orders: Orders | None = None,
    ) -> None:
        """Freezes what is not in `trains` (or is in `frozen`) and divides the rest among Muon and AdamW.

        Args:
            orders: of parameters whose rows are held in another order than the model's (`Parallel.orders`).
        """
        trained = freeze(model, trains, frozen)
        self.config = config
        self.params = [p for _, p in trained]
        layers = 1 + max((_vision_layer(n) for n, _ in trained), default=-1)
        muon: dict[float, list[nn.Parameter]] = defaultdict(list)
        adamw: dict[tuple[float, bool], list[nn.Parameter]] = defaultdict(list)
        for name, p in trained:
            factor = _rate_factor(name, config, layers)
            if config.name == "muon" and is_map(name, p):
                muon[factor].append(p)
            else:
                adamw[factor, p.ndim >= 2].append(p)
        self.all: list[torch.optim.Optimizer] = []
        if muon:
            groups = [{"params": ps, "peak": config.muon_lr * f} for f, ps in muon.items()]
            self.all.append(
                BatchedMuon(
                    groups,
                    fused_parts(model),
                    orders,
                    lr=config.muon_lr,
                    weight_decay=config.weight_decay,
                    adjust_lr_fn="match_rms_adamw",
                )
            )
        if adamw:
            groups = [
                {"params": ps, "peak": config.lr * f, "weight_decay": config.weight_decay if decays else 0.0}
                for (f, decays), ps in adamw.items()
            ]
            self.all.append(torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True))
        if is_sharded(self.params):
            for optimizer in self.all:
                show_in_order(optimizer, orders or {})

    def clip(self) -> float:
        """Bounds the norm of all gradients together; returns what it was."""
        most = self.config.clip or math.inf
        if not is_sharded(self.params):
            return float(nn.utils.clip_grad_norm_(self.params, most))
        gradients = [p.grad for p in self.params if p.grad is not None]
        length = norm(gradients)
        factor = (most / (length + 1e-6)).clamp(max=1.0)  # as `clip_grad_norm_`
        for gradient in gradients:
            local(gradient).mul_(factor)
        return float(length)

    def step(self, progress: float) -> float:
        """Updates at the rates of `progress` in [0, 1] and clears gradients; returns the rate factor."""
        factor = rate(progress, self.config)
        for optimizer in self.all:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            optimizer.step()
        self.clear()
        return factor

    def clear(self) -> None:
        """Drops all gradients."""
        for p in self.params:
            p.grad = None

    def state_dict(self) -> list[dict[str, Any]]:
        return [o.state_dict() for o in self.all]

    def load_state_dict(self, states: list[dict[str, Any]]) -> None:
        for optimizer, state in zip(self.all, states, strict=True):
            optimizer.load_state_dict(state)


def rate(progress: float, config: OptimConfig) -> float:
    """Learning rate as a share of its peak: linear to 1 during the warm-up, then a cosine to `min_lr_ratio`."""
    if progress < config.warmup:
        return max(progress / config.warmup, 1e-3)
    x = min(1.0, (progress - config.warmup) / max(1e-9, 1 - config.warmup))
    return config.min_lr_ratio + (1 - config.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * x))


def _vision_layer(name: str) -> int:
    match = re.match(r"visual\.blocks\.(\d+)\.", name)
    return int(match.group(1)) if match else -1


def _rate_factor(name: str, config: OptimConfig, layers: int) -> float:
    match part_of(name):
        case "text":
            return config.text_lr
        case "merger":
            return config.merger_lr
        case "vision":
            # Block i of n: decay^(n - i); the patch embedding counts as block -1.
            return config.vision_lr * config.vision_layer_decay ** (layers - _vision_layer(name))
