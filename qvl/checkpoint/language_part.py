"""A pretrained language model, whatever its file, as the text half of a Qwen2-VL.

Knows: Hugging Face folders of Qwen2 and Llama shape, and GGUF files of the same; what they call their tensors, how GGUF
orders the rows of a Llama's queries and keys.
Does not know: vocabularies (`qvl.text.adopted`), the vision half.

    part = read_language_part("SmolLM2-135M-Instruct.Q4_1.gguf")
    config = Qwen2VLConfig(part.config, vision, part.vocab_size, part.tie_embeddings, part.max_positions)
    model = Qwen2VL(config)
    fill_language(model, part)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Protocol, final

import torch
from torch import Tensor

from qvl.checkpoint.gguf import GGUF
from qvl.checkpoint.jsonfile import Fields
from qvl.checkpoint.parts import check_shapes, copy_entries
from qvl.checkpoint.weights import WeightFiles, some
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.keymap import EMBED, HEAD, language_entries
from qvl.models.qwen2_vl.model import Qwen2VL

_NEW_ROW_NOISE = 0.1
_KINDS = ("qwen2", "llama")
_LAYER = "model.layers.{}."
_GGUF_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": _LAYER + "input_layernorm",
    "blk.{}.attn_q": _LAYER + "self_attn.q_proj",
    "blk.{}.attn_k": _LAYER + "self_attn.k_proj",
    "blk.{}.attn_v": _LAYER + "self_attn.v_proj",
    "blk.{}.attn_output": _LAYER + "self_attn.o_proj",
    "blk.{}.ffn_norm": _LAYER + "post_attention_layernorm",
    "blk.{}.ffn_gate": _LAYER + "mlp.gate_proj",
    "blk.{}.ffn_up": _LAYER + "mlp.up_proj",
    "blk.{}.ffn_down": _LAYER + "mlp.down_proj",
}


class Weights(Protocol):
    """Tensors by the names of a Hugging Face folder."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...

    def read(self, names: Iterable[str]) -> Iterator[Tensor]: ...


@final
@dataclass(frozen=True)
class LanguagePart:
    """A language model that was not read yet: its sizes, and where its tensors lie."""

    source: str
    config: DecoderConfig
    """With three rope axes: text alone, whose three positions are equal, comes out as with one."""
    vocab_size: int
    tie_embeddings: bool
    max_positions: int
    weights: Weights


def read_language_part(path: str | Path, sections: tuple[int, ...] | None = None) -> LanguagePart:
    """Sizes and whereabouts of a language model: a Hugging Face folder, or a GGUF file.

    Args:
        sections: rotary frequencies for time, row and column; None = 2 : 3 : 3, as released (16, 24, 24 of 64).

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: neither Qwen2- nor Llama-shaped, or not implemented (scaled rope, sliding windows).
    """
    path = Path(path)
    part = _from_folder(path) if path.is_dir() else _from_gguf(GGUF(path))
    return replace(part, config=replace(part.config, rope_sections=sections or mrope_sections(part.config.head_size)))


def mrope_sections(head_size: int) -> tuple[int, int, int]:
    """Rotary frequencies per axis in the released proportion: 128 -> (16, 24, 24), 64 -> (8, 12, 12)."""
    frequencies = head_size // 2
    time = frequencies // 4
    row = (frequencies - time) // 2
    return time, row, frequencies - time - row


