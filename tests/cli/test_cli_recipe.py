"""Recipes: every way to get one wrong, settings from the command line, writing and reading back."""

from __future__ import annotations

from pathlib import Path

import pytest

from qvl.cli.recipe import differences, read_recipe, recipe_text

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.name)
def test_shipped_recipes_are_right(path: Path) -> None:
    config = read_recipe(path)
    assert config.run
    assert all(stage.trains for stage in config.stages)


def test_values_are_typed(recipe: Path) -> None:
    config = read_recipe(recipe)
    words, chat = config.stages
    assert words.trains == ("text",)
    assert chat.optim.lr == 1e-3, "YAML reads 1e-3 as a text"
    assert chat.world.tasks == {"caption": 1.0, "what": 1.0}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("stages.chat.optim.lrr=1", "unknown key 'stages.1.optim.lrr'; did you mean 'lr'?"),
        ("stages.chat.world.turnz=1", "unknown key 'stages.1.world.turnz'; did you mean 'turns'?"),
        ("modell=tiny", "unknown key 'modell'; did you mean 'model'?"),
        ("zzz=1", "unknown key 'zzz'; known are: run, stages"),
        ("stages.chta.steps=1", "no 'stages.chta'; known are: words, chat"),
        ("stages.7.steps=1", "no 'stages.7'"),
        ("minutes=soon", "minutes: expected float, got soon"),
        ("stages.0.trains=[foo]", "stages.0: trains: expected 'vision', 'merger', 'text', got foo"),
        ("stages.1.world.tasks={what: many}", "stages.1: world.tasks: expected float, got many"),
        ("stages.0.world.turns=0", "stages.0: turns must be at least 1, got 0"),
        ("stages.chat.place=0.6", "place is 0.6; it is a length above 0, for the told and match"),
        ("stages.0=5", "stages.0 must hold keys and values, got 5"),
        ("stages=[]", "stages is empty"),
        ("stages.0.name=chat", "give each a name of its own"),
        ("stages.0.name=final", "give each a name of its own, other than 'final'"),
        ("model.size=1", "model is a single value"),
        ("minutes", "--set takes KEY=VALUE"),
        ("stages.0.steps=[1", "'[1' is not a YAML value"),
        ("minutes=-1", "minutes is -1.0; it must be a number at least 0"),
        ("seed=9223372036854775808", "seed is 9223372036854775808; it must be a number from 0 to"),
        ("run=' '", "run is ' '; name the folder of the run"),
        ("log_every=0", "log_every is 0; it must be a number at least 1"),
        ("eval_samples=0", "A stage that is not to be measured says evaluate: false"),
        ("model=null", "model has no value"),
        ("data=5", "data must hold keys and values, got 5"),
        ("data.files=[{path: ''}]", "a data file has an empty path"),
        ("stages.0.optim=null", "stages.0.optim has no value"),
        ("stages.0.optim.lr=.nan", "stages.0: optim.lr is nan; it must be a number at least 0"),
        ("stages.0.optim.warmup=3", "optim.warmup is 3.0; it must be a number from 0 to 1"),
        ("stages.0.optim.betas=[0.9, 1.0]", "optim.betas are (0.9, 1.0)"),
        ("stages.0.accumulate=0", "stage words: accumulate is 0; it must be a number at least 1"),
        ("stages.0.epochs=.inf", "stage words: epochs is inf"),
        ("stages.0={name: words, trains: [text], share: 0}", "stage words: it has no end: give it steps"),
        ("stages.0.name=../x", "a stage is called '../x'"),
        ("lora={targets: []}", "lora adapts nothing: parts=['text'], targets=[]"),
    ],
)
def test_a_wrong_value_names_the_key(recipe: Path, setting: str, said: str) -> None:
    with pytest.raises(ValueError) as error:
        read_recipe(recipe, settings=[setting])
    assert said in str(error.value)


@pytest.mark.parametrize(("text", "said"), [("a: [", "is not YAML"), ("- 1", "keys and values"), ("", "NoneType")])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        read_recipe(path)


def test_settings_change_one_place_only(recipe: Path) -> None:
    text = recipe.read_text().replace("optim: {lr: 1e-3}", "optim: &shared {lr: 1e-3}")
    recipe.write_text(f"{text}  - {{name: more, trains: [text], share: 1, optim: *shared}}\n")
    config = read_recipe(recipe, {"minutes": 3, "seed": None}, ["stages.chat.optim.lr=1e-4", "stages.0.steps=9"])
    assert [stage.optim.lr for stage in config.stages] == [1e-3, 1e-4, 1e-3]
    assert (config.minutes, config.seed, config.stages[0].steps) == (3.0, 0, 9)


def test_written_recipes_read_back(tmp_path: Path, recipe: Path) -> None:
    config = read_recipe(recipe)
    again = tmp_path / "again.yaml"
    again.write_text(recipe_text(config), encoding="utf-8")
    assert read_recipe(again) == config


def test_differences_name_keys_and_values(recipe: Path) -> None:
    config = read_recipe(recipe)
    other = read_recipe(recipe, {"minutes": 3}, ["stages.chat.optim.lr=0.5"])
    assert differences(config, config) == []
    assert differences(config, other, ["minutes"]) == ["stages.1.optim.lr: 0.001 -> 0.5"]
    assert len(differences(config, other)) == 2


def test_a_recipe_builds_on_another(recipe: Path) -> None:
    own = recipe.with_name("own.yaml")
    own.write_text("base: small.yaml\nseed: 5\nset: {stages.chat.optim.lr: 0.5, stages.chat.world.tasks.what: 0}\n")
    assert sorted(differences(read_recipe(recipe), read_recipe(own))) == [
        "seed: 0 -> 5",
        "stages.1.optim.lr: 0.001 -> 0.5",
        "stages.1.world.tasks.what: 1.0 -> 0.0",
    ]
    for text, said in [
        ("base: own.yaml", "is its own base"),
        ("base: gone.yaml", "there is no recipe"),
        ("base: 5", "base must be the path of one recipe, got 5"),
        ("base: small.yaml\nset: 3", "set must hold dotted keys and values, got 3"),
        ("base: small.yaml\nset: {stages.nope.steps: 3}", "no 'stages.nope'; known are: words, chat"),
    ]:
        own.write_text(text)
        with pytest.raises((ValueError, FileNotFoundError), match=said):
            read_recipe(own)


def test_recipes_that_build_on_each_other_are_refused(recipe: Path) -> None:
    a, b = recipe.with_name("a.yaml"), recipe.with_name("b.yaml")
    a.write_text("base: b.yaml")
    b.write_text("base: a.yaml")
    with pytest.raises(ValueError, match=r"b\.yaml is its own base, by way of a\.yaml"):
        read_recipe(a)


def test_minutes_are_needed_where_a_stage_gets_a_share(recipe: Path) -> None:
    assert read_recipe(recipe, None, ["minutes=0"]).minutes == 0, "its stages have steps"
    with pytest.raises(ValueError, match="minutes is 0, but chat get a share of them"):
        read_recipe(recipe, None, ["minutes=0", "stages.chat.steps=0"])


def test_both_generations_go_through_the_same_stages() -> None:
    second, first = (read_recipe(RECIPES[0].parent / name) for name in ("tiny.yaml", "tiny_qwen_vl.yaml"))
    changed = {line.split(":")[0].rpartition(".")[2] for line in differences(second, first)}
    # 0 and 1 are sides of pictures that are told; ocr, compare and text their share of the mix, what is read is larger
    mixed = {"ocr", "compare", "text", "video", "text_lines", "text_size"}
    assert changed <= {"run", "model", "place", "0", "1", *mixed}
