"""The report says what the files say, escapes what models say, and loads nothing."""

import json
import re
import shutil
import subprocess
import sys

import pytest
from made_run import Page, evaluation, row

from qvl.viz.report import LIMITS, write_report
from qvl.viz.run import read_run
from qvl.viz.wall import chosen, drawn_boxes, outcome
from qvl.viz.words import readable, said


def test_report_is_one_harmless_file(run):
    path = write_report(run)
    assert path == run / "report.html"
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert not {"script", "link", "iframe", "img", "form"} & set(page.tags)
    assert page.handlers == []
    assert len(page.addresses) == 30
    assert all(a.startswith("data:image/webp;base64,") for a in page.addresses)
    source = path.read_text(encoding="utf-8")
    assert not re.search(r"url\(|@import|https?://(?!www\.w3\.org/2000/svg)", source)
    assert "default-src 'none'" in source
    assert "\u202e" not in source
    assert page.text.count('alert("x")') >= 5  # name, prompt, constant, prediction, recipe: shown as words
    assert "prefers-color-scheme: dark" in source
    assert 'name="viewport"' in source


def test_report_says_what_was_measured(run):
    words = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "1 of 2 tasks are clearly above both floors" in words
    assert "Visual questions accuracy 60.0 %" in words
    assert "50.0 – 70.0 n = 40" in words
    assert "✓ +30.0 points" in words  # the smaller of both gains
    assert "✗ +0.00" in words  # captions: not above the blind model
    assert "CIDEr-D 4.50 4.00 – 5.00" in words
    assert "✓ 50.0" in words  # target met
    assert "✗ 6.00" in words  # target missed
    assert "vision 1.3 million" in words
    assert "15 min 5 s" in words
    assert "kind: count 12.5" in words
    assert "nats per supervised token" in words
    assert "early (8 min 0 s), late (10 min 0 s)" in words
    for limit in LIMITS:
        assert limit in words
    assert "Times were measured on: cpu: EPYC, cores: 2" in words


def test_a_few_items_have_no_interval(run):
    found = evaluation(0.6)
    found["tasks"]["vqa"]["metrics"]["accuracy/kind=count"]["n"] = 3
    (run / "eval" / "final" / "metrics.json").write_text(json.dumps(found))
    assert re.search(r"kind: count 12\.5\s% too few 3", Page(write_report(run).read_text(encoding="utf-8")).text)


def test_settings_are_readable():
    assert readable({"min": 1, "mean": 22.7368, "max": 120}) == "min 1, mean 22.74, max 120"
    assert readable([[84, 112], [56, 56]]) == "84 x 112, 56 x 56"
    assert readable({"text": ["merger", "text"], "on": True, "none": None}) == "text merger, text, on True, none None"


def test_marks_become_typography_and_long_words_are_cut():
    text = "<|object_ref_start|>a <b><|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|> & more"
    assert said(text) == "<u>a &lt;b&gt;</u><small>(1,2),(3,4)</small> &amp; more"
    assert said("<|box_start|>(1,2)") == "<small>(1,2)</small>"  # what a model opens is closed
    assert said("<|box_end|>x<|object_ref_start|>y<|box_end|>") == " x<u>y </u>"
    assert said("  ") == '<i class="none">(nothing)</i>'
    assert said("a" * 1000) == "a" * 900 + " …"


def test_stages_are_in_training_order_and_final_counts(run):
    read = read_run(run)
    assert list(read.evals) == ["early", "late", "final"]
    assert read.counted == "final"
    shutil.copytree(run / "eval" / "late", run / "eval" / "zero-shot")  # a stage that was not trained here
    assert list(read_run(run).evals) == ["early", "late", "zero-shot", "final"]
    shutil.rmtree(run / "eval" / "zero-shot")
    assert [(b.label, b.start, b.end) for b in read.stages] == [("early", 0.0, 8.0), ("late", 8.0, 18.0)]
    words = Page(write_report(run).read_text(encoding="utf-8")).text
    table = words[words.index("After each stage") :]
    assert re.search(r"accuracy 25\.0\s% 50\.0\s% 60\.0\s%", table)


