"""Single files of tensors: both kinds, nothing but tensors, and damage by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from qvl.checkpoint.tensor_files import open_tensors

TENSORS = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(4, dtype=torch.bfloat16)}


class Anything:
    """Something whose unpickling runs code."""

    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin", "w.pt"])
def test_shapes_and_values(name: str, tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, tmp_path / name)
    opened = open_tensors(tmp_path / name)
    assert opened.shapes() == {"a": (2, 3), "b": (4,)}
    for key, value in TENSORS.items():
        assert torch.equal(opened.get(key), value)
        assert opened.get(key).dtype == value.dtype


def test_a_state_dict_inside_a_checkpoint(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": TENSORS}, tmp_path / "w.pt")
    assert open_tensors(tmp_path / "w.pt").shapes().keys() == TENSORS.keys()


def test_no_code_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"a": Anything()}, tmp_path / "w.bin")
    with pytest.raises(ValueError, match="holds something else than tensors, which is not read because"):
        open_tensors(tmp_path / "w.bin")
    assert "run" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([torch.zeros(2)], "must hold a state dict .* it holds a list"),
        ({"a": 3}, "must hold a state dict"),
    ],
)
def test_no_state_dict(content: object, message: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "w.bin")
    with pytest.raises(ValueError, match=message):
        open_tensors(tmp_path / "w.bin")


@pytest.mark.parametrize("name", ["w.safetensors", "w.bin"])
@pytest.mark.parametrize("keep", [0, 3, 60, -30])
def test_damage(name: str, keep: int, tmp_path: Path) -> None:
    file = tmp_path / name
    (save_file if name.endswith("safetensors") else torch.save)(TENSORS, file)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"w\.\w+ \([\d,]+ bytes\) is .*damaged or cut off"):
        open_tensors(file)


def test_written_before_torch_1_6(tmp_path: Path) -> None:
    torch.save(TENSORS, tmp_path / "w.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"or written before torch 1\.6"):
        open_tensors(tmp_path / "w.bin")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        open_tensors(tmp_path / "w.bin")
