"""What a training step costs: bytes that are held, operations that are done. Arithmetic only, nothing is run.

Knows: what a forward pass keeps for the backward pass, layer by layer; what optimizers keep; where memory peaks.
Does not know: pictures, recipes, devices' prices (`plan`).

Training is in float32. Checked against autograd's own saved tensors (tests/train/test_cost.py) and against the measured
peak of whole steps (`bench/plan.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import final

from torch import nn

from qvl.layers.attention import bucket_similar, explicit
from qvl.models.qwen2_vl.config import Qwen2VLConfig
from qvl.train.config import OptimConfig, Part
from qvl.train.optim import fused_parts, is_map, part_of

FLOAT = 4
_PARTS: tuple[Part, ...] = ("vision", "merger", "text")
_ADAMW_VALUES = 2
_MUON_VALUES = 1
_MUON_COPIES = 4
"""Of the largest stack of equal matrices, while it is orthogonalised: the stack, its normed copy, two products."""
_LOSS_COPIES = 3
"""Of the logits, when the backward pass begins: log-probabilities, their gradient, the logits' gradient."""


@dataclass(frozen=True)
class PackShape:
    """How much one forward pass holds."""

    seq_lens: tuple[int, ...]
    """Tokens of each sequence."""
    segment_lens: tuple[int, ...]
    """Patches of each picture (or pair of frames)."""
    targets: int
    """Tokens that are learned: only these get logits."""

    @property
    def tokens(self) -> int:
        return sum(self.seq_lens)

    @property
    def patches(self) -> int:
        return sum(self.segment_lens)


@final
@dataclass(frozen=True)
class Parameters:
    """How many values a part has, and how a Muon step divides them."""

    count: int
    matrices: tuple[tuple[int, int], ...]
    """Shapes of the projections that Muon would train (a fused matrix counts as its projections)."""


def parameters_of(model: nn.Module) -> dict[Part, Parameters]:
    """Of a model on any device; the meta device, which holds no values, is enough."""
    fused = fused_parts(model)
    counts: Counter[Part] = Counter()
    matrices: dict[Part, list[tuple[int, int]]] = {part: [] for part in _PARTS}
    for name, p in model.named_parameters():
        counts[part_of(name)] += p.numel()
        if is_map(name, p):
            matrices[part_of(name)] += [(rows, p.shape[1]) for rows in fused.get(p, (p.shape[0],))]
    return {part: Parameters(counts[part], tuple(matrices[part])) for part in _PARTS}


@final
@dataclass(frozen=True)
class StepMemory:
    """Bytes of one training step by purpose and part."""

    parameters: dict[Part, int]
    gradients: dict[Part, int]
    optimizer: dict[Part, int]
    activations: dict[Part, int]
    """Kept for the backward pass; the text's with the logits of the targets."""
    batch: int
    """Patch rows and tokens."""
    peak: int
    """The most that is held at once: activations are gone when all gradients are there."""
    peak_when: str


def step_memory(
    config: Qwen2VLConfig,
    parameters: Mapping[Part, Parameters],
    pack: PackShape,
    trains: Iterable[Part],
    optim: OptimConfig,
    *,
    accumulate: int = 1,
    cpu: bool = True,
) -> StepMemory:
    """Bytes of one optimizer step over `accumulate` packs like `pack`, on one device, in float32.

    Args:
        cpu: short segments are attended with their scores written out there (`attend_dense`).
    """
    trains = set(trains)
    held: dict[Part, int] = {part: FLOAT * parameters[part].count for part in _PARTS}
    gradients: dict[Part, int] = {part: held[part] if part in trains else 0 for part in _PARTS}
    optimizer: dict[Part, int] = {part: _state(parameters[part], optim) if part in trains else 0 for part in _PARTS}
    logits = FLOAT * pack.targets * config.vocab_size
    activations: dict[Part, int] = {
        "vision": _vision_kept(config, pack, cpu) if "vision" in trains else 0,
        "merger": _merger_kept(config, pack, trains),
        "text": _text_kept(config, pack, "text" in trains, cpu) + _LOSS_COPIES * logits,
    }
    batch = FLOAT * pack.patches * config.vision.patch_values
    table = FLOAT * config.vocab_size * config.text.width if "text" in trains else 0
    grown = sum(gradients.values()) if accumulate > 1 else 0
    lasting = sum(held.values()) + sum(optimizer.values()) + batch
    kept = sum(activations.values())
    after_head = kept - _LOSS_COPIES * logits + (0 if grown else table)
    # Words are looked up in the same matrix that the head multiplies by: its gradient is made twice and then added.
    twice = table if config.tie_embeddings else 0
    moments = {
        "when the backward pass begins": grown + max(kept, after_head),
        "when all gradients are there": sum(gradients.values()) + twice,
        "while Muon orthogonalises": sum(gradients.values()) + _muon_scratch(parameters, trains, optim),
    }
    when = max(moments, key=moments.__getitem__)
    return StepMemory(held, gradients, optimizer, activations, batch, lasting + moments[when], when)


