"""The runner asks in batches, judges, and writes files that say everything needed to repeat and to draw."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as PIL

from qvl.data.records import Sample
from qvl.evals.canned import CannedGenerator
from qvl.evals.runner import evaluate
from qvl.evals.tasks.answers import Naming, Told, Vqa
from qvl.evals.tasks.grounding import Grounding
from qvl.text.messages import Message, Text

SUITE = (Vqa(), Naming(), Grounding())


def picture_of(request):
    return next(p.source for m in request.messages for p in m.parts if hasattr(p, "source"))


@pytest.fixture
def samples(make_sample):
    box = {"names": ["dog"], "boxes_px": [(0, 0, 30, 20)], "answer_boxes_px": [(0, 0, 30, 20)]}
    found = [make_sample(f"q/{i}", "count", "How many?", f" {1 + i % 2}", names=[], boxes_px=[]) for i in range(7)]
    found += [make_sample(f"w/{i}", "grounding", "Where?", "the dog", lang="en", **box) for i in range(4)]
    found += [make_sample(f"z/{i}", "grounding", "在哪里？", "狗", lang="zh", **box) for i in range(2)]
    return found


@pytest.fixture
def sighted():
    """Counts right on black pictures, says 2 to grey ones; finds the dog only where it can see."""

    def answer(request):
        blind = picture_of(request).any()
        if "How many?" in str(request.messages):
            return "2" if blind else "1"
        return "no idea" if blind else "<|box_start|>(0,0),(500,500)<|box_end|>"

    return CannedGenerator(answer)


def test_batches_values_and_files(samples, sighted, tmp_path):
    stamp = {"model": "canned", "max_pixels": 7840}
    result = evaluate(sighted, SUITE, samples, tmp_path / "eval", batch_size=4, progress=False, stamp=stamp)
    assert sighted.batches == [4, 3, 4, 2]  # per task, never across
    assert set(result.tasks) == {"vqa", "grounding"}  # nothing was asked of naming
    assert result.value("vqa") == pytest.approx(4 / 7)
    assert result.value("grounding", "iou") == 1
    saved = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert saved["config"]["model"] == "canned"
    assert saved["config"]["decoding"] == "greedy"
    assert saved["config"]["resized_to"] == [[40, 60]]
    assert saved["config"]["tasks"]["vqa"] == {
        "samples": 7,
        "kinds": {"count": 7},
        "max_new_tokens": Vqa.max_new_tokens,
        "first_prompt": "<image>How many?",
    }
    accuracy = saved["tasks"]["vqa"]["metrics"]["accuracy"]
    assert accuracy["n"] == 7
    assert accuracy["ci_low"] < accuracy["value"] < accuracy["ci_high"]
    assert saved["tasks"]["grounding"]["headline"] == "acc@0.5"
    assert "acc@0.5/lang=zh" in saved["tasks"]["grounding"]["metrics"]


def test_every_prediction_is_written_with_its_boxes(samples, sighted, tmp_path):
    evaluate(sighted, SUITE, samples, tmp_path, progress=False)
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    assert sorted(r["name"] for r in rows) == sorted(s.name for s in samples)
    row = next(r for r in rows if r["name"] == "z/0")
    assert row["picture"] == "pictures/z_0.webp"
    del row["picture"]
    assert row == {
        "name": "z/0",
        "task": "grounding",
        "kind": "grounding",
        "lang": "zh",
        "question": "<image>在哪里？",
        "answer": "狗",
        "prediction": "<|box_start|>(0,0),(500,500)<|box_end|>",
        "finish_reason": "stop",
        "values": {"acc@0.5": 1.0, "iou": 1.0, "readable": 1.0},
        "hw": [40, 60],
        "boxes_px": [{"label": "", "xyxy": [0, 0, 30, 20]}],
        "answer_boxes_px": [[0, 0, 30, 20]],
        "objects_px": [{"label": "dog", "xyxy": [0, 0, 30, 20]}],
    }


def test_the_first_pictures_of_each_kind_and_language_are_kept(samples, sighted, tmp_path):
    evaluate(sighted, SUITE, samples, tmp_path, progress=False)
    kept = {p.name for p in (tmp_path / "pictures").iterdir()}
    assert kept == {f"q_{i}.webp" for i in range(4)} | {f"w_{i}.webp" for i in range(4)} | {"z_0.webp", "z_1.webp"}
    with PIL.open(tmp_path / "pictures" / "q_0.webp") as picture:
        assert picture.size == (60, 40)


def test_floors_are_measured_and_paired(samples, sighted, make_sample, tmp_path):
    box = {"boxes_px": [(0, 0, 9, 9)], "answer_boxes_px": [(30, 20, 60, 40)], "names": ["dog"]}
    train = [make_sample(f"tr/{i}", "count", "How many?", " 2") for i in range(3)]
    train += [make_sample(f"tw/{lang}", "grounding", "Where?", "x", lang=lang, **box) for lang in ("en", "zh")]
    result = evaluate(
        sighted, SUITE, samples, tmp_path, batch_size=32, progress=False, floor_samples=train, blind_floor=True
    )
    assert sighted.batches == [7, 7, 6, 6]
    vqa, grounding = result.tasks["vqa"], result.tasks["grounding"]
    assert vqa.constants == {"count/en": "2"}
    assert vqa.floors["constant"]["accuracy"].value == vqa.floors["blind"]["accuracy"].value == pytest.approx(3 / 7)
    assert vqa.gains["blind"].value == pytest.approx(1 / 7)
    assert vqa.gains["blind"].ci_low < 0  # seven samples prove nothing
    assert grounding.floors["blind"]["acc@0.5"].value == 0
    assert grounding.gains["blind"].ci_low == 1.0
    saved = json.loads((tmp_path / "metrics.json").read_text())["tasks"]["grounding"]
    assert saved["gains"]["constant"]["value"] == 1.0
    assert saved["floors"]["constant"]["acc@0.5/lang=zh"]["value"] == 0.0


def test_mistakes_are_named(samples, sighted, make_sample, tmp_path):
    with pytest.raises(ValueError, match="no samples were given"):
        evaluate(sighted, SUITE, [], tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"sample x/1 is of kind 'mixed'.*there are: .*count"):
        evaluate(sighted, SUITE, [make_sample("x/1", "mixed")], tmp_path, progress=False)
    with pytest.raises(ValueError, match="2 samples but only 1 names"):
        evaluate(sighted, SUITE, [samples[0], samples[0]], tmp_path, progress=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        evaluate(sighted, SUITE, samples, tmp_path, batch_size=0, progress=False)

    class Forgetful:
        def generate(self, requests):
            return []

    with pytest.raises(ValueError, match="0 replies to 7 requests of vqa"):
        evaluate(Forgetful(), SUITE, samples, tmp_path, progress=False)


def test_canned_answers_by_question(make_sample):
    picture = np.zeros((10, 20, 3), dtype=np.uint8)
    canned = CannedGenerator(
        {"Where?": "<|object_ref_start|> a dog<|object_ref_end|><|box_start|>(0,0),(500,999)<|box_end|>"}
    )
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "Where?"}]}]
    (reply,) = canned.generate(Vqa().requests([make_sample("a", "count", "Where?")]))
    assert reply.boxes[0].label == "a dog"
    request = type(Vqa().requests([make_sample("a", "count")])[0])(messages)
    assert canned.generate([request])[0].boxes[0].xyxy == (0, 0, 10, 10)


def test_evaluating_imports_no_torch():
    code = (
        "import sys; import qvl.evals.runner, qvl.evals.canned, qvl.evals.tasks.world; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_nothing_is_hidden_where_nothing_is_shown(tmp_path):
    told = [
        Sample(f"t/{i}", "text", (Message("user", (Text("A dog."),)), Message("assistant", (Text("dog"),))), {})
        for i in range(3)
    ]
    generator = CannedGenerator(lambda request: "dog")
    result = evaluate(generator, [Told()], told, tmp_path, progress=False, blind_floor=True)
    assert generator.batches == [3]
    assert result.value("told") == 1
    assert result.tasks["told"].floors == {}
