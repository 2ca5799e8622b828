"""Model folders: what is written is read back, and everything that can be wrong is named."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from checkpoint.small_model import SHARD, assert_same, files, small
from qvl.checkpoint.folder import load_model, save_model
from qvl.checkpoint.hf_settings import GenerationDefaults, read_generation


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(small(), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    save_model(small(), tmp_path / "model", max_shard_bytes=SHARD)
    return tmp_path / "model"


def edit(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("max_shard_bytes", [5e9, SHARD])
def test_round_trip(tied: bool, max_shard_bytes: float, tmp_path: Path) -> None:
    model = small(tied)
    save_model(model, tmp_path / "m", max_shard_bytes=max_shard_bytes)
    loaded = load_model(tmp_path / "m")
    assert_same(loaded, model)
    assert (loaded.head.weight is loaded.embed.weight) == tied
    assert all(p.requires_grad and p.is_contiguous() for p in loaded.parameters())
    single = {"config.json", "generation_config.json", "model.safetensors"}
    assert (files(tmp_path / "m") == single) == (max_shard_bytes == 5e9)
    assert files(tmp_path) == {"m"}


def test_index_of_shards(sharded: Path) -> None:
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    shards = sorted({*index["weight_map"].values()})
    assert shards == [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    assert len(shards) > 2
    held = {}
    for shard in shards:
        tensors = load_file(sharded / shard)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= SHARD
        held |= dict.fromkeys(tensors, shard)
    assert held == index["weight_map"]
    assert index["metadata"]["total_size"] == sum(p.nbytes for p in small().parameters())


def test_official_names_and_metadata(saved: Path) -> None:
    with safe_open(saved / "model.safetensors", framework="pt") as file:
        names = set(file.keys())
        assert file.metadata() == {"format": "pt"}
    assert {"visual.patch_embed.proj.weight", "model.layers.1.self_attn.v_proj.bias", "lm_head.weight"} <= names
    assert not any(name.startswith(("model.visual", "model.language_model")) for name in names)


def test_new_names_are_read(saved: Path) -> None:
    def rename(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            if name.startswith("visual."):
                tensors["model." + name] = tensors.pop(name)
            elif name.startswith("model."):
                tensors["model.language_model." + name.removeprefix("model.")] = tensors.pop(name)

    edit(saved, rename)
    assert_same(load_model(saved), small())


def test_dtypes(tmp_path: Path) -> None:
    model = small()
    save_model(model, tmp_path, dtype=torch.bfloat16)
    assert {t.dtype for t in load_file(tmp_path / "model.safetensors").values()} == {torch.bfloat16}
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "bfloat16"
    loaded = load_model(tmp_path, dtype=torch.float32)
    assert torch.equal(loaded.embed.weight, model.embed.weight.bfloat16().float())
    assert {p.dtype for p in load_model(tmp_path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="float16 on the CPU is refused"):
        load_model(tmp_path, dtype=torch.float16)


def test_float16_files_are_cast(tmp_path: Path) -> None:
    save_model(small(), tmp_path, dtype=torch.float16)
    assert {p.dtype for p in load_model(tmp_path).parameters()} == {torch.float32}


def test_generation_settings(tmp_path: Path) -> None:
    wanted = GenerationDefaults((5,), 6, 7, True, 0.5, 0.9, 3, 1.1)
    save_model(small(), tmp_path, generation=wanted)
    assert read_generation(tmp_path, small().config.ids) == wanted


def test_the_loaded_model_does_not_depend_on_the_file(saved: Path) -> None:
    loaded = load_model(saved)
    with (saved / "model.safetensors").open("r+b") as file:
        file.seek(-4000, 2)
        file.write(b"\0" * 4000)
    assert_same(loaded, small())


# The head of a tied model.


def test_tied_head_in_the_file(tmp_path: Path) -> None:
    save_model(small(tied=True), tmp_path)
    edit(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    assert_same(load_model(tmp_path), small(tied=True))
    edit(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    with pytest.raises(ValueError, match=r"tie_word_embeddings, but lm_head.weight differs from model.embed_tokens"):
        load_model(tmp_path)


def test_head_missing_without_the_flag(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some nested config.json files lost the flag: the head is then the embedding, never random."""
    edit(saved, lambda t: t.pop("lm_head.weight"))
    with caplog.at_level(logging.WARNING):
        loaded = load_model(saved)
    assert loaded.head.weight is loaded.embed.weight
    assert loaded.config.tie_embeddings
    assert "taken to be the embedding" in caplog.text


