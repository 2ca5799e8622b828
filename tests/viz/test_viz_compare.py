"""Several runs on one page: what they are, what they score, what they answered."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from made_run import HOSTILE, Page, evaluation

from qvl.cli.main import USER_ERROR, main
from qvl.viz.compare import write_comparison


@pytest.fixture
def other(run: Path) -> Path:
    """The same questions, another model."""
    folder = run.parent / "other"
    shutil.copytree(run, folder)
    summary = json.loads((folder / "summary.json").read_text())
    told = {"name": "other", "seed": 0, "model": "qwen_vl", "seconds": 61, "picture_tokens": [16, 16]}
    (folder / "summary.json").write_text(json.dumps(summary | told))
    (folder / "eval" / "final" / "metrics.json").write_text(json.dumps(evaluation(0.7)))
    return folder


def test_runs_side_by_side(run: Path, other: Path, tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    (run / "summary.json").write_text(json.dumps(summary | {"picture_tokens": [12, 16, 20]}))
    page = Page(write_comparison([run, other], tmp_path / "new" / "both.html").read_text(encoding="utf-8"))
    words = page.text.replace("\u00a0", " ")
    assert page.open == []
    assert not {"script", "link", "iframe", "img"} & set(page.tags)
    assert all(address.startswith("data:image/webp;base64,") for address in page.addresses)
    assert "Model qwen2_vl qwen_vl" in words
    assert "Parameters 4.2 million: text 2.9 million, vision 1.3 million" in words
    assert "Tokens per picture 12 to 20, by its size 16" in words
    assert "Seed – 0" in words
    assert "Training time 15 min 5 s 1 min 1 s" in words
    assert "accuracy 60.0 % 50.0 – 70.0 constant 30.0 %, blind 30.0 % 70.0 % 60.0 – 80.0" in words
    assert "All were asked the same 30 questions." in words
    assert words.count("early (8 min 0 s), late (10 min 0 s)") == 2
    assert page.addresses.count(page.addresses[0]) == 2, "each question is shown once per run"
    assert "alert(" in words, "a model's words are shown, not run"


def test_different_questions_are_said_to_be_different(run: Path, other: Path, tmp_path: Path) -> None:
    file = other / "eval" / "final" / "predictions.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:10]))
    (other / "eval" / "final" / "metrics.json").write_text(
        json.dumps(evaluation(0.7) | {"tasks": {"vqa": evaluation(0.7)["tasks"]["vqa"]}})
    )
    words = Page(write_comparison([run, other], tmp_path / "both.html").read_text(encoding="utf-8")).text
    assert "different questions (30, 10, of which 10 are common)" in words
    assert "not measured" in words, "captions of the second run"


def test_what_is_missing_is_left_out(run: Path, other: Path, tmp_path: Path) -> None:
    for folder in (run, other):
        shutil.rmtree(folder / "eval")
        (folder / "summary.json").unlink()
    words = Page(write_comparison([run, other], tmp_path / "both.html").read_text(encoding="utf-8")).text
    assert "my run beside other" in words
    assert "Learning" in words
    assert "Scores" not in words


def test_the_verb_takes_one_run_or_several(
    run: Path,
    other: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", str(run), str(other)]) == 0
    assert (tmp_path / "comparison.html").is_file()
    assert main(["report", str(run)]) == 0
    assert (run / "report.html").is_file()
    assert "comparison.html" in capsys.readouterr().out
    assert main(["report", str(run), "--out", "x.html"]) == USER_ERROR
    assert main(["report", str(run), str(run)]) == USER_ERROR
    assert "two or more different runs" in capsys.readouterr().err
    assert main(["report", str(run), str(tmp_path / "gone")]) == USER_ERROR
    assert HOSTILE not in (run / "report.html").read_text(encoding="utf-8")
