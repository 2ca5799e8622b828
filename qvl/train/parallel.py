"""One model on several ranks: what is done to it, from outside, in one order.

Knows: which matrices are cut by rows and which by columns, what is computed again in the backward pass, which pieces
travel together. Does not know: data, objectives, optimizers; models, in turn, know nothing of this.

The order: tensor parallelism (every rank of a group computes some heads and some of the hidden units), compilation,
recomputation, sharding (FSDP2). Each sees what the one before has made: compiled code may be run again, and pieces are
gathered before any of it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MethodType
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from qvl.batch import Batch
from qvl.data.packing import Pack
from qvl.layers.decoder import DecoderLayer
from qvl.layers.linear import FusedLinear
from qvl.models.lora import has_lora
from qvl.models.qwen2_vl import vit as qwen2_vl_vit
from qvl.models.qwen_vl import vit as qwen_vl_vit
from qvl.models.vlm import VisionLanguageModel
from qvl.train.blocks import blocks_of, compile_blocks, recompute_block, vision_blocks
from qvl.train.config import ParallelConfig
from qvl.train.deal import deal, idle
from qvl.train.objectives import Objective
from qvl.train.ranks import Ranks
from qvl.train.shards import deal_rows, is_split, local, orders_of, whole

_EVEN_ROWS = 64
"""On the CPU a product of bfloat16 matrices is compiled for its shape when that shape first comes, and kept for a time
(oneDNN). Packs of any number of tokens would always be new: a seventh of a small model's time, and memory that grows
for minutes."""
_AXES = ("replica", "shard", "tensor")


@final
class Parallel:
    """A model as the ranks of a run hold it together.

    By default each holds all of it, and gradients are summed once per step (`Ranks.sum_gradients`). With `shard` or
    `tensor` every rank holds pieces: parameters become DTensors, in float32 whatever the products are computed in.
    """

    def __init__(
        self, model: VisionLanguageModel, config: ParallelConfig, ranks: Ranks, *, lower: bool = False
    ) -> None:
        """Changes `model`, whole on every rank: its values become the first rank's, each rank keeps its pieces.

        Args:
            lower: matrix products in bfloat16; gathered weights then travel in bfloat16, gradients in float32.

        Raises:
            ValueError: the ranks or the model cannot be divided so.
        """
        self.model = model
        self.config = config
        self.ranks = ranks
        self._lower = lower
        self.sharded = (config.shard or ranks.lanes) > 1 or config.tensor > 1
        self._losses: Callable[[Objective, Batch], Tensor] = MethodType(_losses, model)
        if not self.sharded:
            model.to(ranks.device)  # else piece by piece: the whole may not fit there
        ranks.copy_from_first(model)
        mesh = _mesh(config, ranks) if self.sharded else None
        self._without_values = _without_values(model) if self.sharded else None
        self._tensor_group = mesh["tensor"].get_group() if mesh is not None else None
        if mesh is not None and config.tensor > 1:
            _split_matrices(model, mesh["tensor"])
        blocks = list(blocks_of(model))
        if config.compile:
            compile_blocks(blocks)
        if config.recompute != "none":
            for block in blocks:
                recompute_block(block, config.recompute)
        if mesh is not None:
            self._shard(mesh)

    def losses(self, objective: Objective, batch: Batch, *, last: bool = True) -> Tensor:
        """The losses of one pack, float32 [X].

        Every rank must call it equally often. The towers take part in every call, on no patches and no tokens if need
        be: whoever skipped one would leave the other ranks waiting for its pieces.

        Args:
            last: the last pack of the step; gradients travel in its backward pass.
        """
        if self.sharded:
            assert isinstance(self.model, FSDPModule)
            self.model.set_requires_gradient_sync(last or self.config.reduce == "pack")
            self.model.set_requires_all_reduce(last)
            self.model.set_is_last_backward(last)
        if self._lower and self.ranks.device.type == "cpu":
            batch = batch.filled(_EVEN_ROWS)
        with torch.autocast(self.ranks.device.type, torch.bfloat16, enabled=self._lower):
            return self._losses(objective, batch)

    def deal(self, made: list[Pack], cost: Callable[[Pack], float]) -> list[Pack]:
        """The packs of a step that this rank computes, given those that it made: equally many on every rank (if it is
        sharded), and at any time packs of similar cost."""
        if self.ranks.lanes == 1 or (len(made) == 1 and not self.sharded):
            return made
        dealt = deal(self.ranks.gather_lanes([cost(pack) for pack in made]))
        moves = [(m.lane, m.number, lane) for lane, packs in enumerate(dealt) for m in packs if m.lane != lane]
        received = self.ranks.deliver(made, moves)
        own = self.ranks.lane
        held = [made[m.number] if m.lane == own else received[m.lane, m.number] for m in dealt[own]]
        rounds = max(map(len, dealt)) if self.sharded else 0
        return held + [idle(made[0])] * (rounds - len(held))

    def sum_gradients(self, parameters: Sequence[nn.Parameter], scale: float) -> None:
        """Every gradient becomes its sum over all packs of the step times `scale`."""
        if not self.sharded:
            self.ranks.sum_gradients(parameters, scale)
            return
        for p in parameters:
            if p.grad is not None:
                local(p.grad).mul_(scale)
        if self.config.tensor > 1:
            # The same on all ranks of a group, but for the order in which a device may add: weights must not drift.
            same = [local(p.grad) for p in parameters if p.grad is not None and not is_split(p)]
            self.ranks.average(same, self._tensor_group)

    def orders(self) -> dict[Tensor, Tensor]:
        """Of each parameter whose rows are dealt, the order in which they are held (`qvl.train.shards`)."""
        return orders_of(self.model, self.config.tensor)

    def whole_model(self, *, everywhere: bool = True) -> VisionLanguageModel:
        """The model with all its weights, for a single device: the model itself if every rank holds all of it.

        Every rank calls it. It takes the memory of the weights in float32, on the ranks that get them.

        Args:
            everywhere: False = only the first rank gets weights, the others a model without values (meta device).
        """
        if self._without_values is None:
            return self.model
        orders = self.orders()
        values: dict[int, Any] = {}
        empty = self._without_values
        for held, place in zip(_tensors(self.model), _tensors(empty), strict=True):
            full = whole(held.detach(), orders.get(held))
            if everywhere or self.ranks.first:
                full = full.clone() if everywhere else full.cpu()
                values[id(place)] = nn.Parameter(full, held.requires_grad) if isinstance(place, nn.Parameter) else full
        return copy.deepcopy(empty, values).train(self.model.training)

    def _shard(self, mesh: DeviceMesh) -> None:
        """FSDP2: pieces of every block, of what else the vision tower has and of the rest are gathered together."""
        policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if self._lower else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,  # angles of the rotation stay float32
        )
        data = mesh["shard"] if mesh.size(0) == 1 else mesh["replica", "shard"]
        for module in (*blocks_of(self.model), self.model.visual, self.model):
            fully_shard(module, mesh=data, mp_policy=policy)
        for module in self.model.modules():
            if isinstance(module, FSDPModule):
                module.set_gradient_divide_factor(1.0)  # sums, divided by the targets of the whole step later
                module.set_force_sum_reduction_for_comms(True)
        self.model.set_reduce_scatter_unused_params(True)  # pyrefly: ignore
        name = "losses_of"
        setattr(self.model, name, self._losses)
        register_fsdp_forward_method(self.model, name)
        self._losses = getattr(self.model, name)


def _losses(model: VisionLanguageModel, objective: Objective, batch: Batch) -> Tensor:
    return objective.losses(model, batch)


def _mesh(config: ParallelConfig, ranks: Ranks) -> DeviceMesh:
    """The ranks as a box of replica x shard x tensor; neighbours share the matrices of one pack."""
    shard = config.shard or ranks.lanes
    if ranks.lanes % shard:
        raise ValueError(
            f"parallel.shard is {shard}, but {ranks.place.size} ranks in groups of {config.tensor} (parallel.tensor) "
            f"are {ranks.lanes}, which is no multiple of it; choose ranks = replicas x shard x tensor, or shard: 0 for "
            "all there are"
        )
    return init_device_mesh(ranks.device.type, (ranks.lanes // shard, shard, config.tensor), mesh_dim_names=_AXES)


def _split_matrices(model: VisionLanguageModel, mesh: DeviceMesh) -> None:
    """Every rank of `mesh` gets some heads and some hidden units: the first matrix of a pair is cut by rows, the second
    by columns, so that one sum after the second is all they say to each other. What is small stays whole.

    Raises:
        ValueError: heads, hidden units or words cannot be shared out evenly; or the model has adapters.
    """
    ranks = mesh.size()
    if has_lora(model):
        raise ValueError("adapters (lora) are small: train them with parallel.shard instead of parallel.tensor")
    by_rows, by_columns = ColwiseParallel(), RowwiseParallel()
    text, vision = {"qkv": by_rows, "out": by_columns}, {"qkv": by_rows, "out": by_columns}
    text |= {"mlp.gate_up": by_rows, "mlp.down": by_columns}
    vision |= {"fc1": by_rows, "fc2": by_columns}
    for block in model.decoder.layers:
        assert isinstance(block, DecoderLayer)
        queries, keys, values = (_share(n, ranks, "heads of the language model") for n in block.split)
        block.split = (queries, keys, values)
        _cut(block, text, mesh)
    for block in vision_blocks(model):
        assert isinstance(block, qwen_vl_vit.VisionBlock | qwen2_vl_vit.VisionBlock)
        block.heads = _share(block.heads, ranks, "heads of the vision tower")
        _cut(block, vision, mesh)
    for name, module in model.visual.named_children():
        if name == "merger":  # Qwen-VL's adapter, one attention over all patches, stays whole
            _cut(module, {"fc1": by_rows, "fc2": by_columns}, mesh)
            module.register_forward_hook(lambda module, given, seen: seen.clone())  # FSDP warns of views
    _share(model.config.vocab_size, ranks, "words of the vocabulary")
    tied = model.head.weight is model.embed.weight
    words = {
        "embed": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
    }
    _cut(model, words, mesh)
    if tied:
        model.head.weight = model.embed.weight


def _cut(module: nn.Module, styles: Mapping[str, ParallelStyle], mesh: DeviceMesh) -> None:
    """Cuts the named layers; every rank has all values already, so nothing is sent."""
    for name, style in styles.items():
        layer = module.get_submodule(name)
        if isinstance(layer, FusedLinear) and isinstance(style, ColwiseParallel):
            deal_rows(layer, mesh.size())
    parallelize_module(module, mesh, dict(styles), src_data_rank=None)


def _share(count: int, ranks: int, what: str) -> int:
    if count % ranks:
        raise ValueError(
            f"parallel.tensor is {ranks}, but the {count} {what} cannot be shared out evenly; choose a divisor of "
            f"{count}, and spread the rest by parallel.shard"
        )
    return count // ranks


def _without_values(model: VisionLanguageModel) -> VisionLanguageModel:
    """The same model on the meta device, two names of one parameter still one."""
    places: dict[int, Any] = {}
    for tensor in _tensors(model):
        empty = tensor.detach().to("meta")
        places[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    return copy.deepcopy(model, places)


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers, each once, in the model's order."""
    yield from model.parameters()
    yield from model.buffers()
