"""Weights that stay in their file: where they lie, what is copied after all, what writing does."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from checkpoint.small_model import SHARD, assert_same, small
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.mapping import MappedFile
from qvl.checkpoint.weights import WeightFiles
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.runtime import resident_memory_bytes

FILE = "model.safetensors"


def in_file(model: Qwen2VL, folder: Path) -> set[str]:
    """Names of parameters that lie in one mapping: their addresses differ as their places in the file do."""
    places = {name: p.data_ptr() for name, p in model.named_parameters()}
    files = WeightFiles.find(folder)
    known = {
        "decoder.layers.0.mlp.down.weight": "model.layers.0.mlp.down_proj.weight",
        "decoder.layers.0.mlp.gate_up.weight": "model.layers.0.mlp.gate_proj.weight",
        "decoder.layers.0.qkv.weight": "model.layers.0.self_attn.q_proj.weight",
        "decoder.norm.weight": "model.norm.weight",
        "visual.blocks.1.qkv.weight": "visual.blocks.1.attn.qkv.weight",
        "embed.weight": "model.embed_tokens.weight",
    }
    first = "embed.weight"
    start = files._place(known[first])
    assert start is not None
    found = set()
    for ours, official in known.items():
        place = files._place(official)
        assert place is not None
        if places[ours] - places[first] == place.offset - start.offset:
            found.add(ours)
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_stay_where_they_are_stored(tied: bool, dtype: torch.dtype, tmp_path: Path) -> None:
    save_model(small(tied), tmp_path, dtype=dtype)
    model, copied = load_model(tmp_path, dtype=dtype, mapped=True), load_model(tmp_path, dtype=dtype)
    assert_same(model, copied)
    assert (model.head.weight is model.embed.weight) == tied
    everything = in_file(model, tmp_path)
    # Gates and ups are neighbours in a file whose names are in order; queries, keys and values are not.
    assert len(everything) == 5
    assert "decoder.layers.0.qkv.weight" not in everything
    assert in_file(copied, tmp_path) == {"embed.weight"}


def test_another_number_format_is_copied(tmp_path: Path) -> None:
    save_model(small(), tmp_path, dtype=torch.bfloat16)
    model = load_model(tmp_path, mapped=True)
    assert_same(model, load_model(tmp_path))
    assert in_file(model, tmp_path) == {"embed.weight"}


def test_shards(tmp_path: Path) -> None:
    save_model(small(), tmp_path, max_shard_bytes=SHARD)
    assert_same(load_model(tmp_path, mapped=True), small())


def test_writing_is_private(tmp_path: Path) -> None:
    save_model(small(), tmp_path)
    before = (tmp_path / FILE).read_bytes()
    model, other = load_model(tmp_path, mapped=True), load_model(tmp_path, mapped=True)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)
    assert (tmp_path / FILE).read_bytes() == before
    assert_same(other, small())
    save_model(model, tmp_path)  # over the file that both are mapped from
    assert_same(load_model(tmp_path, mapped=True), model)
    assert_same(other, small())


def test_parts_that_are_no_neighbours(tmp_path: Path) -> None:
    save_file({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1, 3), "c": torch.zeros(2, 3)}, tmp_path / FILE)
    files = WeightFiles.find(tmp_path)
    both = files.mapped(["a", "b"], (3, 3), torch.float32)
    assert both is not None
    assert both.tolist() == [[0, 1, 2], [3, 4, 5], [1, 1, 1]]
    for names in (["a", "c"], ["b", "a"]):
        assert files.mapped(names, (4, 3), torch.float32) is None, names
    assert files.mapped(["a"], (2, 3), torch.bfloat16) is None


def test_a_tensor_that_begins_between_numbers(tmp_path: Path) -> None:
    """A file may be packed so; then it is copied."""
    (tmp_path / "f").write_bytes(bytes(range(9)))
    mapped = MappedFile(tmp_path / "f")
    assert mapped.tensor(1, (2,), torch.float32) is None
    got = mapped.tensor(4, (1,), torch.float32)
    assert got is not None
    assert got.view(torch.uint8).tolist() == [4, 5, 6, 7]


def test_pages_given_back_are_read_again(tmp_path: Path) -> None:
    save_file({"a": torch.ones(16 << 20), "b": torch.ones(5)}, tmp_path / FILE)  # 64 MiB
    files = WeightFiles.find(tmp_path)
    values = files.mapped(["a"], (16 << 20,), torch.float32)
    assert values is not None
    untouched = resident_memory_bytes()
    assert values.sum() == 16 << 20
    touched = resident_memory_bytes()
    files.let_go(["a", "b"])
    assert touched - untouched > 60 << 20
    assert resident_memory_bytes() - untouched < 10 << 20
    assert values.sum() == 16 << 20


def test_what_is_exchanged_on_the_way_is_not_kept(tmp_path: Path) -> None:
    """As a quantised model is loaded: each weight is read, replaced, and its pages are given back."""
    save_model(small(), tmp_path)
    seen = {}

    def filled(model: Qwen2VL, name: str) -> None:
        seen[name] = model.get_parameter(name).clone()

    load_model(tmp_path, mapped=True, filled=filled)
    stored = load_file(tmp_path / FILE)
    assert torch.equal(seen["decoder.layers.1.mlp.down.weight"], stored["model.layers.1.mlp.down_proj.weight"])
    assert len(seen) == sum(1 for _ in small().parameters())
