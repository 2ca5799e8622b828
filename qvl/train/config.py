"""A recipe, typed: what to build, what each stage trains on, with which optimizer, for how long.

Knows: the fields of a recipe file. Does not know: how any of it is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

from qvl.data.user.config import DataConfig
from qvl.data.world.config import WorldConfig
from qvl.models.lora import LoraConfig
from qvl.train.bounds import ANY, check_bounds

_MOST_SEED = 2**63 - 1
"""Generators of torch take no more."""


@dataclass(frozen=True)
class OptimConfig:
    """Matrices of the blocks go to Muon (or AdamW), everything else to AdamW."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: float = 1e-3
    """Peak learning rate of AdamW."""
    muon_lr: float = 3e-3
    """Peak learning rate of Muon, scaled to match AdamW's update size (`match_rms_adamw`)."""
    min_lr_ratio: float = 0.1
    """Learning rate at the end of the cosine, as a share of the peak."""
    warmup: float = 0.02
    """Linear warm-up, as a share of the stage."""
    warmup_steps: int = 0
    """Linear warm-up in steps instead, for a stage that counts its `steps`."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-8
    weight_decay: float = 0.05
    """Decoupled; matrices and embeddings only, never norms and biases."""
    clip: float = 1.0
    """Largest gradient norm over all trained parameters; 0 = off."""
    vision_lr: float = 1.0
    """Factor on the learning rate of the vision tower (blocks and patch embedding)."""
    merger_lr: float = 1.0
    """Factor on the learning rate of the merger or adapter."""
    text_lr: float = 1.0
    """Factor on the learning rate of the language model."""
    vision_layer_decay: float = 1.0
    """Layer-wise decay: vision block i of n gets factor decay^(n - i), the patch embedding decay^(n + 1)."""

    def __post_init__(self) -> None:
        rates = ("lr", "muon_lr", "vision_lr", "merger_lr", "text_lr", "vision_layer_decay")
        check_bounds(self, "optim.", **dict.fromkeys((*rates, "eps", "weight_decay", "clip"), (0, ANY)))
        check_bounds(self, "optim.", min_lr_ratio=(0, 1), warmup=(0, 1))
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"optim.betas are {self.betas}; both must be at least 0 and below 1")


Part = Literal["vision", "merger", "text"]


@dataclass(frozen=True)
class StageConfig:
    """One stage: what it reads, what it trains, how long."""

    name: str
    trains: tuple[Part, ...]
    """Parts that learn; the others are frozen. In a run with `lora` it is their adapters that learn."""
    share: float
    """Share of the run's `minutes` (if `steps` and `epochs` are 0)."""
    least_seconds: float = 0.0
    """What the stage needs before anything comes of it. In a run so short that its share is less, it takes these, and
    the others share the rest (at most half of the time is given away so)."""
    world: WorldConfig = field(default_factory=WorldConfig)
    """The embedded world's tasks, sizes and turns of this stage."""
    source: Literal["world", "easy_vqa"] = "world"
    """What is read: the embedded world, or easy-VQA's training pictures (`qvl data parts --only easy-vqa`), of which
    `world` then says `style`, `turns`, `seed` and, by `sizes`, how large they are shown."""
    easy_vqa: float = 0.0
    """Share of samples that come from easy-VQA beside the world's, in the same style; measured with them too."""
    chat_format: Literal["chatml", "raw"] = "raw"
    objective: Literal["next_token", "told", "match"] = "next_token"
    """`told`: pictures are told in words (`world.medium: words`), for the language model alone. `match`: vision tokens
    learn to look like the words in their places (`world.medium: both`), the stand-in for the pretrained vision tower of
    the published models."""
    place: float = 0.0
    """`told` and `match`: a vision token also tells where in the picture it is, by a sine-cosine vector of this length,
    relative to a word vector's. For language models that start from nothing, before a tower that can know it: Qwen-VL's
    has a table of positions, Qwen2-VL's knows only how far patches are from each other."""
    steps: int = 0
    """Train exactly this many steps instead of a share of the time."""
    epochs: float = 0.0
    """Train until the data were gone through this many times (runs on files only)."""
    frozen: tuple[str, ...] = ()
    """Parameters that stay frozen although their part learns: patterns of names, such as `embed.*` or
    `decoder.layers.[0-9].*`."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    tokens_per_pack: int = 4096
    """Most tokens of one packed forward pass."""
    patches_per_pack: int = 4096
    """Most patches of one packed forward pass."""
    same_task: bool = False
    """Samples of one task only in a pack (Qwen-VL's multi-task stage); `accumulate` then mixes tasks in a step."""
    samples_per_pack: int = 0
    """Most samples in a pack; 0 = as many as fit."""
    tokens_per_sample: int = 0
    """Longer samples get smaller pictures or are left out and named; 0 = what a pack holds."""
    accumulate: int = 1
    """Packs per optimizer step, of all ranks together."""
    evaluate: bool = True
    """Measure on the development split when the stage ends."""

    def __post_init__(self) -> None:
        if not self.name.strip() or "/" in self.name or self.name.startswith("."):
            raise ValueError(f"a stage is called {self.name!r}; its scores go to a folder of its name, so it needs one")
        where = f"stage {self.name}: "
        counts = (
            "steps",
            "epochs",
            "share",
            "least_seconds",
            "patches_per_pack",
            "samples_per_pack",
            "tokens_per_sample",
        )
        check_bounds(self, where, **dict.fromkeys(counts, (0, ANY)), tokens_per_pack=(1, ANY), accumulate=(1, ANY))
        if not (self.steps or self.epochs or self.share):
            raise ValueError(f"{where}it has no end: give it steps, epochs (of files) or a share of the run's minutes")
        if self.optim.warmup_steps and not 0 < self.optim.warmup_steps < self.steps:
            raise ValueError(
                f"stage {self.name}: warmup_steps is {self.optim.warmup_steps}, the stage has {self.steps} steps; give "
                "it more steps, or a warm-up as a share (warmup)"
            )
        if not 0 <= self.easy_vqa <= 1 or (
            self.easy_vqa and (self.source != "world" or self.objective != "next_token")
        ):
            raise ValueError(
                f"stage {self.name}: easy_vqa is {self.easy_vqa}; it is a share (0 to 1) beside source: world, for the "
                "next_token objective"
            )
        if self.place < 0 or (self.place and self.objective == "next_token"):
            raise ValueError(
                f"stage {self.name}: place is {self.place}; it is a length above 0, for the told and match objectives"
            )
        room = self.samples_per_pack * self.tokens_per_sample
        if room > self.tokens_per_pack:
            raise ValueError(
                f"stage {self.name}: {self.samples_per_pack} samples of up to {self.tokens_per_sample} tokens do not "
                f"fit a pack of {self.tokens_per_pack}; set tokens_per_pack to at least {room}"
            )

    @property
    def schedule(self) -> OptimConfig:
        """`optim` with the warm-up as a share of the stage, however the recipe says it."""
        steps = self.optim.warmup_steps
        return replace(self.optim, warmup=steps / self.steps, warmup_steps=0) if steps else self.optim


@dataclass(frozen=True)
class PartsConfig:
    """What a preset begins as, instead of random numbers: paths, or names of fetched packages (`qvl data parts`)."""

    language: str = ""
    """Qwen2-VL: smollm2-135m, a GGUF file, or a Hugging Face folder of a Qwen2 or Llama. Qwen-VL: the folder of a
    Qwen-7B. Empty = random."""
    vision: str = ""
    """Qwen2-VL: dinov2-s14, an ONNX file with a DINOv2, or a folder of DINOv2, CLIP, DFN or OpenCLIP. Qwen-VL: a file
    of OpenCLIP's ViT-bigG/14. Empty = random."""
    rope_sections: tuple[int, ...] = ()
    """Qwen2-VL: rotary frequencies for time, row and column of the language model, fastest first; empty = in the
    released proportion. Text alone is read the same with any: its three positions are equal."""


@dataclass(frozen=True)
class ParallelConfig:
    """How the ranks of a run share a model. Ranks = replicas x `shard` x `tensor`; what is left over are replicas."""

    shard: int = 1
    """Ranks that hold weights, gradients and optimizer state together, each a piece (FSDP2); 0 = all there are. 1 =
    every rank holds everything."""
    tensor: int = 1
    """Ranks that compute each pack together, each some of the heads and hidden units (tensor parallelism). They talk in
    every layer, so they should sit in one machine."""
    recompute: Literal["none", "selective", "full"] = "none"
    """What a block has computed is kept for the backward pass (`none`), or computed there again: all of it (`full`, a
    third more computing), or all but matrix products and attention (`selective`)."""
    compile: bool = False
    """Blocks through torch.compile, all but their attention."""
    reduce: Literal["step", "pack"] = "step"
    """With `shard`: gradients travel once per step and each rank holds a whole gradient until then, or after every pack
    and it holds a piece."""

    def __post_init__(self) -> None:
        if self.shard < 0 or self.tensor < 1:
            raise ValueError(f"parallel needs shard >= 0 and tensor >= 1, got shard={self.shard}, tensor={self.tensor}")
        if self.compile and self.recompute == "selective":
            raise ValueError(
                "parallel.compile computes again by itself what is cheap; take recompute: none or full with it"
            )


@dataclass(frozen=True)
class TrainConfig:
    run: str
    """Folder of the run: checkpoints, logs, predictions, report."""
    stages: tuple[StageConfig, ...]
    model: str = "tiny"
    """Name of a model preset, which starts from random weights; or a model folder or hub id to start from."""
    data: DataConfig = field(default_factory=DataConfig)
    """Files to train on instead of the stages' worlds."""
    needs_data: bool = False
    """The recipe is for the user's own files: without any it says so instead of training on the stages' worlds."""
    lora: LoraConfig | None = None
    """Train adapters beside the frozen weights instead of the weights."""
    parts: PartsConfig = field(default_factory=PartsConfig)
    """Pretrained parts of a preset. Those of a Qwen2-VL may be of other sizes, which replace the preset's."""
    image_px: int = 0
    """Qwen-VL: side of the square that every picture becomes; 0 = the model's."""
    queries: int = 0
    """Qwen-VL: vision tokens per picture, a square number; 0 = the model's."""
    min_pixels: int = 0
    """Qwen2-VL, of a preset: smaller pictures are enlarged to so many pixels (height * width), for a vision tower that
    was trained on larger ones; 0 = as small as the recipe's worlds draw them."""
    vocabulary: Literal["world", "official"] = "world"
    """Of a preset. `world`: Qwen's pieces, reduced to what the recipe's worlds can say; `official`: all of them."""
    precision: Literal["float32", "bfloat16", "auto"] = "float32"
    """Of matrix products, forward and backward (autocast); weights, their updates and losses stay float32. `auto`:
    bfloat16 where the machine has units for it, which a CPU may not have."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """How several ranks share the model, and what saves memory on each. May change when a run goes on."""
    minutes: float = 15.0
    """Training time of all stages that give a share. Evaluation comes on top."""
    seed: int = 0
    threads: int = 0
    """CPU threads; 0 = all cores."""
    log_every: int = 10
    peak_tflops: float = 0.0
    """10^12 FLOP/s that one rank's device could do at `precision`, for the utilisation in the log; 0 = measured at the
    start by a matrix product."""
    profile_steps: int = 0
    """Record so many steps, after the first two, into the run's `profile/`."""
    save_every_minutes: float = 1.0
    keep: int = 2
    """Saved states that stay, the newest ones."""
    save_in_background: bool = True
    """Train on while a state is written; takes memory for a copy of weights and optimizer states. false = wait."""
    eval_samples: int = 100
    """Held-out questions per task after each stage."""
    final_eval_samples: int = 200
    """Held-out questions per task at the end."""

    def __post_init__(self) -> None:
        sizes = ("image_px", "queries", "min_pixels", "threads", "profile_steps")
        check_bounds(self, "", **dict.fromkeys((*sizes, "minutes", "peak_tflops", "save_every_minutes"), (0, ANY)))
        check_bounds(self, "", log_every=(1, ANY), seed=(0, _MOST_SEED))
        if not self.run.strip():
            raise ValueError(f"run is {self.run!r}; name the folder of the run (. is this one)")
        if min(self.eval_samples, self.final_eval_samples) < 1:
            raise ValueError(
                f"eval_samples is {self.eval_samples} and final_eval_samples {self.final_eval_samples}; both must be "
                "at least 1. A stage that is not to be measured says evaluate: false"
            )
        timed = [stage.name for stage in self.stages if not stage.steps and not stage.epochs]
        if timed and not self.minutes:
            raise ValueError(f"minutes is 0, but {', '.join(timed)} get a share of them; give minutes, steps or epochs")
