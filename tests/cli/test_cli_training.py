"""Runs put together: whose folder it is, and the whole way from a recipe to a report."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import pytest
from safetensors.torch import load_file

import qvl
from qvl.cli.main import USER_ERROR, main
from qvl.cli.measure import world_for_floors
from qvl.cli.recipe import read_recipe
from qvl.cli.training import claim
from qvl.data.world import WorldConfig
from qvl.evals.tasks.world import world_samples

SIGHT = """\
  - name: told
    trains: [text]
    share: 1
    steps: 2
    objective: told
    evaluate: false
    tokens_per_pack: 400
    world: {medium: words, tasks: {exists: 1}}
  - name: match
    trains: [vision, merger]
    share: 1
    steps: 2
    objective: match
    place: 0.6
    evaluate: false
    tokens_per_pack: 400
    world: {medium: both, turns: 1, tasks: {background: 1}}
"""


def test_a_folder_belongs_to_one_recipe(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    claim(read_recipe(recipe), folder)
    claim(read_recipe(recipe, {"seed": 3}), folder)  # nothing was saved yet
    (folder / "checkpoint").mkdir()
    claim(read_recipe(recipe, {"seed": 3, "minutes": 2, "threads": 2}), folder)
    with pytest.raises(ValueError, match=r"another recipe \(seed: 3 -> 4\)"):
        claim(read_recipe(recipe, {"seed": 4}), folder)
    (folder / "model").mkdir()
    with pytest.raises(ValueError, match=r"minutes: 2.0 -> 9.0"):
        claim(read_recipe(recipe, {"seed": 3, "minutes": 9}), folder)


def test_a_full_disk_leaves_the_run_its_recipe(recipe: Path, tmp_path: Path) -> None:
    """It was emptied first, and without it nothing can go on from the run's state or export it."""
    folder = tmp_path / "run"
    claim(read_recipe(recipe), folder)
    (folder / "checkpoint").mkdir()
    before = (folder / "config.yaml").read_text()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))  # the nearest thing to a full disk
    try:
        with pytest.raises(OSError, match="File too large"):
            claim(read_recipe(recipe, {"minutes": 2}), folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (folder / "config.yaml").read_text() == before
    claim(read_recipe(recipe, {"minutes": 2}), folder)


@pytest.mark.parametrize(("stage", "medium"), [("told", "words"), ("match", "both")])
def test_stages_told_in_words_cannot_be_measured(recipe: Path, capsys, stage: str, medium: str) -> None:
    """They ended in an error after their training, and a run does not go on with another recipe."""
    recipe.write_text(recipe.read_text(encoding="utf-8").replace("stages:", "stages:\n" + SIGHT, 1), encoding="utf-8")
    assert main(["train", "--config", str(recipe), "--set", f"stages.{stage}.evaluate=true"]) == USER_ERROR
    assert f"stage {stage} tells pictures in words (world.medium: {medium})" in capsys.readouterr().err


def test_constants_are_chosen_for_a_rare_language_too() -> None:
    """Of a hundred training scenes none may be Chinese where one of the questions is: the last measurement failed."""
    rare = WorldConfig(zh=0.001)
    found = world_samples(world_for_floors(rare), "train", 60, ["exists"])
    assert {sample.meta["lang"] for sample in found} == {"en", "zh"}
    for config in (WorldConfig(zh=0), WorldConfig(zh=0.23), WorldConfig(zh=1)):
        assert world_for_floors(config).config == config


def test_a_start_that_saved_nothing_leaves_no_log(recipe: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    claim(read_recipe(recipe), folder)
    assert not (folder / "metrics.jsonl").exists()


def test_a_folder_with_something_else_in_it_is_left_alone(recipe: Path, tmp_path: Path) -> None:
    own = tmp_path / "config.yaml"
    for text in ("lr: 3\n", f"# my recipe\n{recipe.read_text()}"):
        own.write_text(text)
        with pytest.raises(ValueError, match=r"config\.yaml was not written by qvl train"):
            claim(read_recipe(recipe), tmp_path)
        assert own.read_text() == text
    (tmp_path / "run" / "model").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"holds a trained model .* but no checkpoint"):
        claim(read_recipe(recipe), tmp_path / "run")


@pytest.mark.slow
def test_demo_from_nothing_to_report_and_again(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    arguments = ["demo", "--config", str(recipe)]
    assert main(arguments) == 0
    shown = capfd.readouterr().out
    assert "Captions" in shown
    assert "Naming" in shown
    assert f"qvl chat --model {folder / 'model'}" in shown.replace("\n", "")
    assert (folder / "report.html").stat().st_size > 10_000
    assert sorted(p.name for p in (folder / "eval").iterdir()) == ["chat", "final"]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["parameters"].keys() == {"vision", "merger", "text"}

    stamps = {p: p.stat().st_mtime_ns for p in (folder / "eval" / "final").iterdir()}
    steps = (folder / "metrics.jsonl").read_text()
    summary["hardware"]["processor"] = "another"  # the run was copied to this machine
    (folder / "summary.json").write_text(json.dumps(summary))
    assert main(arguments) == 0
    assert json.loads((folder / "summary.json").read_text()) == summary, "it tells of the training"
    assert (folder / "metrics.jsonl").read_text() == steps, "a finished run is not trained again"
    assert {p: p.stat().st_mtime_ns for p in (folder / "eval" / "final").iterdir()} == stamps, "nor measured again"
    assert main([*arguments, "--seed", "1"]) == USER_ERROR
    assert "seed: 0 -> 1" in capfd.readouterr().err

    assert main(["eval", "--model", str(folder / "model"), "--samples", "2", "--split", "dev"]) == 0
    assert "4 questions of world dev" in capfd.readouterr().out
    assert (folder / "measured" / "dev" / "predictions.jsonl").read_text().count("\n") == 4
    assert qvl.load(folder / "model").chat([{"role": "user", "content": "hello"}], max_new_tokens=2).token_ids


@pytest.mark.slow
def test_samples_are_shown_with_what_is_learned(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "page"
    assert main(["data", "show", "--config", str(recipe), "--count", "2", "--out", str(out)]) == 0
    page = (out / "samples.html").read_text(encoding="utf-8")
    assert page.count("<article>") == 4
    assert "data:image/png;base64," in page
    assert "<mark" in page
    assert "&lt;|im_start|&gt;assistant" in page, "the chat stage is shown as it is trained"


@pytest.mark.parametrize(
    ("options", "said"), [(["--stage", "nope"], "there are: words, chat"), (["--count", "0"], "count must be at least")]
)
def test_data_show_refuses(recipe: Path, options: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "show", "--config", str(recipe), *options]) == USER_ERROR
    assert said in capfd.readouterr().err


@pytest.mark.slow
def test_ranks_that_share_a_model_leave_the_same_folder(recipe: Path, tmp_path: Path) -> None:
    """Objectives of the demo included; the model is measured between stages and saved whole."""
    text = recipe.read_text(encoding="utf-8")
    text = text.replace("stages:", "stages:\n" + SIGHT, 1)
    recipe.write_text(text, encoding="utf-8")
    found = []
    for name, options in {
        "alone": ["--ranks", "1"],
        "shard": ["--ranks", "2", "--set", "parallel.shard=0"],
        "tensor": ["--ranks", "2", "--set", "parallel.tensor=2", "--set", "parallel.recompute=full"],
    }.items():
        run = tmp_path / name
        assert main(["train", "--config", str(recipe), "--run", str(run), *options]) == 0
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert (run / "eval" / "chat" / "metrics.json").is_file()
        found.append(
            ([(row["stage"], row["step"]) for row in rows], rows, load_file(run / "model" / "model.safetensors"))
        )
    steps, rows, weights = found[0]
    for other_steps, other_rows, other_weights in found[1:]:
        assert other_steps == steps
        for row, other in zip(rows, other_rows, strict=True):
            # `match` chooses among the words of a pack, and two ranks have a pack each; `told` has noise.
            assert other["loss"] == pytest.approx(row["loss"], rel=0.5 if row["stage"] in ("told", "match") else 0.05)
        assert {name: w.shape for name, w in other_weights.items()} == {name: w.shape for name, w in weights.items()}
        assert max(float((other_weights[name] - w).abs().max()) for name, w in weights.items()) < 0.05
