"""The terminal conversation, with a scripted model behind the real `VLM`."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from engine.tiny_vlm import small_vlm
from PIL import Image
from rich.console import Console
from serve.clips import clip_file

from qvl.cli.arguments import parse
from qvl.cli.chat import Conversation, chat
from qvl.cli.terminal import picture_escape
from qvl.engine.api import Box, Reply, Usage
from qvl.engine.vlm import VLM
from qvl.runtime import terminal_pictures
from qvl.text.grounding import box, ref

CAT = f"{ref('the cat')}{box((0, 0, 500, 500))} sleeps.\x1b[31m"


class Canned:
    """Stands for a VLM: remembers what it was asked, answers in pieces."""

    def __init__(self, text: str = CAT, boxes: tuple[Box, ...] = (), chat_format: str = "chatml") -> None:
        self.processor = SimpleNamespace(config=SimpleNamespace(chat_format=chat_format))
        self.asked: list[list[dict]] = []
        self.options: dict = {}
        self.text, self.boxes = text, boxes
        self.error: Exception | None = None
        self.interrupt = False
        self.reply: Reply | None = None

    def stream(self, messages: list[dict], **options: object) -> Canned:
        if self.error is not None:
            raise self.error
        self.asked.append(messages)
        self.options, self.reply = options, None
        return self

    def __iter__(self) -> Iterator[str]:
        for piece in re.split(r"(<.*?>| )", self.text):
            yield piece
            if self.interrupt:
                raise KeyboardInterrupt
        self.reply = Reply(
            self.text, (1,), "length", self.boxes, Usage(9, 4, 1, ((56, 84),), milliseconds={"prefill": 1200.0})
        )


def talk(model: Canned, lines: Iterable[str], folder, terminal: bool = False) -> tuple[str, str]:
    """What went to replies and to notes."""
    out, notes = io.StringIO(), io.StringIO()
    script = iter(lines)

    def read(prompt: str) -> str:
        try:
            return next(script)
        except StopIteration:
            raise EOFError from None

    consoles = [Console(file=f, force_terminal=terminal, width=60, highlight=False) for f in (out, notes)]
    Conversation(model, {"max_new_tokens": 5}, folder / "chat", *consoles).run(read)
    return out.getvalue(), notes.getvalue()


@pytest.fixture
def cat(tmp_path):
    file = tmp_path / "cat picture.png"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(file)
    return file


def test_turns_add_up_and_pictures_go_with_the_next_question(tmp_path, cat):
    model = Canned()
    _, notes = talk(model, [f"/image {cat}", "where?", "", "and now?", "/reset", "again"], tmp_path)
    first = {"role": "user", "content": [{"type": "image", "image": str(cat)}, {"type": "text", "text": "where?"}]}
    assert model.asked[0] == [first]
    assert model.asked[1][:2] == [first, {"role": "assistant", "content": CAT}]
    assert model.asked[1][2]["content"] == [{"type": "text", "text": "and now?"}]
    assert len(model.asked[2]) == 1
    assert model.options == {"max_new_tokens": 5}
    assert "60 x 40 pixels" in notes
    assert "9 + 1 tokens, 1.2 s, picture seen at 84 x 56; cut off at max_new_tokens=5" in notes


def test_replies_are_verbatim_in_a_pipe_and_coloured_in_a_terminal(tmp_path):
    out, _ = talk(Canned(), ["hi"], tmp_path)
    assert out == CAT.replace("\x1b", "") + "\n"  # never an escape sequence of the model's own
    out, _ = talk(Canned(), ["hi"], tmp_path, terminal=True)
    assert "object_ref" not in out
    assert "\x1b[1;36mcat\x1b[0m" in out
    assert "\x1b[2m(0,0),(500,500)\x1b[0m" in out
    table = "a\t:cat: [b]\n\n\t1"
    assert talk(Canned(table), ["hi"], tmp_path)[0] == table + "\n"
    assert ":cat: [b]" in talk(Canned(table), ["hi"], tmp_path, terminal=True)[0]


def test_boxes_are_listed_and_drawn_over_the_picture_they_lie_in(tmp_path, cat):
    model = Canned(boxes=(Box("the cat", (0, 0, 30, 20), 0), Box("<b>", (1, 2, 3, 4), 0)))
    _, notes = talk(model, [f'/image "{cat}"', "where?", "again"], tmp_path)
    assert "the cat: (0, 0, 30, 20) in picture 1" in notes
    assert sorted(f.name for f in (tmp_path / "chat").iterdir()) == ["boxes-001.svg", "boxes-002.svg"]
    svg = (tmp_path / "chat/boxes-001.svg").read_text()
    assert 'viewBox="0 0 60 40"' in svg
    assert 'width="30" height="20"' in svg
    assert "<b>" not in svg
    assert str(tmp_path / "chat/boxes-002.svg") in notes


def test_mistakes_are_said_and_do_not_end_the_conversation(tmp_path, cat):
    model = Canned()
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"not a picture")
    lines = ["/image nowhere.png", f"/image {bad}", "/image", "/video nowhere.mp4", "/dance", "/etc/passwd?", "hi"]
    _, notes = talk(model, lines, tmp_path)
    assert "error: no such picture file: nowhere.png" in notes
    assert f"error: {bad} is not a picture" in notes
    assert "error: /image needs the name of a file" in notes
    assert "error: no such video file: nowhere.mp4" in notes
    assert "error: there is no /dance; /help lists what there is" in notes
    assert len(model.asked) == 2  # a question may begin with a slash


def test_a_turn_that_cannot_be_answered_is_forgotten(tmp_path, cat):
    model = Canned()
    model.error = ValueError("the prompt has 9999 tokens")

    def lines():
        yield f"/image {cat}"
        yield "too long"
        model.error = None
        yield "short"

    _, notes = talk(model, lines(), tmp_path)
    assert "error: the prompt has 9999 tokens" in notes
    assert [m["content"] for m in model.asked[0]] == [[{"type": "text", "text": "short"}]]


def test_a_stopped_reply_keeps_what_was_said(tmp_path):
    model = Canned("one two three")

    def lines():
        model.interrupt = True
        yield "count"
        model.interrupt = False
        yield "go on"

    out, notes = talk(model, lines(), tmp_path)
    assert out.startswith("one\n")
    assert "(stopped)" in notes
    assert model.asked[1][1] == {"role": "assistant", "content": "one"}


def test_a_pretrained_model_gets_each_question_alone_with_all_pictures(tmp_path, cat):
    model = Canned(chat_format="raw")
    _, notes = talk(model, [f"/image {cat}", "a", "b"], tmp_path)
    assert "only pretrained" in notes
    shown = {"role": "user", "content": [{"type": "image", "image": str(cat)}]}
    assert model.asked[1] == [shown, {"role": "user", "content": [{"type": "text", "text": "b"}]}]


def test_the_conversation_is_saved_as_messages(tmp_path, cat):
    file = tmp_path / "talk.json"
    model = Canned("图")
    talk(model, [f"/image {cat}", "hi", f"/save {file}", f"/save {tmp_path}/no/such/folder.json", "more"], tmp_path)
    saved = json.loads(file.read_text())
    assert saved == model.asked[1][:2]
    assert "图" in file.read_text()


def test_saving_overwrites_no_picture(tmp_path, cat):
    before = cat.read_bytes()
    _, notes = talk(Canned(), ["hi", f"/save {cat}", f"/save {tmp_path}/a.json", f"/save {tmp_path}/a.json"], tmp_path)
    assert "exists already and is no .json file" in notes
    assert cat.read_bytes() == before
    assert notes.count("2 messages in") == 2


def test_a_name_as_terminals_write_it(tmp_path, cat):
    _, notes = talk(Canned(), ["/image " + str(cat).replace(" ", "\\ "), "what?"], tmp_path)
    assert "60 x 40 pixels" in notes


def test_a_clip_is_looked_at_when_it_is_named(tmp_path):
    file, bad = tmp_path / "a.mp4", tmp_path / "bad.mp4"
    file.write_bytes(clip_file(frames=8, rate=4))
    bad.write_bytes(b"no clip")
    model = Canned()
    _, notes = talk(model, [f"/video {bad}", f"/video {file}", "what moves?"], tmp_path)
    assert f"error: {bad}" in notes
    assert "8 frames, 1.8 s, 80 x 60 pixels" in notes
    assert model.asked[0][0]["content"][0] == {"type": "video", "video": str(file)}


def test_other_errors_do_not_end_the_conversation(tmp_path, monkeypatch):
    model = Canned()

    def lines():
        for error in (RuntimeError("not enough memory"), ImportError("videos need PyAV"), MemoryError()):
            model.error = error
            yield "hi"
        model.error = None
        yield "and now?"

    _, notes = talk(model, lines(), tmp_path)
    assert "error: not enough memory" in notes
    assert "error: videos need PyAV" in notes
    assert len(model.asked) == 1


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2-vl", "qwen-vl"])
def test_several_turns_with_a_real_model(tmp_path, cat, family):
    vlm = small_vlm(family)
    other = tmp_path / "other.png"
    Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(other)
    out, notes = talk(vlm, [f"/image {cat}", "red", "blue", f"/image {other}", "left of"], tmp_path)
    wanted, history = [], []
    for shown, question in (([cat], "red"), ([], "blue"), ([other], "left of")):
        pictures = [{"type": "image", "image": str(file)} for file in shown]
        history.append({"role": "user", "content": [*pictures, {"type": "text", "text": question}]})
        reply = VLM(vlm.model, vlm.processor).chat(history, 5)
        wanted.append("".join(c for c in reply.text if c.isprintable() or c in "\n\t"))
        history.append({"role": "assistant", "content": reply.text})
    assert out == "".join(f"{text}\n" for text in wanted)
    assert notes.count(" tokens, ") == 3
    assert vlm.engine.stats().vision_hits == 2  # the first picture, in the second turn and in the third


@pytest.mark.slow
def test_a_conversation_from_the_command_line(tmp_path, cat):
    small_vlm("qwen2-vl").save(tmp_path / "model")
    clip = tmp_path / "a.mp4"
    clip.write_bytes(clip_file())
    lines = [
        "/image nowhere.png", f"/image {cat}", "red", "/video nowhere.mp4", f"/video {clip}", "blue",
        f"/save {tmp_path}/talk.json", "/quit",
    ]  # fmt: skip
    command = [sys.executable, "-m", "qvl", "chat", "--model", str(tmp_path / "model"), "--max-new-tokens", "5"]
    done = subprocess.run(
        command,
        input="\n".join(lines) + "\n",
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "error: no such picture file: nowhere.png" in done.stderr
    assert "error: no such video file: nowhere.mp4" in done.stderr
    saved = json.loads((tmp_path / "talk.json").read_text())
    assert [m["role"] for m in saved] == ["user", "assistant"] * 2
    assert [p["type"] for m in saved[::2] for p in m["content"]] == ["image", "text", "video", "text"]
    assert "4 messages in" in done.stderr


def test_help_and_quit(tmp_path):
    model = Canned()
    _, notes = talk(model, ["/help", "/quit", "never asked"], tmp_path)
    assert "/save FILE" in notes
    assert model.asked == []


def test_one_question_is_answered_on_standard_output(tmp_path, cat, monkeypatch, capsys):
    from qvl.engine import vlm

    model = Canned(boxes=(Box("", (0, 0, 30, 20)),))
    monkeypatch.setattr(vlm, "load", lambda *a, **k: model)
    (tmp_path / "run/model").mkdir(parents=True)
    chat("where?", model=str(tmp_path / "run/model"), image=[str(cat), str(cat)], max_new_tokens=7)
    out, notes = capsys.readouterr()
    assert out == CAT.replace("\x1b", "") + "\n"
    assert "box: (0, 0, 30, 20)" in notes
    assert (tmp_path / "run/chat/boxes-001.svg").is_file()
    assert [p["type"] for p in model.asked[0][0]["content"]] == ["image", "image", "text"]
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        chat("where?", model="m", image="nowhere.png")
    with pytest.raises(ValueError, match="question is empty"):
        chat(" ", model="m")
    model.boxes = ()
    monkeypatch.setattr("sys.stdin", io.StringIO("and\nthis?"))
    chat("-", model="m")
    assert model.asked[-1][0]["content"] == [{"type": "text", "text": "and\nthis?"}]


def test_the_question_is_given_by_place():
    options = parse("chat", "", chat, ["Where is it?", "--image", "cat.jpg"])
    assert options is not None
    assert (options["question"], options["image"], options["model"]) == ("Where is it?", "cat.jpg", "runs/demo/model")
    options = parse("chat", "", chat, [])
    assert options is not None
    assert options["question"] is None


@pytest.mark.parametrize("protocol", ["kitty", "iterm"])
def test_pictures_with_boxes_are_shown_in_terminals_that_can(tmp_path, cat, protocol):
    out, notes = io.StringIO(), io.StringIO()
    consoles = [Console(file=f, width=60, highlight=False) for f in (out, notes)]
    model = Canned(boxes=(Box("the cat", (5, 5, 30, 20), 0),))
    talk = Conversation(model, {"max_new_tokens": 5}, tmp_path / "chat", *consoles, protocol)
    talk.show("image", str(cat))
    talk.ask("where?")
    pattern = r"\x1b_Ga=T,f=100,m=0;(.*?)\x1b\\" if protocol == "kitty" else r"\x1b\]1337;File=inline=1;.*?:(.*?)\x07"
    (payload,) = re.findall(pattern, notes.getvalue())
    shown = Image.open(io.BytesIO(base64.b64decode(payload)))
    assert shown.size == (60, 40)
    assert shown.getpixel((6, 15)) != (0, 0, 0)  # the box's line


def test_large_pictures_travel_in_chunks():
    text = picture_escape(bytes(range(256)) * 40, "kitty")
    parts = re.findall(r"\x1b_G(.*?);(.*?)\x1b\\", text)
    assert [head for head, _ in parts] == ["a=T,f=100,m=1", "m=1", "m=1", "m=0"]
    assert base64.b64decode("".join(payload for _, payload in parts)) == bytes(range(256)) * 40


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM_PROGRAM": "WezTerm"}, "iterm"),
        ({"TERM": "xterm-256color"}, None),
    ],
)
def test_terminals_say_what_they_can(environment, protocol, monkeypatch):
    for name in ("KITTY_WINDOW_ID", "TERM", "TERM_PROGRAM"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert terminal_pictures() == protocol