def step_flops(config: Qwen2VLConfig, pack: PackShape, trains: Iterable[Part]) -> dict[Part, float]:
    """Multiplications and additions of a forward and backward pass. Three passes' worth where weights are trained, two
    where gradients only pass through to something trained below, one where nothing below is trained."""
    trains = set(trains)
    t, v = config.text, config.vision
    merged = pack.patches // v.merge**2
    group = v.merge**2 * v.width
    text_row = t.width * (t.heads + 2 * t.kv_heads) * t.head_size + t.heads * t.head_size * t.width
    text_row += 3 * t.width * t.mlp_hidden
    text_pairs = sum(n * n for n in pack.seq_lens) / 2
    vision_row = 4 * v.width**2 + 2 * v.width * v.mlp_hidden
    vision_pairs = sum(n * n for n in pack.segment_lens)
    forward: dict[Part, float] = {
        "vision": 2.0 * pack.patches * (v.patch_values * v.width + v.layers * vision_row)
        + 4.0 * v.layers * vision_pairs * v.width,
        "merger": 2.0 * merged * (group * group + group * t.width),
        "text": 2.0 * pack.tokens * t.layers * text_row
        + 4.0 * t.layers * text_pairs * t.heads * t.head_size
        + 2.0 * pack.targets * t.width * config.vocab_size,
    }
    below = False
    flops: dict[Part, float] = {}
    for part in _PARTS:
        flops[part] = forward[part] * (3 if part in trains else 2 if below else 1)
        below = below or part in trains
    return flops


def cache_bytes(config: Qwen2VLConfig, tokens: int, value_bytes: int = 2) -> int:
    """Keys and values of `tokens` tokens while answering."""
    t = config.text
    return 2 * t.layers * t.kv_heads * t.head_size * value_bytes * tokens


def _text_kept(config: Qwen2VLConfig, pack: PackShape, trained: bool, cpu: bool) -> int:
    """Per token and layer. Trained: two norms keep input, normed and weighted rows; the feed-forward its two halves,
    the gate after SiLU and their product. Frozen: weights need no inputs, so the normed rows and the product go."""
    t = config.text
    query, key = t.heads * t.head_size, t.kv_heads * t.head_size
    row = query + 2 * key
    row += 6 * t.width + query + 4 * t.mlp_hidden if trained else 2 * t.width + 3 * t.mlp_hidden
    last = 2 * t.width if trained else t.width
    scores = _scores(_buckets(pack.seq_lens), t.heads, cpu, out=query)
    return FLOAT * (pack.tokens * (t.layers * row + last) + t.layers * scores)


def _vision_kept(config: Qwen2VLConfig, pack: PackShape, cpu: bool) -> int:
    v = config.vision
    row = 8 * v.width + (3 if v.activation == "quick_gelu" else 2) * v.mlp_hidden
    scores = _scores(Counter(pack.segment_lens), v.heads, cpu, out=v.width)
    before = 3 * v.width if v.pre_norm else 0
    return FLOAT * (pack.patches * (v.layers * row + before) + v.layers * scores)


def _merger_kept(config: Qwen2VLConfig, pack: PackShape, trains: set[Part]) -> int:
    v = config.vision
    if not trains & {"vision", "merger"}:
        return 0
    rows = 1 + (3 if "merger" in trains else 1)
    return FLOAT * (pack.patches * v.width * rows + pack.patches // v.merge**2 * config.text.width)


def _scores(groups: Mapping[int, int], heads: int, cpu: bool, out: int) -> int:
    """Values kept by attention besides queries, keys and values: the probabilities where they are written out, else
    the result and one number per query and head."""
    kept = 0
    for length, count in groups.items():
        if cpu and explicit(count, heads, length, length):
            kept += count * heads * length * length
        else:
            kept += count * length * (out + heads)
    return kept


def _buckets(lens: Iterable[int]) -> Counter[int]:
    """Sequences as attention groups them: the shorter ones are filled up to the longest of their call."""
    lens = tuple(lens)
    groups: Counter[int] = Counter()
    for members in bucket_similar(lens, list(range(len(lens)))):
        groups[max(lens[i] for i in members)] += len(members)
    return groups


def _state(parameters: Parameters, optim: OptimConfig) -> int:
    muon = sum(r * c for r, c in parameters.matrices) if optim.name == "muon" else 0
    return FLOAT * (_MUON_VALUES * muon + _ADAMW_VALUES * (parameters.count - muon))


def _muon_scratch(parameters: Mapping[Part, Parameters], trains: set[Part], optim: OptimConfig) -> int:
    if optim.name != "muon":
        return 0
    stacks = Counter(shape for part in trains for shape in parameters[part].matrices)
    return FLOAT * _MUON_COPIES * max((r * c * n for (r, c), n in stacks.items()), default=0)
