"""What a training step holds in memory, found out by going through one without values.

Knows: how to run the package's own model, loss, backward pass and optimizer on tensors that have a shape and no memory
(`FakeTensorMode`) while a `Ledger` keeps the books; what pieces several devices hold.
Does not know: pictures, recipes, devices (`plan`).

So there is no formula that could grow apart from the code: adapters, frozen parts, autocast, recomputation and either
family are counted because they are run. What kernels hold inside while they compute is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from qvl.batch import Batch
from qvl.models.vlm import VisionLanguageModel
from qvl.train.blocks import blocks_of
from qvl.train.config import OptimConfig, Part
from qvl.train.heap import Heap
from qvl.train.ledger import COPIES, Ledger, Phase
from qvl.train.optim import Optimizers, part_of

PARTS: tuple[Part, ...] = ("vision", "merger", "text")
Losses = Callable[[VisionLanguageModel, Batch], Tensor]
"""Losses of a batch, [X]."""


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
    slack: int = 0
    """Freed blocks that nothing fits into (`heap`)."""
    copy: int = 0
    """Of what a saved state holds, while it is written beside training (`saver`)."""
    copy_aside: bool = False
    """The copy lies in the processor's memory, the rest in a GPU's."""

    @property
    def peak(self) -> int:
        """The most at once, if a state is saved at that time."""
        return max(self.peaks.values()) + self.slack + (0 if self.copy_aside else self.copy)

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
    cpu: bool = False,
    constant: Callable[[VisionLanguageModel], Collection[str]] | None = None,
    writers: int = 1,
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
        cpu: the device is a processor: its memory is the C library's, and holds the copy for a saved state too.
        constant: names of parameters that a saved state need not copy; None = states are not written beside training.
        writers: devices that hold the same and share out the writing of it.

    Raises:
        ValueError: as `optim.freeze`.
    """
    with FakeTensorMode(), Ledger(pack.targets, Heap() if cpu else None) as ledger:
        with torch.no_grad():
            model = build().train()
        saved = _saved(model, constant)  # first: to find out changes what is frozen
        optimizers = Optimizers(model, trains, optim, frozen)
        with ledger.counts("batch"):
            batch = pack.batch(model.config.text.rope_axes, model.config.vision.patch_values)
        ledger.follow(model)
        if shard > 1:  # gradients leave as they come, in pieces
            for p in optimizers.params:
                p.register_post_accumulate_grad_hook(_drop)
        peaks, kept = _passes(ledger, lambda: losses(model, batch).sum(), min(2, accumulate), bfloat16)
        for p in optimizers.params if shard > 1 else ():
            p.grad = torch.empty_like(p)
        gradients = _by_part((name, p.grad) for name, p in model.named_parameters() if p.grad is not None)
        with ledger.phase("optimizer step", peaks):
            optimizers.step(0.5)  # makes its state
    optimizer = _state_by_part(model, optimizers)
    found = StepMemory(
        parameters=_by_part(model.named_parameters()),
        gradients=gradients,
        optimizer=optimizer,
        activations={part: kept[part] for part in PARTS},
        copies=kept[COPIES],
        batch=kept["batch"],
        peaks=_later(peaks, sum(optimizer.values()), sum(gradients.values()) if summed else 0),
        slack=ledger.slack,
        copy=(saved + sum(optimizer.values())) // (writers * shard) if constant else 0,
        copy_aside=not cpu,
    )
    return found if shard == 1 else _in_pieces(found, model, shard, accumulate > 1 and whole_gradients, bfloat16)


def _passes(
    ledger: Ledger, loss_of: Callable[[], Tensor], packs: int, bfloat16: bool
) -> tuple[dict[Phase, int], Counter[str]]:
    """Goes forward and backward: peaks, and what is kept in between. A second pack finds the gradients of the first."""
    peaks: dict[Phase, int] = {}
    kept: Counter[str] = Counter()
    for _ in range(packs):
        with ledger.phase("forward pass", peaks), torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            loss = loss_of()
        kept = ledger.held_by_purpose()
        with ledger.phase("backward pass", peaks):
            loss.backward()
        del loss
    return peaks, kept


def _saved(model: VisionLanguageModel, constant: Callable[[VisionLanguageModel], Collection[str]] | None) -> int:
    """Bytes of the parameters that each saved state holds."""
    left_out = constant(model) if constant else ()
    return sum(p.nbytes for name, p in model.named_parameters() if name not in left_out)


def _drop(p: Tensor) -> None:
    p.grad = None


def _later(peaks: Mapping[Phase, int], states: int, summed: int) -> dict[Phase, int]:
    """In later steps the optimizer's state is there from the beginning; `summed` comes on top when it steps."""
    return {phase: peak + (summed if phase == "optimizer step" else states) for phase, peak in peaks.items()}


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
