"""What a training step holds in memory, found out by going through one without values.

Knows: how to run the package's own model, loss, backward pass and optimizer on tensors that have a shape and no memory
(`FakeTensorMode`), and to keep the books of every storage that is born and dies on the way.
Does not know: pictures, recipes, devices (`plan`).

So there is no formula that could grow apart from the code: adapters, frozen parts, autocast, recomputation and either
family are counted because they are run. What kernels hold inside while they compute is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvl.batch import Batch
from qvl.models.vlm import VisionLanguageModel
from qvl.train.blocks import blocks_of
from qvl.train.config import OptimConfig, Part
from qvl.train.optim import Optimizers, part_of

PARTS: tuple[Part, ...] = ("vision", "merger", "text")
Phase = Literal["forward pass", "backward pass", "optimizer step"]
Losses = Callable[[VisionLanguageModel, Batch], Tensor]
"""Losses of a batch, [X]."""
_COPIES = "copies of weights"
_SOUGHT = torch.ops.aten.nonzero.default
_CAST = torch.ops.aten._to_copy.default


@dataclass(frozen=True)
class PackShape:
    """How much one forward pass holds."""

    seq_lens: tuple[int, ...]
    """Tokens of each sequence; branches as in `Batch`."""
    parents: tuple[int, ...]
    grids: tuple[tuple[int, int, int], ...]
    """Patches of each picture: time, rows, columns."""
    vision_tokens: int
    targets: int
    """Tokens that are learned: only these get logits."""

    @property
    def tokens(self) -> int:
        return sum(self.seq_lens)

    @property
    def segment_lens(self) -> tuple[int, ...]:
        return tuple(h * w for t, h, w in self.grids for _ in range(t))

    @property
    def patches(self) -> int:
        return sum(self.segment_lens)

    def batch(self, rope_axes: int, patch_values: int) -> Batch:
        """A batch of this shape with no particular values."""
        return Batch(
            tokens_T=torch.empty(self.tokens, dtype=torch.long),
            positions_RT=torch.empty(rope_axes, self.tokens, dtype=torch.long),
            seq_lens=self.seq_lens,
            patches_PC=torch.empty(self.patches, patch_values),
            patch_hw_2P=torch.empty(2, self.patches, dtype=torch.long),
            segment_lens=self.segment_lens,
            grids=self.grids,
            vision_rows_M=torch.empty(self.vision_tokens, dtype=torch.long),
            parents=self.parents if any(p >= 0 for p in self.parents) else (),
            labels_T=torch.empty(self.tokens, dtype=torch.long),
        )


@final
@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step on one device, by purpose and part. Of what devices hold in pieces, the piece."""

    parameters: dict[Part, int]
    gradients: dict[Part, int]
    optimizer: dict[Part, int]
    activations: dict[Part, int]
    """Kept for the backward pass; the text's with the logits of the targets."""
    copies: int
    """Of weights in a smaller type, which autocast makes and the backward pass needs."""
    batch: int
    """Patch rows and tokens."""
    peaks: dict[Phase, int]
    """The most that is held at once in each phase, parameters and optimizer included."""
    gathered: int = 0
    """Whole weights of the blocks at hand, where devices hold pieces."""

    @property
    def peak(self) -> int:
        return max(self.peaks.values())

    @property
    def peak_when(self) -> Phase:
        return max(self.peaks, key=self.peaks.__getitem__)

    @property
    def lasting(self) -> int:
        """What no smaller pack takes away."""
        return sum(sum(by_part.values()) for by_part in (self.parameters, self.gradients, self.optimizer))