@torch.no_grad()
def fill_language(model: Qwen2VL, part: LanguagePart, rows: Sequence[int] | None = None, seed: int = 0) -> None:
    """Copies the language model into `model`, whose vision half stays as it is. Biases that a Llama lacks are zero.

    Args:
        rows: of each id of the model's vocabulary, the part's row, or -1 for a token that the part does not have; ids
            past the end are such tokens too. Default: the part's rows in their order.
        seed: of the new rows, which get the mean of all rows and a little noise: a mean row is neither likely nor
            strange anywhere, and the noise tells new tokens apart.

    Raises:
        ValueError: the sizes of `model` are not the part's, or tensors are missing, left over or of another shape.
    """
    _check_sizes(model, part)
    entries = [e for e in language_entries(model) if e.ours not in ("embed.weight", "head.weight")]
    wanted = {p.name: p.shape for e in entries for p in e.parts}
    shapes = dict(part.weights.shapes)
    without_bias = not any(name.endswith("q_proj.bias") for name in shapes)
    zeros = {name: shape for name, shape in wanted.items() if without_bias and name.endswith(".bias")}
    left = [name for name in shapes if name not in wanted and name not in (EMBED, HEAD)]
    if left:
        raise ValueError(f"{part.source} holds tensors that a Qwen2 does not have ({some(left)})")
    check_shapes(wanted, shapes | zeros, part.source)
    stored = part.weights.read(name for name in wanted if name not in zeros)
    values = (torch.zeros(zeros[name]) if name in zeros else next(stored) for name in wanted)
    copy_entries(model, entries, values)
    _fill_rows(model.embed.weight, part, EMBED, rows, seed)
    if not model.config.tie_embeddings:
        _fill_rows(model.head.weight, part, EMBED if part.tie_embeddings else HEAD, rows, seed)


def _fill_rows(table_VD: Tensor, part: LanguagePart, name: str, rows: Sequence[int] | None, seed: int) -> None:
    (theirs_VD,) = part.weights.read([name])
    chosen = list(range(theirs_VD.shape[0])) if rows is None else list(rows)
    if len(chosen) > table_VD.shape[0]:
        raise ValueError(f"the model has {table_VD.shape[0]} rows for words, the vocabulary {len(chosen)} tokens")
    source_V = torch.tensor(chosen + [-1] * (table_VD.shape[0] - len(chosen)))
    theirs_VD = theirs_VD.float()
    noise_VD = torch.randn(table_VD.shape, generator=torch.Generator().manual_seed(seed))
    new_VD = theirs_VD.mean(0) + _NEW_ROW_NOISE * theirs_VD.std(0) * noise_VD
    known_V = source_V >= 0
    new_VD[known_V] = theirs_VD[source_V[known_V]]
    table_VD.copy_(new_VD)


def _check_sizes(model: Qwen2VL, part: LanguagePart) -> None:
    ours, theirs = asdict(model.config.text), asdict(part.config)
    ours["tied head"], theirs["tied head"] = model.config.tie_embeddings, part.tie_embeddings
    free = ("rope_sections",) if part.tie_embeddings == model.config.tie_embeddings else ("rope_sections", "tied head")
    different = [f"{k} {theirs[k]} (the model: {ours[k]})" for k in ours if ours[k] != theirs[k] and k not in free]
    if model.config.tie_embeddings and not part.tie_embeddings:
        different.append("an output head of its own (the model's is the embedding)")
    if different:
        raise ValueError(f"{part.source} is another language model than the model's: {', '.join(different)}")


