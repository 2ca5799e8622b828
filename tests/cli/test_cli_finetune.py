"""Fine-tuning a saved model on a file of conversations: look, train, stop, go on, export, talk."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image as Picture

import qvl
from qvl.cli.main import INTERRUPTED, USER_ERROR, main
from qvl.cli.recipe import read_recipe
from qvl.cli.start import begin
from qvl.data.world import World, WorldConfig
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.media.image import open_image
from qvl.models.lora import adapters
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.grounding import Coordinates
from qvl.text.messages import Image, Text
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import token_ids
from qvl.train.trainer import Trainer

RECIPES = Path(__file__).parents[2] / "recipes"
WORLD = WorldConfig(concepts=9, sizes=((56, 84), (84, 56)), turns=2, style="chat", zh=0, objects=(0.5, 0.5))
FAST = ["--threads", "1", "--set", "log_every=1", "--set", "stages.0.epochs=0"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny model."""
    tokenizer = Tokenizer.reduced(World(WORLD).lexicon(), 0)
    sizes = Qwen2VLConfig(
        DecoderConfig(32, 2, 2, 1, 16, 48, rope_theta=20.0, rope_sections=(2, 3, 3)),
        VisionConfig(width=16, layers=2, heads=2, mlp_hidden=32),
        tie_embeddings=True,
    )
    model = Qwen2VL(with_vocabulary(sizes, tokenizer.vocab_size, token_ids(tokenizer)))
    model.init_weights(0)
    folder = tmp_path_factory.mktemp("base") / "model"
    VLM(model.eval(), Processor(tokenizer)).save(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty scenes of the embedded world as a LLaVA file, boxes in pixels."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "pictures").mkdir()
    world = World(WORLD)
    lines = []
    for i in range(20):
        sample = world.sample("train", i, ("grounding", "what")[i % 2])
        (picture,) = (p for m in sample.messages for p in m.parts if isinstance(p, Image))
        opened = open_image(picture.source)
        opened.save(folder / f"pictures/{i}.png")
        turns = []
        for message in sample.messages:
            text = "".join(p.text if isinstance(p, Text) else "<image>\n" for p in message.parts)
            turns.append({"from": {"user": "human", "assistant": "gpt"}[message.role], "value": _in_px(text, opened)})
        lines.append({"id": i, "image": f"pictures/{i}.png", "conversations": turns})
    (folder / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "my.jsonl"


def _in_px(text: str, picture: Picture.Image) -> str:
    hw = (picture.height, picture.width)

    def pixels(found: re.Match[str]) -> str:
        x1, y1, x2, y2 = Coordinates(hw, hw).box_1000_to_exact_px([int(n) for n in found.groups()])
        return f"({x1:.2f},{y1:.2f}),({x2:.2f},{y2:.2f})"

    return re.sub(r"\((\d+),(\d+)\),\((\d+),(\d+)\)", pixels, text)


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def arguments(recipe: str, base: Path, data: Path, run: Path, *more: str) -> list[str]:
    config = str(RECIPES / f"{recipe}.yaml")
    options = ["--config", config, "--model", str(base), "--data", str(data), "--boxes", "px", "--run", str(run)]
    return ["train", *options, *FAST, "--set", "stages.0.tokens_per_pack=900", *more]


@pytest.mark.slow
def test_a_first_look_shows_boxes_and_what_is_learned(base, data, tmp_path, capsys) -> None:
    assert main(arguments("lora", base, data, tmp_path / "run", "--dry-run")) == 0
    file = tmp_path / "run" / "first_look.html"
    assert str(file) in capsys.readouterr().out.replace("\n", "")
    page = file.read_text()
    assert page.count("<article>") == 10
    assert len(set(re.findall(r"my\.jsonl:\d+", page))) == 10
    assert page.count("<mark") >= 10
    assert page.count("<image href=") == 10
    assert 'stroke="#ffffff"' in page, "boxes of answers"
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_a_first_look_at_few_lines_shows_each_once(base, data, tmp_path, capsys) -> None:
    first, second, *_ = data.read_text().splitlines(keepends=True)
    few = data.with_name("few.jsonl")
    few.write_text(first + second)
    assert main(arguments("lora", base, few, tmp_path / "run", "--dry-run")) == 0
    assert (tmp_path / "run" / "first_look.html").read_text().count("<article>") == 2
    few.write_text(first.replace("pictures/0", "pictures/gone"))
    assert main(arguments("lora", base, few, tmp_path / "none", "--dry-run")) == USER_ERROR
    assert "none of 1 samples can be used; the first: few.jsonl:1" in capsys.readouterr().err


def test_a_conversation_that_is_too_long_is_no_bad_line(base, data, tmp_path) -> None:
    """Training leaves it out with --strict too, so the first look must not end the run."""
    long = {"conversations": [{"from": "human", "value": "what " * 2000}, {"from": "gpt", "value": "a cat"}]}
    file = data.with_name("long 😀.jsonl")  # which JSON spells in a way that YAML does not read
    file.write_text(data.read_text().splitlines()[0] + "\n" + json.dumps(long) + "\n")
    assert main(arguments("lora", base, file, tmp_path / "run", "--dry-run", "--strict")) == 0
    page = (tmp_path / "run" / "first_look.html").read_text()
    assert page.count("<article>") == 1
    assert "there is room for 900" in page


def test_data_show_reads_files(base, data, tmp_path, capsys) -> None:
    settings = [f"model={base}", f"data.files=[{{path: {data}}}]", "data.boxes=px"]
    command = ["data", "show", "--config", str(RECIPES / "lora.yaml"), "--count", "2", "--out", str(tmp_path)]
    assert main([*command, *(word for setting in settings for word in ("--set", setting))]) == 0
    assert (tmp_path / "samples.html").read_text().count("<article>") == 2
    assert main([*command, "--split", "dev", *(w for setting in settings for w in ("--set", setting))]) == USER_ERROR
    assert "which have no split 'dev'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--boxes", "relative"], "cannot be a place with boxes: relative"),
        (["--image-root", "/nowhere"], "no file /nowhere/pictures/"),
        (["--set", "lora.targets=[c_attn]"], "'c_attn' names no layer"),
        (["--set", "stages.0.frozen=[head*]"], "no parameter is called 'head*'"),
        (["--set", "stages.0.trains=[vision]"], "nothing learns: trains=vision (lora adapts text)"),
        (["--set", "data.files=[]", "--set", "stages.0.epochs=2"], "epochs are for runs on files"),
        (["--model", "nowhere"], "Presets are qwen2-vl-2b"),
    ],
)
def test_what_cannot_be_is_said_before_the_first_step(base, data, tmp_path, capsys, more, said) -> None:
    assert (
        main(arguments("lora", base, data, tmp_path / "run", "--strict", "--set", "stages.0.steps=1", *more))
        == USER_ERROR
    )
    assert said in capsys.readouterr().err