def step_memory(
    build: Callable[[], VisionLanguageModel],
    pack: PackShape,
    losses: Losses,
    trains: Iterable[Part],
    optim: OptimConfig,
    *,
    frozen: Iterable[str] = (),
    accumulate: int = 1,
    bfloat16: bool = False,
    shard: int = 1,
    whole_gradients: bool = True,
    summed: bool = False,
) -> StepMemory:
    """Bytes of one optimizer step over `accumulate` packs like `pack`.

    Args:
        build: makes the model as one device computes it, with adapters if it is to have some; called where tensors have
            no memory.
        losses: of a pack, as the stage's objective computes them.
        bfloat16: matrix products in bfloat16 (autocast), weights in float32.
        shard: devices that hold weights, gradients and optimizer state in pieces (FSDP2).
        whole_gradients: with `shard`, gradients are held whole until the last pack.
        summed: devices hold everything and sum their gradients, for which each takes a copy.

    Raises:
        ValueError: as `optim.freeze`.
    """
    with FakeTensorMode(), _Ledger(pack.targets) as ledger:
        with torch.no_grad():
            model = build().train()
        optimizers = Optimizers(model, trains, optim, frozen)
        config = model.config
        with ledger.counts("batch"):
            batch = pack.batch(config.text.rope_axes, config.vision.patch_values)
        ledger.follow(model)
        peaks: dict[Phase, int] = {}
        kept: Counter[str] = Counter()
        if shard > 1:  # gradients leave as they come, in pieces
            for p in optimizers.params:
                p.register_post_accumulate_grad_hook(_drop)
        for _ in range(min(2, accumulate)):  # the second finds the gradients of the first
            with ledger.phase("forward pass", peaks), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
                loss = losses(model, batch).sum()
            kept = ledger.held_by_purpose()
            with ledger.phase("backward pass", peaks):
                loss.backward()
        del loss
        if shard > 1:
            for p in optimizers.params:
                p.grad = torch.empty_like(p)
        gradients = _by_part((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        with ledger.phase("optimizer step", peaks):
            optimizers.step(0.5)  # makes its state
    later = _later(peaks, optimizers)
    if summed:
        later["optimizer step"] += sum(gradients.values())
    found = StepMemory(
        parameters=_by_part(model.named_parameters()),
        gradients=gradients,
        optimizer=_state_by_part(model, optimizers),
        activations={part: kept[part] for part in PARTS},
        copies=kept[_COPIES],
        batch=kept["batch"],
        peaks=later,
    )
    return found if shard == 1 else _in_pieces(found, model, shard, accumulate > 1 and whole_gradients, bfloat16)


def _drop(p: Tensor) -> None:
    p.grad = None


def _later(peaks: Mapping[Phase, int], optimizers: Optimizers) -> dict[Phase, int]:
    """In later steps the optimizer's state is there from the beginning."""
    states = (v for optimizer in optimizers.all for state in optimizer.state.values() for v in state.values())
    size = sum(v.nbytes for v in states if isinstance(v, Tensor))
    return {phase: peak + (size if phase != "optimizer step" else 0) for phase, peak in peaks.items()}


def _in_pieces(
    whole: StepMemory, model: VisionLanguageModel, shard: int, whole_gradients: bool, bfloat16: bool
) -> StepMemory:
    """The same step where `shard` devices hold pieces and gather one block after the other.

    Args:
        whole: counted without gradients in the passes.
    """
    blocks = [sum(p.numel() for p in block.parameters()) for block in blocks_of(model)]
    rest = sum(p.numel() for p in model.parameters()) - sum(blocks)  # gathered from beginning to end
    value = 2 if bfloat16 else 4
    gathered = value * (rest + 2 * max(blocks))  # the next block travels while this one computes
    leaving = (4 + value) * max(blocks)  # its gradients, and their float32 copy that is summed
    lasting = (whole.parameters, whole.gradients, whole.optimizer)
    parameters, gradients, optimizer = ({part: -(-n // shard) for part, n in sizes.items()} for sizes in lasting)
    held_gradients = sum((whole.gradients if whole_gradients else gradients).values())
    # Copies that autocast makes are the gathered blocks here.
    pieces = sum(parameters.values()) + sum(optimizer.values()) + gathered + held_gradients
    instead = sum(whole.parameters.values()) + sum(whole.optimizer.values()) + whole.copies
    passes = {phase: whole.peaks[phase] - instead + pieces for phase in ("forward pass", "backward pass")}
    scratch = whole.peaks["optimizer step"] - sum(sum(sizes.values()) for sizes in lasting)
    update = sum(sum(sizes.values()) for sizes in (parameters, gradients, optimizer)) + max(0, scratch)
    peaks: dict[Phase, int] = {
        "forward pass": passes["forward pass"],
        "backward pass": passes["backward pass"] + leaving,
        "optimizer step": update,
    }
    return replace(
        whole,
        parameters=parameters,
        gradients=gradients,
        optimizer=optimizer,
        copies=0,
        peaks=peaks,
        gathered=gathered,
    )


@final
class _Ledger(TorchDispatchMode):
    """Every storage that is alive, its bytes and what it is for."""

    def __init__(self, labelled: int) -> None:
        """
        Args:
            labelled: how many labels are found where labels are looked for (there are no values to look at).
        """
        super().__init__()
        self.purpose = "model"
        self._labelled = labelled
        self._held: dict[int, tuple[int, str]] = {}
        self._now = self._peak = 0
        self._weights: set[int] = set()
        self._outer: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is _SOUGHT:
            out = torch.empty(self._labelled, args[0].ndim, dtype=torch.long)
        else:
            out = func(*args, **(kwargs or {}))
        cast = func is _CAST and _key(args[0]) in self._weights
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._enter(leaf, _COPIES if cast else self.purpose)
        return out

    def _enter(self, tensor: Tensor, purpose: str) -> None:
        storage, key = tensor.untyped_storage(), _key(tensor)
        if key in self._held:
            return
        self._held[key] = storage.nbytes(), purpose
        self._now += storage.nbytes()
        self._peak = max(self._peak, self._now)
        weakref.finalize(storage, self._leave, key)

    def _leave(self, key: int) -> None:
        self._now -= self._held.pop(key)[0]

    def follow(self, model: VisionLanguageModel) -> None:
        """Books what a part computes to that part, and smaller copies of the weights apart."""
        self._weights = {_key(p) for p in model.parameters()}
        bridges = (m for name, m in model.visual.named_children() if name in ("merger", "adapter"))
        for module, part in ((model.visual, "vision"), *((m, "merger") for m in bridges)):
            module.register_forward_pre_hook(partial(self._enter_part, part))
            module.register_forward_hook(self._leave_part)

    def _enter_part(self, part: str, *_: Any) -> None:
        self._outer.append(self.purpose)
        self.purpose = part

    def _leave_part(self, *_: Any) -> None:
        self.purpose = self._outer.pop()

    @contextmanager
    def counts(self, purpose: str) -> Iterator[None]:
        before, self.purpose = self.purpose, purpose
        yield
        self.purpose = before

    @contextmanager
    def phase(self, name: Phase, peaks: dict[Phase, int]) -> Iterator[None]:
        """Notes the most that is held in the meantime."""
        self._peak = self._now
        with self.counts("text" if name == "forward pass" else name):
            yield
        peaks[name] = max(self._peak, peaks.get(name, 0))

    def held_by_purpose(self) -> Counter[str]:
        held: Counter[str] = Counter()
        for size, purpose in self._held.values():
            held[purpose] += size
        return held


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _by_part(named: Iterable[tuple[str, Tensor]]) -> dict[Part, int]:
    found: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for name, tensor in named:
        found[part_of(name)] += tensor.untyped_storage().nbytes()
    return found


def _state_by_part(model: nn.Module, optimizers: Optimizers) -> dict[Part, int]:
    name_of: dict[Tensor, str] = {p: name for name, p in model.named_parameters()}
    return _by_part(
        (name_of[p], value)
        for optimizer in optimizers.all
        for p, state in optimizer.state.items()
        for value in state.values()
        if isinstance(value, Tensor)
    )
