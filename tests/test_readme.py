"""The README's Python example runs, and its numbers come from files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from bench.readme_numbers import README, bench_section, collect_measured, demo_section, fill, kept_runs, side_by_side
from qvl.engine.vlm import VLM
from qvl.inputs.processor import Processor
from qvl.layers.decoder import DecoderConfig
from qvl.models.qwen2_vl.config import Qwen2VLConfig, VisionConfig, with_vocabulary
from qvl.models.qwen2_vl.model import Qwen2VL
from qvl.text.tokenizer import Tokenizer
from qvl.train.build import token_ids


@pytest.mark.slow
def test_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    tokenizer = Tokenizer.reduced(["Where is the cat?"], 64)
    sizes = Qwen2VLConfig(
        DecoderConfig(48, 1, 4, 2, 12, 64, rope_sections=(2, 2, 2)),
        VisionConfig(width=32, layers=1, heads=2, mlp_hidden=64),
        max_positions=256,
    )
    model = Qwen2VL(with_vocabulary(sizes, tokenizer.vocab_size, token_ids(tokenizer))).eval()
    model.init_weights(0)
    VLM(model, Processor(tokenizer)).save("runs/demo/model")
    Image.new("RGB", (84, 56), "red").save("cat.jpg")
    names: dict = {}
    exec(code, names)
    assert names["logits"].shape == (len(names["batch"].tokens_T), model.config.vocab_size)
    assert (tmp_path / "folder" / "model.safetensors").is_file()


def test_numbers_in_the_readme_are_those_in_the_files() -> None:
    """Fails after a new measurement until `make docs` has run."""
    text = README.read_text(encoding="utf-8")
    assert fill(text, kept_runs()) == text, "run `make docs`"


def test_sections_without_results_say_how_to_get_them() -> None:
    assert "make demo" in demo_section(None)
    assert "make bench" in bench_section("no-such-benchmark")


def test_demo_section_shows_scores_beside_floors() -> None:
    metric = {"value": 0.855, "n": 200, "ci_low": 0.8, "ci_high": 0.9}
    floors = {"constant": {"accuracy": {**metric, "value": 0.2}}, "blind": {"accuracy": {**metric, "value": 0.1}}}
    demo = {
        "summary": {
            "seconds": 900,
            "parameters": {"text": 2_000_000, "vision": 1_000_000},
            "seed": 0,
            "hardware": {"processor": "P", "threads": 2},
            "date": "2026-01-01",
            "targets": {"naming/accuracy": 0.8},
        },
        "questions": 200,
        "tasks": {
            "naming": {
                "title": "Naming",
                "headline": "accuracy",
                "metrics": {"accuracy": metric, "other": metric},
                "floors": floors,
            }
        },
        "stages": {"chat": {"naming": {"title": "Naming", "key": "accuracy", "value": 0.5}}},
    }
    shown = demo_section(demo).replace("\u00a0", " ")
    assert "| Naming: accuracy | 85.5 % | 80.0 – 90.0 | 20.0 % | 10.0 % | 80.0 % |" in shown
    assert "| Naming: accuracy | 50.0 % |" in shown
    assert "15 min" in shown
    assert "3.0 million parameters" in shown
    assert "Naming: other" in shown
    brief = demo_section(demo, whole=False)
    assert "Naming: accuracy" in brief
    assert "Naming: other" not in brief
    assert "chat" not in brief


def test_two_models_are_shown_side_by_side(tmp_path: Path) -> None:
    def run(name: str, accuracy: float, tasks: list[str]) -> dict:
        folder = tmp_path / name
        summary = {
            "seconds": 900,
            "parameters": {"text": 2_000_000},
            "seed": 0,
            "hardware": {"processor": "P", "threads": 2},
            "date": "2026-01-01",
        }
        for part in ("test", "easy-vqa"):
            (folder / "measured" / part).mkdir(parents=True)
            metric = {"value": accuracy, "n": 50, "ci_low": accuracy - 0.1, "ci_high": accuracy + 0.1}
            shown = {t: {"title": t.title(), "headline": "accuracy", "metrics": {"accuracy": metric}} for t in tasks}
            (folder / "measured" / part / "metrics.json").write_text(json.dumps({"tasks": shown}))
        (folder / "summary.json").write_text(json.dumps(summary))
        (folder / "metrics.jsonl").write_text('{"stage": "s", "step": 1, "elapsed_s": 1.0, "loss": 1.0}\n')
        return collect_measured(folder)

    first, second = run("a", 0.5, ["naming"]), run("b", 0.8, ["naming", "reading"])
    assert "Not measured yet" in side_by_side([first])
    shown = side_by_side([first, second]).replace("\u00a0", " ")
    assert "tiny (2.0 million parameters, 15 min 0 s of training)" in shown
    assert "| Naming: accuracy | 50 | 50.0 % (40.0 – 60.0) | 80.0 % (70.0 – 90.0) |" in shown
    assert "| Reading: accuracy | 50 |  | 80.0 % (70.0 – 90.0) |" in shown