def _train_with_a_stop(monkeypatch: pytest.MonkeyPatch, command: list[str], after: int) -> None:
    """Runs the command, stops it after so many steps, and runs it again to its end."""
    step = Trainer._step

    def stopping(self: Trainer, run, *rest) -> object:
        if run.clock.step == after - 1:
            self.stop()
        return step(self, run, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_step", stopping)
        assert main(command) == INTERRUPTED
    assert main(command) == 0


LOUD = {
    "lora": [
        "--set",
        "lora={rank: 8, alpha: 32, dropout: 0.1, parts: [text, merger]}",
        "--set",
        "stages.0.trains=[text, merger]",
    ],
    "finetune": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["lora", "finetune"])
def test_fine_tuning_from_a_folder_to_a_folder(recipe, base, data, tmp_path, monkeypatch, capsys) -> None:
    run = tmp_path / "run"
    rates = ["--set", "stages.0.optim.lr=2e-2", "--set", "stages.0.steps=16", "--set", "stages.0.accumulate=1"]
    command = arguments(recipe, base, data, run, *rates, *LOUD[recipe])
    _train_with_a_stop(monkeypatch, command, 6)
    found = losses(run)
    assert len(found) == 16, "gone on with, no step twice"
    assert sum(found[-4:]) < 0.75 * sum(found[:4])

    if recipe == "lora":
        for kind, more in (("adapter", ["--merge"]), ("model", [])):
            assert main(["export", str(run), str(run / kind), *more]) == USER_ERROR
            assert f"holds {'a model' if kind == 'model' else 'an adapter'}" in capsys.readouterr().err
        whole = tmp_path / "whole"
        assert main([str(whole) if a == str(run) else a for a in command]) == 0
        assert losses(whole) == found, "stopped or not, it is the same run"

    assert main(["export", str(run / "checkpoint"), str(tmp_path / "out"), "--merge"]) == 0
    assert "the end" in capsys.readouterr().out.replace("\n", "")
    question = [{"role": "user", "content": [{"type": "image", "image": str(data.parent / "pictures/0.png")}, "what?"]}]
    exported, trained = qvl.load(tmp_path / "out"), qvl.load(run / "model")
    batch = trained.processor([question], generation_prompt=True)
    with torch.no_grad():
        logits = trained.model(batch)
        assert torch.equal(exported.model(batch), logits)
        if recipe == "lora":
            assert main(["export", str(run), str(tmp_path / "adapter")]) == 0
            for adapter in (run / "adapter", tmp_path / "adapter"):
                again = qvl.load(base, lora=adapter)
                assert torch.equal(again.model(batch), logits)
        assert not torch.equal(qvl.load(base).model(batch), logits)
    assert exported.chat(question, max_new_tokens=4).text == trained.chat(question, max_new_tokens=4).text
    _in_transformers(tmp_path / "out", logits, batch)


def _in_transformers(folder: Path, logits: torch.Tensor, batch) -> None:
    transformers = pytest.importorskip("transformers")
    model, info = transformers.Qwen2VLForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    assert not any(info.values()), info
    ids = batch.tokens_T[None]
    with torch.no_grad():
        theirs = model.eval()(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == model.config.image_token_id).int(),
            pixel_values=batch.patches_PC,
            image_grid_thw=torch.tensor(batch.grids),
        ).logits[0]
    assert (theirs - logits).abs().max() <= 2e-5 * logits.abs().max()  # measured: 5.0e-7


