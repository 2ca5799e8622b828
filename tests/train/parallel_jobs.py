"""Training steps on mixed packs, as one process or as one of several: what the tests of parallel training compare."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import torch.distributed as dist
from ranks_jobs import Even, small_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from qvl.batch import Batch
from qvl.data.packing import Pack
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.layers.attention import AttnContext
from qvl.layers.decoder import BeyondTraining, DecoderConfig
from qvl.models.lora import LoraConfig, add_lora
from qvl.models.qwen_vl import config as v1
from qvl.models.qwen_vl.model import QwenVL
from qvl.models.vlm import VisionLanguageModel
from qvl.text.family import QWEN_VL
from qvl.text.messages import Image, Message, Text, Video
from qvl.text.tokenizer import Tokenizer
from qvl.train.config import OptimConfig, ParallelConfig, Part, TrainConfig
from qvl.train.flops import FlopCount
from qvl.train.interrupt import Stopped
from qvl.train.objectives import objective_of
from qvl.train.optim import Optimizers
from qvl.train.parallel import Parallel
from qvl.train.ranks import Ranks
from qvl.train.shards import whole
from qvl.train.trainer import Trainer

ALL: tuple[Part, ...] = ("vision", "merger", "text")
STEPS = 20
SAMPLES = 8


@dataclass(frozen=True)
class Case:
    """One way to train the same steps."""

    layout: ParallelConfig = field(default_factory=ParallelConfig)
    family: str = "qwen2_vl"
    optim: str = "muon"
    lower: bool = False
    lora: bool = False
    packs: int = 4
    """Packs that the eight samples of a step come in, of all ranks together."""
    steps: int = STEPS
    trains: tuple[tuple[Part, ...], ...] = (ALL,)
    """By stage; the steps are shared out among them."""


def small_qwen_vl() -> tuple[QwenVL, Processor]:
    tokenizer = Tokenizer.reduced([], base_ranks=0, family=QWEN_VL)
    end = tokenizer.special("<|endoftext|>")
    config = v1.QwenVLConfig(
        DecoderConfig(32, 2, 4, 4, 8, 48, rope_theta=20.0, rope_float32=True, beyond=BeyondTraining()),
        v1.VisionConfig(width=32, layers=2, heads=2, mlp_hidden=32, image_px=56, table_side=3),
        v1.AdapterConfig(queries=4, heads=2),
    )
    ids = v1.TokenIds(image_start=tokenizer.special("<img>"), bos=end, eos=end)
    model = QwenVL(v1.with_vocabulary(config, tokenizer.vocab_size, ids))
    model.init_weights(0)
    return model, Processor(tokenizer, ProcessorConfig.qwen_vl(56, 4, patch=14, resize="fast"))


def fresh(case: Case) -> tuple[VisionLanguageModel, Processor]:
    model, processor = small_model() if case.family == "qwen2_vl" else small_qwen_vl()
    if case.lora:
        add_lora(model, LoraConfig(rank=2, alpha=4.0, parts=("text", "vision", "merger")))
    return model, processor


def step_packs(processor: Processor, step: int, packs: int) -> list[Pack]:
    """The packs of a step: three samples of text alone, three with pictures, two with a clip (Qwen-VL: pictures). In
    every third step the first packs are text alone, otherwise any order."""
    rng = np.random.default_rng(step)
    clip = "video" if processor.config.rope_axes == 3 else "picture"
    kinds = ["text"] * 3 + ["picture"] * 3 + [clip] * 2
    if step % 3:
        rng.shuffle(kinds)
    sequences = [processor.sequence(_messages(kind, rng), labels=True, chat_format="raw") for kind in kinds]
    found = []
    for numbers in np.array_split(np.arange(SAMPLES), packs):
        batch = processor.pack([sequences[i] for i in numbers])
        found.append(Pack(batch, torch.zeros(batch.target_count, dtype=torch.long), 0, len(numbers)))
    return found


def _messages(kind: str, rng: np.random.Generator) -> tuple[Message, ...]:
    def pixels(height: int, width: int) -> Any:
        return rng.integers(0, 255, (height, width, 3), np.uint8)

    digits = "".join(str(d) for d in rng.integers(0, 10, int(rng.integers(4, 20))))
    shown: tuple[Any, ...] = ()
    if kind == "picture":
        shown = (Image(pixels(56, 28 * int(rng.integers(2, 4)))),)
    if kind == "video":
        shown = (Video([pixels(56, 56) for _ in range(4)]),)
    return Message("user", (*shown, Text("count"))), Message("assistant", (Text(digits),))


@patch("qvl.train.optim.fast_bfloat16", lambda device: False)  # Muon would round what differs in a last bit
def train(case: Case, ranks: Ranks | None = None) -> dict[str, Any]:
    """Trains and tells: loss and gradient norm of every step, the first gradients and the last weights, whole."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    ranks = (ranks or Ranks()).in_lanes(case.layout.tensor)
    model, processor = fresh(case)
    parallel = Parallel(model.train(), case.layout, ranks, lower=case.lower)
    told: dict[str, Any] = {"loss": [], "norm": [], "idle": 0}
    # Muon makes whole steps of what is rounding alone in a gradient: the lower the rate, the less such steps part runs.
    lr = 1e-4 if case.lower else 1e-3
    optim = OptimConfig(name=case.optim, lr=lr, muon_lr=3 * lr, warmup=0.2)  # pyrefly: ignore
    for stage, trains in enumerate(case.trains):
        optimizers, flops = Optimizers(model, trains, optim, (), parallel.orders()), FlopCount(model)
        per_stage = case.steps // len(case.trains)
        for step in range(stage * per_stage, (stage + 1) * per_stage):
            made = step_packs(processor, step, case.packs)[ranks.lane :: ranks.lanes]
            loss, items = _backward(parallel, parallel.deal(made, partial(_cost, flops)))
            total = ranks.sum(torch.tensor([loss, items] if ranks.leads else [0.0, 0.0], dtype=torch.float64))
            parallel.sum_gradients(optimizers.params, 1 / float(total[1]))
            if step == 0:
                told["gradients"] = gradients(parallel)
            told["loss"].append(float(total[0] / total[1]))
            told["norm"].append(optimizers.clip())
            optimizers.step((step + 1) / case.steps)
    told["weights"] = {n: p.detach().clone() for n, p in parallel.whole_model().named_parameters()}
    told["dtypes"] = {str(p.dtype) for p in model.parameters()}
    told["compiled"] = torch._dynamo.utils.counters["stats"]["unique_graphs"] if case.layout.compile else 0
    return told