# Everything that can be wrong.


def test_missing_tensors(saved: Path) -> None:
    edit(saved, lambda t: [t.pop(name) for name in list(t) if "layers.1.mlp" in name])
    with pytest.raises(ValueError, match=r"missing 3: model.layers.1.mlp.gate_proj.weight, .*the download or copy"):
        load_model(saved)


def test_extra_tensors(saved: Path) -> None:
    extra = {f"visual.blocks.{i}.extra": torch.zeros(1) for i in range(9)}
    edit(saved, lambda t: t.update(extra))
    with pytest.raises(
        ValueError, match=r"not part of the model 9: visual.blocks.0.extra, .*, \.\.\. \(in model.safetensors\)"
    ):
        load_model(saved)


def test_wrong_shape(saved: Path) -> None:
    edit(saved, lambda t: t.update({"model.norm.weight": torch.ones(49)}))
    with pytest.raises(ValueError, match=r"another shape 1: model.norm.weight is \[49\], config.json wants \[48\]"):
        load_model(saved)


def test_another_models_config(saved: Path) -> None:
    data = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps(data | {"num_hidden_layers": 3, "vocab_size": 71}))
    with pytest.raises(ValueError, match=r"missing 12: model.layers.2.*another shape 2: .*different models"):
        load_model(saved)


def test_one_tensor_under_two_names(saved: Path) -> None:
    edit(saved, lambda t: t.update({"model.language_model.norm.weight": t["model.norm.weight"].clone()}))
    with pytest.raises(ValueError, match="are two names of one tensor"):
        load_model(saved)


@pytest.mark.parametrize("keep", [0, 4, 300, -1000])
def test_cut_off_file(saved: Path, keep: int) -> None:
    file = saved / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model.safetensors \(.* bytes\) is damaged or cut off .*download or copy"):
        load_model(saved)


def test_missing_shard(sharded: Path) -> None:
    (sharded / sorted(files(sharded))[3]).unlink()
    with pytest.raises(FileNotFoundError, match=r"not in the folder \(1: model-00002-of-.*, with 4 of 58 tensors"):
        load_model(sharded)


def test_index_and_shard_disagree(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    data = json.loads(index.read_text())
    data["weight_map"]["model.norm.weight"] = data["weight_map"]["visual.patch_embed.proj.weight"]
    index.write_text(json.dumps(data))
    with pytest.raises(ValueError, match=r"disagree about 1: model.norm.weight: .* is not in model-00001"):
        load_model(sharded)


def test_index_must_name_files_of_the_folder(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../secret.safetensors"}}')
    with pytest.raises(ValueError, match="names of files in the same folder"):
        load_model(sharded)


def test_both_forms(sharded: Path) -> None:
    save_file({"a": torch.zeros(1)}, sharded / "model.safetensors")
    with pytest.raises(ValueError, match="holds both"):
        load_model(sharded)


def test_no_weights(saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "consolidated.pth")
    with pytest.raises(FileNotFoundError, match=r"no model.safetensors .*it holds 1: consolidated.pth, which"):
        load_model(saved)


def test_no_config_and_other_models(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no config.json"):
        load_model(tmp_path)
    (saved / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ValueError, match=r"'llama'.*there are: qwen2_vl"):
        load_model(saved)
