"""Files of entries: read by position, mixed by weight, shuffled by epoch, gone on with exactly; bad lines are named."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
import pickle
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture

from qvl.data.fitting import TooLarge, fit
from qvl.data.loader import background
from qvl.data.packing import PackLimits, packs
from qvl.data.records import Sample
from qvl.data.user import DataConfig, DataFile, UserSource
from qvl.data.user.lines import EntryFile, data_files
from qvl.inputs.processor import Processor, ProcessorConfig
from qvl.text.family import QWEN_VL
from qvl.text.messages import Image, Message, Text
from qvl.text.tokenizer import Tokenizer


def entry(question: str, answer: str = "a cat", **more: object) -> dict:
    return {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}], **more}


def write(path: Path, entries: list[dict]) -> Path:
    path.write_text("".join(json.dumps(e, ensure_ascii=False) + "\n" for e in entries), encoding="utf-8")
    return path


def files(*paths: Path, **options: object) -> DataConfig:
    return DataConfig(tuple(DataFile(str(p)) for p in paths), **options)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def processor() -> Processor:
    return Processor(Tokenizer.reduced(["a dog and a cat"], 0))


def test_lines_are_found_by_position(tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xe4\xb8\xad\xe2\x80\xa8"}\n\r\n{"a": 3}')
    found = EntryFile(file)
    assert [found[i]["a"] for i in (2, 0, 1)] == [3, 1, "中\u2028"]
    assert [found.name(i) for i in range(len(found))] == ["x.jsonl:1", "x.jsonl:3", "x.jsonl:5"]
    assert pickle.loads(pickle.dumps(found))[1] == found[1]


def test_a_json_list_is_read_entry_by_entry(tmp_path: Path) -> None:
    entries = [{"a": 'quote " bracket ] } \\'}, {"a": [{"b": [1]}]}, {"a": "中"}]
    file = tmp_path / "x.json"
    file.write_text(json.dumps(entries, indent=2, ensure_ascii=False), encoding="utf-8")
    found = EntryFile(file)
    assert [found[i] for i in range(len(found))] == entries
    assert found.name(1) == "x.json entry 2"
    file.write_text(json.dumps(entries)[:-9])
    with pytest.raises(ValueError, match=r"x.json is cut off"):
        EntryFile(file)


@pytest.mark.parametrize("content", ["", "\n\n"])
def test_a_file_without_samples_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.jsonl").write_text(content)
    with pytest.raises(ValueError, match=r"x.jsonl holds no samples"):
        EntryFile(tmp_path / "x.jsonl")


def test_folders_and_what_is_not_there(tmp_path: Path) -> None:
    write(tmp_path / "b.jsonl", [entry("q")])
    write(tmp_path / "a.jsonl", [entry("q")])
    (tmp_path / "c.txt").touch()
    assert [p.name for p in data_files(tmp_path)] == ["a.jsonl", "b.jsonl"]
    assert UserSource(files(tmp_path), 0).tasks == ("a", "b")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"holds no .jsonl or .json file"):
        data_files(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match=r"there is no data file .*gone.jsonl"):
        UserSource(files(tmp_path / "gone.jsonl"), 0)
    with pytest.raises(ValueError, match="there are no data files"):
        UserSource(DataConfig(), 0)


def names(source: UserSource, indices: range) -> list[str]:
    return [source[i].name for i in indices]


def test_an_epoch_is_every_line_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    source = UserSource(files(write(tmp_path / "x.jsonl", [entry(str(i)) for i in range(20)])), seed=1)
    assert len(source) == 20
    first, second = names(source, range(20)), names(source, range(20, 40))
    assert sorted(first) == sorted(second) == sorted(f"x.jsonl:{i}" for i in range(1, 21))
    assert first != second
    again = UserSource(source.config, seed=1)
    assert names(again, range(33, 40)) == second[13:], "a pure function of seed and index"
    assert names(UserSource(source.config, seed=2), range(20)) != first


def test_weights_mix_files_and_still_use_every_line(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [entry(str(i)) for i in range(10)])
    b = write(tmp_path / "b.jsonl", [entry(str(i)) for i in range(6)])
    source = UserSource(DataConfig((DataFile(str(a), 0.5), DataFile(str(b), 2.0))), seed=0)
    assert len(source) == 5 + 12
    assert source.description == "a.jsonl 10 (5 per epoch), b.jsonl 6 (12 per epoch)"
    epoch = Counter(names(source, range(17)))
    assert sum(n for name, n in epoch.items() if name.startswith("a")) == 5
    assert {n for name, n in epoch.items() if name.startswith("b")} == {2}
    both = Counter(names(source, range(34)))
    assert {n for name, n in both.items() if name.startswith("a")} == {1}, "the second epoch takes the other half"
    with pytest.raises(ValueError, match="weight of a must be above 0"):
        DataFile("a", 0)


def test_files_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b", "a/x", "b/x"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "train.jsonl").write_text(json.dumps(entry("a dog?")) + "\n")
    source = UserSource(files(tmp_path / "a", tmp_path / "b"), 0)
    assert source.tasks == ("a/train", "b/train")
    assert sorted(names(source, range(2))) == ["a/train.jsonl:1", "b/train.jsonl:1"]
    alike = UserSource(files(tmp_path / "a/x", tmp_path / "b/x", tmp_path / "a"), 0)
    assert alike.tasks == ("a/x/train", "b/x/train", "a/train")
    (tmp_path / "a/train.json").write_text(json.dumps([entry("a dog?")]))
    assert UserSource(files(tmp_path / "a"), 0).tasks == ("a/train",), "two files of one folder are one task"


@pytest.mark.parametrize("line", ['{"a": ' + "[" * 100_000, json.dumps({"image": "x" * 300})])
def test_whatever_is_wrong_is_said_with_file_and_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "x.jsonl").write_text(line.replace('{"image"', json.dumps(entry("<image>"))[:-1] + ', "image"'))
    with pytest.raises((ValueError, OSError), match=r"^x.jsonl:1: "):
        UserSource(files(tmp_path / "x.jsonl"), 0)[0]


@pytest.fixture
def spoilt(tmp_path: Path) -> Path:
    """Twelve lines; 3 is no JSON, 5 lacks its picture, 7 has a damaged one, 9 has two placeholders for one picture."""
    pixels = np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)
    Picture.fromarray(pixels).save(tmp_path / "a.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:900])
    lines = [json.dumps(entry("<image>\na dog?", image="a.jpg")) for _ in range(12)]
    lines[2] = '{"conversations": ['
    lines[4] = lines[4].replace("a.jpg", "gone.jpg")
    lines[6] = lines[6].replace("a.jpg", "cut.jpg")
    lines[8] = lines[8].replace("<image>", "<image><image>")
    (tmp_path / "x.jsonl").write_text("\n".join(lines))
    return tmp_path / "x.jsonl"


REASONS = {
    3: "not valid JSON",
    5: r"conversations\[0\].value: no file .*gone.jpg",
    7: "cannot decode .*cut.jpg.*truncated",
    9: "2 <image> in the text, but 1 given",
}


@pytest.mark.slow
def test_bad_lines_are_left_out_and_named(spoilt: Path, processor: Processor, caplog: pytest.LogCaptureFixture) -> None:
    limits = PackLimits(200, 1000)
    with caplog.at_level(logging.WARNING):
        taken = list(itertools.islice(packs(UserSource(files(spoilt, max_bad=4), 0), processor, limits, "chatml"), 12))
    used = Counter(name for pack in taken for name in pack.batch.names)
    assert set(used) == {f"x.jsonl:{i}" for i in range(1, 13) if i not in REASONS}
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 4, "once each, though they come again in every epoch"
    for line, reason in REASONS.items():
        assert any(f"left out x.jsonl:{line}: " in t for t in told)
        assert re.search(reason, " ".join(told))
    resumed = next(
        packs(UserSource(files(spoilt, max_bad=4), 0), processor, limits, "chatml", start=taken[3].next_index)
    )
    assert resumed.batch.names == taken[4].batch.names


def test_what_is_too_long_is_named_once(tmp_path: Path, processor: Processor, caplog: pytest.LogCaptureFixture) -> None:
    source = UserSource(files(write(tmp_path / "x.jsonl", [entry("a dog?"), entry("a dog " * 50)])), 0)
    with caplog.at_level(logging.WARNING):
        taken = list(itertools.islice(packs(source, processor, PackLimits(30, 0), "chatml"), 5))
    assert taken[-1].next_index >= 2 * 4, "epochs"
    (told,) = (record.getMessage() for record in caplog.records)
    assert told.startswith("left out x.jsonl:2: ")


@pytest.mark.parametrize("line", REASONS)
def test_strict_stops_at_the_first(spoilt: Path, processor: Processor, line: int) -> None:
    lines = spoilt.read_text().split("\n")
    good = [lines[0]] * 12
    good[line - 1] = lines[line - 1]
    spoilt.write_text("\n".join(good))
    source = UserSource(files(spoilt, strict=True), 0)
    limits = PackLimits(200, 1000)
    with pytest.raises((ValueError, FileNotFoundError), match=f"^x.jsonl:{line}: .*{REASONS[line]}"):
        list(itertools.islice(packs(source, processor, limits, "chatml"), 12))


def test_too_many_bad_lines_end_the_run(spoilt: Path, processor: Processor) -> None:
    source = UserSource(files(spoilt, max_bad=3), 0)
    with pytest.raises(ValueError, match="with it 4 samples cannot be used, 3 are allowed"):
        list(itertools.islice(packs(source, processor, PackLimits(200, 1000), "chatml"), 12))


def test_an_error_in_the_worker_is_raised_as_it_is(spoilt: Path, processor: Processor) -> None:
    source = UserSource(files(spoilt, strict=True), 0)
    with pytest.raises((ValueError, FileNotFoundError), match=r"^x.jsonl:\d+: "):
        list(itertools.islice(background(lambda: packs(source, processor, PackLimits(200, 1000), "chatml")), 12))


def sample(words: str, hw: tuple[int, int] = (280, 560), pictures: int = 1) -> Sample:
    shown = tuple(Image(np.zeros((*hw, 3), np.uint8)) for _ in range(pictures))
    return Sample("x.jsonl:1", "x", (Message("user", (*shown, Text("a dog?"))), Message("assistant", (Text(words),))))


def test_sigterm_to_all_processes_leaves_packs_coming(tmp_path: Path, processor: Processor) -> None:
    source = UserSource(files(write(tmp_path / "x.jsonl", [entry("a dog?")] * 3)), 0)
    stream = background(lambda: packs(source, processor, PackLimits(40, 0), "chatml"), prefetch=2)
    next(stream)
    (worker,) = multiprocessing.active_children()
    # By another process than the parent, whose word ends it.
    subprocess.run(["kill", "-TERM", str(worker.pid)], check=True)
    for _ in range(6):
        next(stream)
    worker.terminate()
    worker.join(60)
    assert worker.exitcode == 0


def test_a_sample_that_is_too_long_gets_smaller_pictures(processor: Processor) -> None:
    """Truncation that cuts pictures in two was a complaint; here pictures shrink and text stays whole."""
    whole = fit(sample("a cat", pictures=2), processor, "chatml", 10_000, 10_000)[0]
    small = fit(sample("a cat", pictures=2), processor, "chatml", 200, 10_000)[0]
    fewer = fit(sample("a cat", pictures=2), processor, "chatml", 10_000, 700)[0]
    assert len(whole.vision_rows_M) == 2 * 200
    assert 100 <= len(small.vision_rows_M) <= len(small.tokens_T) <= 200
    assert 500 <= fewer.patch_count <= 700
    texts = [int((s.labels_T >= 0).sum()) for s in (whole, small, fewer) if s.labels_T is not None]
    assert len(set(texts)) == 1
    height, width = small.visuals[0].resized_hw
    assert 1.5 < width / height < 2.7, "nearly the shape it had"


@pytest.mark.slow
def test_what_cannot_fit_is_named(processor: Processor) -> None:
    with pytest.raises(TooLarge, match=r"x.jsonl:1: \d+ tokens \(\d+ of .*\) and 800 patches, there is room for 60"):
        fit(sample("a dog and a cat " * 40), processor, "chatml", 60, 1000)
    square = Processor(Tokenizer.reduced(["a"], 0, QWEN_VL), ProcessorConfig.qwen_vl(28, 4))
    with pytest.raises(TooLarge, match="there is room for 20"):
        fit(sample("a a a a a a a a a a a a a a", (28, 28)), square, "chatml", 20, 1000)


def test_a_source_of_which_nothing_fits_comes_to_an_end(tmp_path: Path, processor: Processor) -> None:
    source = UserSource(files(write(tmp_path / "x.jsonl", [entry("a dog " * 50)])), 0)
    with pytest.raises(ValueError, match=r"1000 samples in a row cannot be used; the last: x.jsonl:1"):
        next(packs(source, processor, PackLimits(20, 20), "chatml"))
