"""The ablation of the adapter's queries: the same training for every point, results from files, nothing done twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.query_ablation import base_of, last_losses, main, point_of, table
from qvl.cli.recipe import differences, read_recipe
from qvl.text.messages import WordPicture
from qvl.train.build import sample_source

RECIPES = Path(__file__).parents[1] / "recipes"
RECIPE = """\
run: unused
model: tiny-qwen-vl
threads: 1
log_every: 1
stages:
  - name: told
    trains: [text]
    share: 1
    steps: 1
    objective: told
    evaluate: false
    tokens_per_pack: 200
    world: {medium: words, sizes: [[112, 112]], repeats: 0, tasks: {what: 1}}
  - name: shown
    trains: [vision, merger]
    share: 1
    steps: 2
    tokens_per_pack: 400
    world: {tasks: {what: 1, caption: 1}}
"""


def test_points_differ_in_queries_only(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / "tiny_qwen_vl.yaml")
    few, many = (point_of(recipe, tmp_path, queries, 2.0) for queries in (4, 36))
    assert sorted(differences(few, many)) == ["queries: 4 -> 36", f"run: {few.run} -> {many.run}"]
    base = base_of(recipe, tmp_path, 1.0)
    assert base is not None
    assert few.parts.language == f"{base.run}/model"
    assert {stage.objective for stage in base.stages} == {"told"}
    assert [stage.name for stage in (*base.stages, *few.stages)] == [stage.name for stage in recipe.stages]


@pytest.mark.parametrize("queries", [4, 9, 36])
def test_pictures_are_told_in_as_many_words_as_there_are_queries(tmp_path: Path, queries: int) -> None:
    point = point_of(read_recipe(RECIPES / "tiny_qwen_vl.yaml"), tmp_path, queries, 2.0)
    told = [stage for stage in point.stages if stage.objective == "match"]
    assert told
    for stage in told:
        parts = sample_source(point, stage)[0].messages[0].parts
        (words,) = (part.words for part in parts if isinstance(part, WordPicture))
        assert len(words) ** 2 == queries
        assert {len(row) for row in words} == {len(words)}


def test_the_published_recipe_starts_from_its_own_parts(tmp_path: Path) -> None:
    recipe = read_recipe(RECIPES / "qwen_vl_stage1.yaml")
    assert base_of(recipe, tmp_path, 1.0) is None
    assert point_of(recipe, tmp_path, 64, 1.0).parts == recipe.parts


def test_a_stage_ends_with_the_mean_of_its_last_lines() -> None:
    log = [{"stage": "a", "loss": float(i)} for i in range(20)] + [{"stage": "b", "loss": 7.0}]
    assert last_losses(log) == {"a": 18.5, "b": 7.0}


def test_table_shows_losses_and_scores_with_intervals() -> None:
    metric = {"value": 0.5, "n": 40, "ci_low": 0.4, "ci_high": 0.6}
    point = {
        "queries": 4,
        "parameters": {"merger": 1234},
        "seconds": 90.0,
        "steps": {"a": 10, "b": 5},
        "loss": {"a": 2.0, "b": 1.5},
        "scores": {"naming/accuracy": metric, "caption/cider": metric},
    }
    lines = table([point, point | {"queries": 9}]).replace("\u00a0", " ").splitlines()
    assert lines[0].endswith("loss, a | loss, b | naming: accuracy | caption: CIDEr-D |")
    assert lines[2] == "| 4 | 1,234 | 15 | 1.5 | 2.000 | 1.500 | 50.0 % (40.0 – 60.0) | 0.50 (0.40 – 0.60) |"
    assert lines[3].startswith("| 9 |")


@pytest.mark.slow
def test_from_recipe_to_plots_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe, out = tmp_path / "r.yaml", tmp_path / "out"
    recipe.write_text(RECIPE)
    arguments = ["--config", str(recipe), "--samples", "1", "--out", str(out), "--queries", "9"]
    main([*arguments[:-1], "4"])
    main([*arguments, "4"])
    found = json.loads((out / "results.json").read_text())
    assert [point["queries"] for point in found["points"]] == [4, 9]
    assert all(point["loss"].keys() == {"shown"} for point in found["points"])
    assert {"naming/accuracy", "caption/cider"} <= found["points"][0]["scores"].keys()
    assert (out / "losses.svg").read_text().count("queries</text>") == 2
    assert "naming: accuracy" in (out / "scores.svg").read_text()
    assert "q4 beside q9" in (out / "comparison.html").read_text()
    steps = [(out / name / "metrics.jsonl").read_text() for name in ("base", "q4", "q9")]
    capsys.readouterr()
    main([*arguments, "4"])
    assert [(out / name / "metrics.jsonl").read_text() for name in ("base", "q4", "q9")] == steps, "nothing done twice"
    assert "| 9 |" in capsys.readouterr().out
