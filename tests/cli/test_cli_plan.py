"""`qvl plan`: tables, numbers, refusals."""

from __future__ import annotations

import json

import pytest

from qvl.cli.main import USER_ERROR, main
from qvl.cli.plan import parse_mix


def test_sizes_and_shares() -> None:
    assert parse_mix("1024x768:2,448x300") == ((768, 1024), (768, 1024), (300, 448))
    with pytest.raises(ValueError, match="the share of a picture size is a whole number"):
        parse_mix("448x448:0.5")


def test_every_stage_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["plan", "small", "--recipe", "recipes/small.yaml", "--memory", "16", "--tflops", "1"]) == 0
    out = capsys.readouterr().out
    for wanted in ("stage1", "stage2", "stage3", "224 x 224", "most at once", "largest max_pixels"):
        assert wanted in out, wanted


def test_numbers_and_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "7b", "--memory", "80", "--json"]) == USER_ERROR
    said = capsys.readouterr()
    numbers = json.loads(said.out)
    (stage,) = numbers["stages"]
    assert stage["fits"] is False
    assert stage["memory"]["parameters"]["text"] == 4 * 7_615_616_512
    assert numbers["cache_bytes_per_token"] == 57_344
    assert "does not fit" in said.err
    assert "train fewer parts" in said.err


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nothing"]) == USER_ERROR
    assert "Presets: qwen2-vl-2b" in capsys.readouterr().err
