"""What ranks do in the tests: functions that a process of its own finds by name."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from qvl.cli.shared import measure_together
from qvl.data.records import Sample
from qvl.engine.api import Generator, Reply, Request, Usage
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.messages import Image, Message, Text
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import token_ids
from qvl.train.config import StageConfig, TrainConfig
from qvl.train.ranks import Ranks
from qvl.train.trainer import Trainer


class Even:
    """Samples of exactly `tokens` tokens: pictures at odd indices, text alone at even ones. So with two lanes one rank
    never sees a picture."""

    tasks = ("count",)
    tokens = 40

    def __getitem__(self, index: int) -> Sample:
        rng = np.random.default_rng(index)
        shown = index % 2 == 1
        picture = (Image(rng.integers(0, 255, (56, 56, 3), np.uint8)),) if shown else ()
        answer = "".join(str(d) for d in rng.integers(0, 10, 12))
        question = "0" * (self.tokens - 12 - (7 if shown else 1))
        messages = (Message("user", (*picture, Text(question))), Message("assistant", (Text(answer),)))
        return Sample(f"even/{index}", "count", messages)


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer.reduced([], base_ranks=0)


def small_model(**text: int) -> tuple[Qwen2VL, Processor]:
    tokenizer = _tokenizer()
    config = Qwen2VLConfig(
        replace(DecoderConfig(32, 2, 4, 2, 16, 48, rope_theta=20.0, rope_sections=(2, 3, 3)), **text),
        VisionConfig(width=32, layers=2, heads=2, mlp_hidden=32),
        tie_embeddings=True,
    )
    model = Qwen2VL(with_vocabulary(config, tokenizer.vocab_size, token_ids(tokenizer)))
    model.init_weights(0)
    return model, Processor(tokenizer, ProcessorConfig(resize="fast"))


def train(ranks: Ranks, config: TrainConfig) -> None:
    """Trains on even samples; every rank leaves its weights."""
    torch.set_num_threads(1)
    model, processor = small_model()
    Trainer(config, model, processor, _even, ranks=ranks).fit()
    torch.save(model.state_dict(), Path(config.run) / f"weights{ranks.place.rank}.pt")


def _even(stage: StageConfig) -> Even:
    return Even()


def fail(ranks: Ranks, how: str) -> None:
    """The last rank fails, the others wait for it."""
    if ranks.place.rank == ranks.place.size - 1:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ValueError("rank 1 found 7 where 8 should be") if how == "wrong" else KeyError("a bug")
    ranks.wait()


class Canned(Generator):
    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks

    def generate(self, requests: Sequence[Request]) -> list[Reply]:
        me = self._ranks.place.rank
        return [Reply(f"{r.messages[0]} by {me}", (), "stop", (), Usage(1, 0, 1)) for r in requests]


def answer(ranks: Ranks, out: Path) -> None:
    """Five requests, then none, shared out."""

    def ask(generator: Generator) -> None:
        replies = generator.generate([Request((str(i),)) for i in range(5)])
        assert generator.generate([]) == []
        out.write_text(" | ".join(r.text for r in replies))

    measure_together(Canned(ranks), ranks, ask)