def test_wall_shows_boxes_and_outcomes(run):
    source = write_report(run).read_text(encoding="utf-8")
    words = Page(source).text
    assert source.count('<li class="wrong">') == 1
    assert source.count('<li class="partly">') == 1
    assert source.count('<li class="right">') == 28
    assert "28 of these 30 answers are wholly right" in words
    assert source.count('lang="zh"') >= 15
    assert "true:" in words
    boxes = drawn_boxes(read_run(run).predictions[1])
    assert [(b.kind, tuple(b.xyxy)) for b in boxes] == [("true", (5, 5, 25, 25)), ("predicted", (1, 2, 30, 20))]


def test_wall_draws_the_box_that_a_question_is_about():
    asked = row(0, question="<image>What is in <|box_start|>(500,0),(999,500)<|box_end|>?")
    assert [(b.kind, b.xyxy) for b in drawn_boxes(asked)] == [("asked", (30, 0, 60, 20))]


def test_wall_takes_turns_between_kinds_and_languages_in_file_order():
    rows = [row(i, kind, lang) for i, (kind, lang) in enumerate([("a", "en")] * 4 + [("b", "en"), ("a", "zh")])]
    rows.append(row(9, "c", picture=None))
    assert [r["name"] for r in chosen(rows)] == ["t/0", "t/4", "t/5", "t/1", "t/2", "t/3"]
    assert len(chosen(rows, most=2)) == 2


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"accuracy": 1.0}, "right"),
        ({"accuracy": 0.0}, "wrong"),
        ({"cider": 9.0, "f1": 1.0, "exact": 0.0}, "partly"),
        ({"cider": 10.0, "f1": 1.0, "exact": 1.0}, "right"),
        ({"cider": 0.2, "f1": 0.0, "exact": 0.0}, "wrong"),
        ({"acc@0.5": 0.0, "iou": 0.45, "readable": 1.0}, "partly"),
        ({"acc@0.5": 0.0, "iou": 0.1, "readable": 1.0}, "wrong"),
        ({"grounded_f1": 0.5, "cider": 10.0, "f1": 1.0}, "partly"),
    ],
)
def test_outcomes(values, expected):
    assert outcome(row(0, values=values)) == expected


def test_what_is_missing_is_left_out(run):
    (run / "summary.json").unlink()
    (run / "config.yaml").unlink()
    shutil.rmtree(run / "eval")
    words = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "my run" in words
    assert "Learning" in words
    assert "Scores" not in words
    assert "The hardware was not recorded." in words


def test_an_evaluation_without_floors_says_so(run):
    found = evaluation(0.6)
    for task in found["tasks"].values():
        task |= {"floors": {}, "gains": {}, "constants": {}}
    (run / "eval" / "final" / "metrics.json").write_text(json.dumps(found))
    words = Page(write_report(run).read_text(encoding="utf-8")).text
    assert "no floor was" in words
    assert words.count("not measured") >= 5


def test_mistakes_are_named(run, tmp_path):
    with pytest.raises(FileNotFoundError, match="no run folder"):
        write_report(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"neither metrics\.jsonl nor eval"):
        write_report(tmp_path)
    (run / "eval" / "final" / "pictures" / "3.webp").unlink()
    with pytest.raises(FileNotFoundError, match=r"3\.webp is not there"):
        write_report(run)
    (run / "metrics.jsonl").write_text('{"stage": "a"}\n')
    with pytest.raises(ValueError, match=r"line 1 lacks elapsed_s, loss"):
        read_run(run)
    (run / "metrics.jsonl").write_text('{"stage": "a"\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 1 is not JSON"):
        read_run(run)


def test_a_run_under_way_is_reported_up_to_its_last_whole_line(run):
    log = run / "metrics.jsonl"
    whole = read_run(run).log
    log.write_text(log.read_text() + '{"stage": "chat", "elapsed_s": 3')
    assert read_run(run).log == whole
    write_report(run)


def test_an_answer_may_hold_any_character(run):
    path = run / "eval" / "final" / "predictions.jsonl"
    first, *rest = path.read_text(encoding="utf-8").split("\n")
    said = json.loads(first) | {"prediction": "one\u2028two\x85three"}
    path.write_text("\n".join([json.dumps(said, ensure_ascii=False), *rest]), encoding="utf-8")
    assert read_run(run).predictions[0]["prediction"] == "one\u2028two\x85three"
    write_report(run)


def test_reporting_imports_no_torch_and_no_evals():
    code = (
        "import sys; import qvl.viz.report; "
        "sys.exit(any(m == 'torch' or m == 'matplotlib' or m.startswith('qvl.evals') for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
