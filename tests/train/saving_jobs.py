"""What processes do in the tests of saving: functions that a process of its own finds by name."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import torch
from ranks_jobs import Even, small_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.models.vlm import VisionLanguageModel
from qvl.train import saver
from qvl.train.config import OptimConfig, StageConfig, TrainConfig
from qvl.train.optim import Optimizers
from qvl.train.ranks import Ranks
from qvl.train.saved import Point, Saved, saved_states
from qvl.train.state import load_into, named_tensors
from qvl.train.trainer import Trainer


def trainer(config: TrainConfig, ranks: Ranks | None = None) -> tuple[Trainer, Qwen2VL]:
    model, processor = small_model()
    return Trainer(config, model, processor, _even, ranks=ranks), model


def _even(stage: StageConfig) -> Even:
    return Even()


def train(ranks: Ranks, config: TrainConfig) -> None:
    """Trains on even samples; the first rank leaves the weights."""
    torch.set_num_threads(1)
    run, model = trainer(config, ranks)
    run.fit()
    if ranks.first:
        torch.save(model.state_dict(), Path(config.run) / "weights.pt")


def train_and_die(ranks: Ranks, config: TrainConfig, nth: int) -> None:
    """The last rank is killed in the middle of its `nth` write."""
    if ranks.place.rank == ranks.place.size - 1:
        _die_in_write(nth)
    train(ranks, config)


def _die_in_write(nth: int) -> None:
    write, save = saver.write_tensors, torch.save
    writes = []

    def count_writes(*arguments: object) -> None:
        writes.append(0)
        write(*arguments)  # type: ignore[arg-type]

    def count_tensors(tensor: object, file: object) -> None:
        save(tensor, file)  # type: ignore[arg-type]
        writes[-1] += 1
        if len(writes) == nth and writes[-1] == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    saver.write_tensors = count_writes
    torch.save = count_tensors


def train_on_spoilt(ranks: Ranks, config: TrainConfig, spoilt: tuple[str, ...]) -> None:
    """Samples of these names give a loss that is no number."""
    see = Qwen2VL.hidden

    def hidden(self: VisionLanguageModel, batch, vision_MD, attn):  # type: ignore[no-untyped-def]
        found = see(self, batch, vision_MD, attn)  # type: ignore[arg-type]
        return found * float("nan") if set(batch.names) & set(spoilt) else found

    Qwen2VL.hidden = hidden  # type: ignore[method-assign]
    train(ranks, config)


def shard_and_save(ranks: Ranks, checkpoint: Path) -> None:
    """A model held in parts is saved; what was saved is taken up by another one held in parts."""
    torch.set_num_threads(1)
    model, optimizers = sharded(ranks, seed=3)
    make_states(model, optimizers)
    point = Point(("one",), 0, True, 7, 1.5, 2.5, ((4, ()), (5, (1,))))
    with saver.Saver(checkpoint, ranks) as saving:
        saving.save(model, optimizers.all, point)
        saving.copied()
        before = {key: tensor.clone() for key, tensor in named_tensors(model, optimizers.all).items()}
        make_states(model, optimizers)  # the copy must not see this
        saving.finish(must=True)
        again, again_optimizers = sharded(ranks, seed=4)
        found = saved_states(checkpoint)[0]
        assert isinstance(found, Saved)
        load_into(found, again, again_optimizers.all, group=saving.group)
    after = named_tensors(again, again_optimizers.all)
    assert before.keys() == after.keys()
    assert all(
        torch.equal(before[key].to_local(), after[key].to_local()) for key in before if hasattr(after[key], "to_local")
    )
    whole = {key: t.full_tensor() if hasattr(t, "full_tensor") else t for key, t in before.items()}
    if ranks.first:
        torch.save(whole, checkpoint.parent / "whole.pt")


def sharded(ranks: Ranks, seed: int) -> tuple[Qwen2VL, Optimizers]:
    model, _ = small_model()
    model.init_weights(seed)
    mesh = init_device_mesh("cpu", (ranks.place.size,))
    for layer in model.decoder.layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, optimizers_of(model)


def optimizers_of(model: Qwen2VL) -> Optimizers:
    """AdamW and Muon, as plain PyTorch has them: their states are what is tested."""
    return Optimizers(model, ("vision", "merger", "text"), OptimConfig(name="adamw"))


def make_states(model: Qwen2VL, optimizers: Optimizers) -> None:
    """A step along made-up gradients."""
    for p in model.parameters():
        p.grad = torch.ones_like(p) * 0.1
    optimizers.step(0.5)
