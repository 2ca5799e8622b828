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


@pytest.mark.slow
def test_stages_of_a_recipe(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    given = ["--recipe", "recipes/qwen2_vl_stage1.yaml", "--memory", "16", "--tflops", "1", "--set", "vocabulary=world"]
    assert main(["plan", "tiny", *given, "--pictures", "448x448:3,112x84"]) == 0
    out = capsys.readouterr().out
    for wanted in ("448 x 448", "112 x 84", "kept for backward", "most at once", "largest max_pixels", "yes"):
        assert wanted in out, wanted


@pytest.mark.slow
def test_numbers_and_refusal(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "7b", "--memory", "80", "--json", "--precision", "bfloat16"]) == USER_ERROR
    said = capsys.readouterr()
    numbers = json.loads(said.out)
    (stage,) = numbers["stages"]
    assert stage["fits"] is False
    assert stage["memory"]["parameters"]["text"] == 4 * 7_615_616_512
    assert numbers["cache_bytes_per_token"] == 57_344
    assert "does not fit" in said.err
    assert "train fewer parts" in said.err


@pytest.mark.slow
def test_without_pretrained_parts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path
) -> None:
    """Sizes are those of the parts that the recipe names; only one stage's step is gone through here."""
    monkeypatch.setenv("QVL_CACHE", str(tmp_path))
    given = ["plan", "--recipe", "recipes/small.yaml", "--memory", "1", "--cpu", "--json", "--pictures", "168x168"]
    assert main(given) == USER_ERROR
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["model"] == "small"
    assert numbers["stages"][0]["memory"]["parameters"]["text"] > 4 * 134_000_000


def test_what_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "nothing"]) == USER_ERROR
    assert "Presets: qwen2-vl-2b" in capsys.readouterr().err
    assert main(["plan"]) == USER_ERROR
    assert "a plan needs a model or a recipe" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--memory", "1e-10"], "a plan needs devices with memory, got 1 with 0 bytes"),
        (["--words", "0"], "words must be at least 1, got 0"),
        (["--tflops", "-1"], "got tflops=-1"),
        (["--tokens-per-pack", "0"], "tokens_per_pack is 0"),
        (["--devices", "0"], "a plan needs devices with memory, got 0"),
        (["--pictures", "0x10"], "has no pixels"),
    ],
)
def test_numbers_that_cannot_be(options: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--memory", "8", *options]) == USER_ERROR
    assert said in capsys.readouterr().err