@pytest.mark.slow
def test_the_state_of_a_run_from_a_preset_is_exported(recipe: Path, tmp_path, monkeypatch) -> None:
    assert (
        main(["train", "--config", str(recipe), "--set", "stages.1.evaluate=false", "--set", "stages.1.steps=1"]) == 0
    )
    monkeypatch.chdir(tmp_path / "run/checkpoint")  # from within the run, too
    assert main(["export", ".", str(tmp_path / "out")]) == 0
    a, b = qvl.load(tmp_path / "out"), qvl.load(tmp_path / "run/model")
    assert all(torch.equal(p, q) for p, q in zip(a.model.parameters(), b.model.parameters(), strict=True))
    assert a.processor.config.chat_format == b.processor.config.chat_format == "chatml"


@pytest.mark.parametrize(("folder", "said"), [("nothing", "no run of qvl train"), ("run", "nothing is saved in")])
def test_what_cannot_be_exported_is_said(recipe: Path, tmp_path, capsys, folder: str, said: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/config.yaml").write_text(recipe.read_text())
    assert main(["export", str(tmp_path / folder), str(tmp_path / "out")]) == USER_ERROR
    assert said in capsys.readouterr().err


def test_adapters_of_a_run_are_those_of_its_recipe(base, data, tmp_path) -> None:
    config = read_recipe(RECIPES / "lora.yaml", {"model": str(base), "run": str(tmp_path / "run")})
    built = begin(config, tmp_path / "run")
    assert len(list(adapters(built.model))) == 2 * 7
    assert (tmp_path / "run/start/config.json").is_file()
    assert not list((tmp_path / "run/start").glob("*.safetensors"))