def _from_folder(folder: Path) -> LanguagePart:
    fields = Fields.read(folder / "config.json")
    kind = fields.data.get("model_type")
    if kind not in _KINDS:
        raise ValueError(f"{fields.source}: model_type {kind!r} is not one of: {', '.join(_KINDS)}")
    fields.expect("hidden_act", "silu", "the SwiGLU of Qwen2 and Llama")
    fields.expect("use_sliding_window", False, "sliding windows are not implemented")
    rope = fields.child("rope_parameters") if fields.has("rope_parameters") else fields.child("rope_scaling")
    for key in ("type", "rope_type"):
        rope.expect(key, "default", "scaled rotary positions of language models are not implemented")
    heads, width = fields.size("num_attention_heads"), fields.size("hidden_size")
    weights = WeightFiles.find(folder)
    return LanguagePart(
        source=str(folder),
        config=DecoderConfig(
            width=width,
            layers=fields.size("num_hidden_layers"),
            heads=heads,
            kv_heads=fields.size("num_key_value_heads", heads),
            head_size=fields.size("head_dim", width // heads),
            mlp_hidden=fields.size("intermediate_size"),
            norm_eps=fields.number("rms_norm_eps"),
            rope_theta=(rope if rope.has("rope_theta") else fields).positive("rope_theta", 10000.0),
        ),
        vocab_size=fields.size("vocab_size"),
        tie_embeddings=fields.flag("tie_word_embeddings", False) or HEAD not in weights.shapes,
        max_positions=fields.size("max_position_embeddings"),
        weights=weights,
    )


def _from_gguf(file: GGUF) -> LanguagePart:
    kind = file.field("general.architecture")
    if kind not in _KINDS:
        raise ValueError(f"{file.path}: architecture {kind!r} is not one of: {', '.join(_KINDS)}")

    def field(key: str) -> int:
        return file.field(f"{kind}.{key}")

    heads, width = field("attention.head_count"), field("embedding_length")
    kv_heads = int(file.fields.get(f"{kind}.attention.head_count_kv", heads))
    head_size = int(file.fields.get(f"{kind}.attention.key_length", width // heads))
    _check_gguf_rope(file, kind, head_size)
    weights = _GGUFWeights(file, {"q_proj": heads, "k_proj": kv_heads} if kind == "llama" else {})
    return LanguagePart(
        source=str(file.path),
        config=DecoderConfig(
            width=width,
            layers=field("block_count"),
            heads=heads,
            kv_heads=kv_heads,
            head_size=head_size,
            mlp_hidden=field("feed_forward_length"),
            # Stored as float32: 9.999999747378752e-06 was written as 1e-5.
            norm_eps=float(f"{field('attention.layer_norm_rms_epsilon'):.6g}"),
            rope_theta=float(file.fields.get(f"{kind}.rope.freq_base", 10000.0)),
        ),
        vocab_size=weights.shapes[EMBED][0],
        tie_embeddings=HEAD not in weights.shapes,
        max_positions=field("context_length"),
        weights=weights,
    )


def _check_gguf_rope(file: GGUF, kind: str, head_size: int) -> None:
    scaling = file.fields.get(f"{kind}.rope.scaling.type", "none")
    if scaling != "none":
        raise ValueError(
            f"{file.path}: rope.scaling.type is {scaling!r}, only 'none' is implemented for language models"
        )
    turning = file.fields.get(f"{kind}.rope.dimension_count", head_size)
    if turning != head_size:
        raise ValueError(
            f"{file.path}: {turning} of a head's {head_size} channels turn (rope.dimension_count), implemented is: all"
        )


@final
class _GGUFWeights:
    """A GGUF's tensors under their Hugging Face names, rows in the Hugging Face order."""

    def __init__(self, file: GGUF, permuted: Mapping[str, int]) -> None:
        """`permuted`: projection -> heads, where the rows of each head are interleaved (`unpermuted`)."""
        self._file = file
        self._permuted = permuted
        self._stored = {_hugging_face_name(name, file.path): name for name in file.shapes()}
        self.shapes = {name: file.shapes()[stored] for name, stored in self._stored.items()}

    def read(self, names: Iterable[str]) -> Iterator[Tensor]:
        for name in names:
            tensor = self._file.get(self._stored[name])
            heads = next((n for projection, n in self._permuted.items() if f".{projection}." in name), 0)
            yield unpermuted(tensor, heads) if heads else tensor


def unpermuted(rows: Tensor, heads: int) -> Tensor:
    """llama.cpp turns neighbouring rows of a query or key together, Hugging Face row j and j + H/2; its converter
    moves the rows of each head so: 0 1 2 3 (ours) -> 0 2 1 3. This is the way back."""
    return rows.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)


def _hugging_face_name(name: str, path: Path) -> str:
    stem, _, kind = name.rpartition(".")
    prefix, _, rest = stem.partition(".")
    number, _, leaf = rest.partition(".")
    pattern = f"blk.{{}}.{leaf}" if prefix == "blk" else stem
    if pattern not in _GGUF_NAMES:
        raise ValueError(f"{path} holds {name}, which a Qwen2 or a plain Llama does not have (scaled rope, experts?)")
    return f"{_GGUF_NAMES[pattern].format(number)}.{kind}"