def _cost(flops: FlopCount, pack: Pack) -> float:
    return float(flops.of_batch(pack.batch, pack.batch.target_count).total)


def _backward(parallel: Parallel, held: list[Pack]) -> tuple[float, int]:
    loss, items = 0.0, 0
    for number, pack in enumerate(held, 1):
        losses_X = parallel.losses(objective_of("next_token"), pack.batch, last=number == len(held))
        losses_X.sum().backward()
        loss, items = loss + float(losses_X.detach().sum()), items + len(losses_X)
    return loss, items


def gradients(parallel: Parallel) -> dict[str, Tensor]:
    """Whole, in the model's order of rows."""
    orders, named = parallel.orders(), parallel.model.named_parameters()
    return {name: whole(p.grad, orders.get(p)).clone() for name, p in named if p.grad is not None}


def train_all(ranks: Ranks, cases: dict[str, Case], folder: Path) -> None:
    """All cases in one launch; every rank leaves what it found."""
    for name, case in cases.items():
        torch.save(train(case, ranks), folder / f"{name}.{ranks.place.rank}")
        ranks.wait()


def kept_bytes(case: Case) -> int:
    """What lives only for the backward pass, once the forward pass is over."""
    model, processor = fresh(case)
    parallel = Parallel(model.train(), case.layout, Ranks())
    made: dict[int, tuple[weakref.ref[Any], int]] = {}

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            for tensor in tree_leaves(out):
                if isinstance(tensor, Tensor):
                    storage = tensor.untyped_storage()
                    made[storage.data_ptr()] = (weakref.ref(storage), storage.nbytes())
            return out

    batch = step_packs(processor, 1, 1)[0].batch
    with Watch():
        losses_X = parallel.losses(objective_of("next_token"), batch)
    assert losses_X.requires_grad
    return sum(size for storage, size in made.values() if storage() is not None)


def count_messages(ranks: Ranks, folder: Path) -> None:
    """How often gradients travel in a step of two packs per rank, by what `reduce` says."""
    found = {}
    name = "reduce_scatter_single" if hasattr(dist, "reduce_scatter_single") else "reduce_scatter_tensor"  # torch 2.12
    send = getattr(dist, name)
    for reduce in ("step", "pack"):
        case = Case(ParallelConfig(shard=2, reduce=reduce), steps=1)
        with patch.object(dist, name, side_effect=send) as sent:
            train(case, ranks)
        found[reduce] = sent.call_count
    torch.save(found, folder / f"messages.{ranks.place.rank}")


def skip_the_tower(ranks: Ranks, folder: Path) -> None:
    """The first rank reads text alone, the other sees pictures: first as models do, then with a model that does not
    call its vision tower when there is nothing to see."""
    model, processor = small_model()
    parallel = Parallel(model.train(), ParallelConfig(shard=2), ranks)
    text, pictures = step_packs(processor, 0, 4)[0], step_packs(processor, 0, 4)[3]
    assert not text.batch.grids
    assert pictures.batch.grids

    def step() -> None:
        parallel.losses(objective_of("next_token"), (pictures if ranks.place.rank else text).batch).sum().backward()
        ranks.wait()

    step()
    started = time.perf_counter()
    step()
    limit = 10 + 10 * (time.perf_counter() - started)
    (folder / f"done.{ranks.place.rank}").touch()
    see = model.see

    def see_if_shown(batch: Batch, attn: AttnContext) -> Tensor:
        return see(batch, attn) if batch.grids else torch.zeros(0, model.config.text.width)

    model.see = see_if_shown  # pyrefly: ignore
    threading.Timer(limit, lambda: os._exit(7)).start()
    step()
    (folder / f"not stuck.{ranks.place.rank}").touch()


def fit_all(ranks: Ranks, runs: list[tuple[TrainConfig, int]]) -> None:
    """Several runs in one launch, each from its config and the step after which it is stopped (0 = never)."""
    for config, stop_after in runs:
        fit(ranks, config, stop_after)


@patch("qvl.train.optim.fast_bfloat16", lambda device: False)
def fit(ranks: Ranks, config: TrainConfig, stop_after: int = 0) -> None:
    """Trains on even samples; the whole model is left by the first rank."""
    torch.set_num_threads(1)
    model, processor = small_model()
    trainer = Trainer(config, model, processor, lambda stage: Even(), ranks=ranks)
    step = trainer._step

    def counted(run: Any, run_log: Any) -> Any:
        if stop_after and run.clock.step == stop_after - 1:
            trainer.stop()
        return step(run, run_log)

    trainer._step = counted  # pyrefly: ignore
    with contextlib.suppress(Stopped):
        trainer.fit()
    trained = trainer.parallel.whole_model(everywhere=False)
    if ranks.first:
        torch.save(trained.state_dict(), Path(config.run) / "weights.pt")
    else:
        assert config.parallel == ParallelConfig() or {p.device.type for p in trained.parameters()} == {"meta"}
