"""The page in a real browser: answers and boxes as they come, keyboard, phone, dark, history, hostile replies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest
from browser import CHROMIUM, Browser, chromium
from canned_live import CannedLive
from live_server import Live, serving
from PIL import Image, ImageDraw

from qvl.text.grounding import box, ref

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
]

ANSWER = (
    f"I can see {ref('a red circle')}{box((62, 187, 396, 687))} on the left, and on the right "
    f"{ref('a blue square')}{box((583, 250, 896, 720))}. Below them lies {ref('the horizon')}{box((0, 800, 999, 860))}."
)
WIDTH, HEIGHT = 480, 320


@pytest.fixture(scope="module")
def engine() -> CannedLive:
    return CannedLive(answer=lambda request: ANSWER, model_name="qwen2-vl-tiny")


@pytest.fixture(scope="module")
def live(engine: CannedLive):
    with serving(engine) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    picture = Image.new("RGB", (WIDTH, HEIGHT), "#dfe9ee")
    brush = ImageDraw.Draw(picture)
    brush.rectangle((0, 265, WIDTH, HEIGHT), fill="#8fb58a")
    brush.ellipse((30, 60, 190, 220), fill="#d9483b")
    brush.rectangle((280, 80, 430, 230), fill="#2f6fb5")
    file = tmp_path_factory.mktemp("page") / "it's a scene.png"
    picture.save(file)
    return file


@pytest.fixture
def page(browser: Browser, live: Live, engine: CannedLive) -> Browser:
    engine.gate.set()
    engine.answer = lambda request: ANSWER
    browser.size(1280, 800)
    browser.scheme("light")
    browser.open(live.url)
    browser.run("localStorage.clear()")
    browser.events.clear()
    browser.open(f"{live.url}/?")
    browser.wait("document.getElementById('model').textContent === 'qwen2-vl-tiny'")
    return browser


def ask(page: Browser, question: str, *files: Path) -> None:
    if files:
        page.files("#files", *files)
        page.wait(f"document.querySelectorAll('.thumb img').length === {len(files)}")
    page.run("document.getElementById('question').focus()")
    page.type(question)
    page.key("Enter", 13, "\r")


DONE = (
    "!document.body.classList.contains('busy-now')"
    " && document.querySelector('.exchange:last-child .cost:not([hidden])')"
)
BOXES = "document.querySelectorAll('.box').length"


def test_the_answer_and_its_boxes_come_as_they_are_said(page, engine, scene, tmp_path):
    engine.gate.clear()
    ask(page, "What is where?", scene)
    page.wait("document.querySelector('.answer.wait')")
    assert page.run("document.getElementById('send').getAttribute('aria-label')") == "Stop"
    engine.gate.set()
    page.wait(DONE)
    assert page.run("document.querySelector('.answer').textContent") == (
        "I can see a red circle on the left, and on the right a blue square. Below them lies the horizon."
    )
    assert page.run(BOXES) == 3
    # The box lies over the circle, whatever size the picture is shown at: 30..190 of 480, 60..220 of 320; its line is
    # drawn around it.
    page.run("Promise.all(document.getAnimations().map((a) => a.finished)).then(() => 0)")  # boxes appear growing
    edges = page.run(
        "(() => { const p = document.querySelector('.frame img').getBoundingClientRect();"
        "const b = document.querySelector('.box[data-n=\"0\"]').getBoundingClientRect();"
        "const across = (x) => (x - p.left) / p.width, down = (y) => (y - p.top) / p.height;"
        "return [across(b.left), down(b.top), across(b.right), down(b.bottom)]; })()"
    )
    assert edges == pytest.approx([30 / 480, 60 / 320, 190 / 480, 220 / 320], abs=0.002)
    assert page.run("document.querySelector('.cost summary').textContent").startswith("11 tokens in, ")
    page.screenshot(tmp_path / "answer.png")
    # Nothing came from elsewhere, nothing was complained about.
    assert page.complaints() == []
    assert {address.split("/")[2] for address in page.requested() if address.startswith("http")} == {
        page.run("location.host")
    }


def test_boxes_are_drawn_before_the_answer_is_over(page, engine, scene):
    engine.pause_s = 0.05
    try:
        ask(page, "What is where?", scene)
        page.wait(f"{BOXES} === 1")
        assert page.run("document.body.classList.contains('busy-now')")
        assert "<" not in page.run("document.querySelector('.answer').textContent")
        page.wait(DONE)
        assert page.run(BOXES) == 3
    finally:
        engine.pause_s = 0.0


def test_a_box_and_its_name_light_up_together(page, scene):
    ask(page, "What is where?", scene)
    page.wait(DONE)
    page.click('.box[data-n="1"] span')
    assert page.run("document.querySelector('.ref.on').textContent") == "a blue square"
    assert page.run("document.querySelector('figcaption').textContent") == "a blue square: 280,80 to 430,230"
    page.key("Escape", 27)
    assert page.run("document.querySelectorAll('.on').length") == 0
    page.run("document.querySelector('.ref').focus()")
    page.key("Enter", 13, "\r")
    assert page.run("document.querySelector('.box.on').dataset.n") == "0"


HOSTILE = (
    "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
    f"{ref('<b onclick=alert(1)>it</b>')}{box((1, 1, 900, 900))} &amp; <|box_start|>(9999,1)<|box_end|> <ref>open"
)


def test_what_a_model_says_stays_text(page, engine, scene):
    engine.answer = lambda request: HOSTILE
    ask(page, "<i>hi</i>", scene)
    page.wait(DONE)
    assert page.run("document.title") == "qvl"
    text = page.run("document.querySelector('.answer').textContent")
    assert "<script>document.title='owned'</script><b onclick=alert(1)>it</b> &amp;" in text
    assert page.run("document.querySelectorAll('.exchange script, .exchange b, .exchange i').length") == 0
    assert page.run("document.querySelector('.question').textContent") == "<i>hi</i>"
    assert page.complaints() == []


def test_a_long_answer_is_followed_until_somebody_scrolls(page, engine, scene):
    ask(page, "What is where?", scene)
    page.wait(DONE)
    engine.answer = lambda request: "line\n" * 400
    engine.pause_s = 0.005
    end = (
        "document.querySelector('.exchange:last-child .answer').getBoundingClientRect().bottom"
        " - document.getElementById('talk').getBoundingClientRect().bottom"
    )
    try:
        ask(page, "Count.")
        page.wait("document.querySelectorAll('.exchange').length === 2")
        # The question stands at the top, though the answer below it is still short.
        page.wait("document.querySelector('.exchange:last-child').getBoundingClientRect().top < 130")
        page.wait("document.querySelector('.exchange:last-child .answer').getBoundingClientRect().height > 700")
        page.run("new Promise(requestAnimationFrame).then(() => 0)")
        assert page.run(end) < 40
        page.run(
            "(() => { const talk = document.getElementById('talk'); talk.dispatchEvent(new WheelEvent('wheel'));"
            "talk.scrollTo({ top: 0, behavior: 'instant' }); })()"
        )
        page.wait(DONE)
        assert page.run("document.getElementById('talk').scrollTop") == 0
    finally:
        engine.pause_s = 0.0


def test_a_reply_can_be_stopped(page, engine, scene):
    engine.answer = lambda request: "word " * 500
    engine.pause_s = 0.02
    try:
        ask(page, "Count.")
        page.wait("document.querySelector('.answer').textContent.length > 20")
        page.click("#send")
        page.wait("!document.body.classList.contains('busy-now')")
        assert page.run("document.querySelector('.problem').hidden")
        deadline = time.monotonic() + 60
        while engine.open_tickets and time.monotonic() < deadline:
            time.sleep(0.02)
        assert engine.open_tickets == 0
    finally:
        engine.pause_s = 0.0


def test_conversations_are_kept_and_go_on(page, live, engine, scene):
    ask(page, "What is where?", scene)
    page.wait(DONE)
    page.open(f"{live.url}/?again")
    page.wait("document.querySelectorAll('#conversations li').length === 1")
    page.run("document.querySelector('#conversations .open').click()")
    page.wait(f"{BOXES} === 3")
    engine.asked.clear()
    ask(page, "And now?")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    page.wait(DONE)
    assert [m.role for m in engine.asked[-1].messages] == ["user", "assistant", "user"]
    assert len(engine.asked[-1].messages[0].parts) == 2
    # An answer about an earlier picture shows it again.
    assert page.run("document.querySelectorAll('.exchange:last-child .box').length") == 3
    page.run("document.querySelector('#conversations .icon').click()")
    assert page.run("document.querySelectorAll('#conversations li').length") == 0
    assert not page.run("document.getElementById('welcome').hidden")


def test_a_question_that_was_refused_is_not_asked_again(page, engine, scene):
    engine.refusal = "the picture is too large"
    try:
        ask(page, "What is it?", scene)
        page.wait("document.querySelector('.problem')?.hidden === false")
    finally:
        engine.refusal = ""
    ask(page, "What is where?", scene)
    page.wait("document.querySelectorAll('.exchange').length === 2")
    page.wait(DONE)
    assert [m.role for m in engine.asked[-1].messages] == ["user"]
    assert page.run("document.querySelectorAll('.exchange:last-child .box').length") == 3


def test_a_forgotten_conversation_does_not_come_back_with_its_answer(page, engine):
    for button in ("#conversations .icon", "#forget"):
        ask(page, "What is where?")
        page.wait(DONE)
        engine.answer, engine.pause_s = lambda request: "word " * 500, 0.02
        try:
            ask(page, "Count.")
            page.wait("document.querySelector('.exchange:last-child .answer').textContent.length > 20")
            page.run(f"document.querySelector('{button}').click()")
            page.wait("!document.body.classList.contains('busy-now')")
            assert page.run("document.querySelectorAll('#conversations li').length") == 0
        finally:
            engine.answer, engine.pause_s = lambda request: ANSWER, 0.0


def test_the_conversation_that_is_open_is_not_opened_again(page, engine):
    ask(page, "What is where?")
    page.wait(DONE)
    engine.pause_s = 0.02
    try:
        ask(page, "And now?")
        page.wait("document.querySelector('.exchange:last-child .answer').textContent.length > 20")
        page.run("document.querySelector('#conversations .open').click()")
        page.wait(DONE)
        assert page.run("document.querySelector('.exchange:last-child .answer').textContent").endswith("the horizon.")
        assert page.run("document.querySelectorAll('.exchange').length") == 2
    finally:
        engine.pause_s = 0.0


def test_boxes_lie_right_on_a_picture_that_was_sent_again_smaller(page, live, tmp_path):
    """Of a large picture the browser keeps a small one, and sends that where the server has forgotten the upload."""
    file = tmp_path / "large.png"
    Image.new("RGB", (2000, 1000)).save(file)
    ask(page, "What is where?", file)
    page.wait(DONE)
    page.open(f"{live.url}/?again")
    page.wait("document.querySelectorAll('#conversations li').length === 1")
    page.run("document.querySelector('#conversations .open').click()")
    for uploaded in httpx2.get(f"{live.url}/v1/files", timeout=60).json()["data"]:
        httpx2.delete(f"{live.url}/v1/files/{uploaded['id']}", timeout=60)
    ask(page, "And now?")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    page.wait(DONE)
    assert page.run("document.querySelector('.exchange:last-child .ref').title") == "124, 187, 792, 687"


def test_an_upload_can_be_stopped(page, scene):
    page.run(
        "window.fetch = ((real) => (url, options) => url !== 'v1/files' ? real(url, options) : new Promise((_, no) =>"
        "options.signal?.addEventListener('abort', () => no(options.signal.reason))))(window.fetch)"
    )
    ask(page, "What is where?", scene)
    page.wait("document.querySelector('.answer.wait')")
    page.click("#send")
    page.wait("!document.body.classList.contains('busy-now')")
    assert page.run("document.querySelector('.problem').hidden")


def test_settings_are_kept_where_conversations_have_filled_the_store(page):
    page.run(
        "(() => { const talks = []; for (let size = 1 << 20; size;) {"
        "talks.push({ id: String(talks.length), title: 'x'.repeat(size), exchanges: [] });"
        "try { localStorage.setItem('qvl.conversations', JSON.stringify(talks)); } catch { talks.pop(); size >>= 1; }"
        "} })()"
    )
    page.click("#settings-open")
    page.wait("document.getElementById('settings').open")
    page.run("document.querySelector('[name=system]').value = 'Be brief. '.repeat(100)")
    page.click("#settings .primary")
    assert page.run("JSON.parse(localStorage.getItem('qvl.settings')).system.length") == 1000
    assert page.complaints() == []


def test_code_to_copy_runs(page, live, scene, tmp_path):
    ask(page, "What's 'where'?", scene)
    page.wait(DONE)
    page.run("navigator.clipboard.writeText = (text) => { window.copied = text; return Promise.resolve(); }")

    def copied(label: str) -> str:
        page.run("window.copied = ''")
        page.run(f"[...document.querySelectorAll('.foot button')].find((b) => b.textContent === '{label}').click()")
        page.wait("window.copied")
        return page.run("window.copied")

    def output_of(*command: str) -> str:
        done = subprocess.run(command, cwd=scene.parent, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    reply = json.loads(output_of("bash", "-c", copied("curl")))
    assert reply["choices"][0]["message"]["content"] == ANSWER
    assert ANSWER in output_of(sys.executable, "-c", copied("Python"))
    assert copied("Copy").startswith("I can see a red circle on the left")


def test_code_to_copy_says_what_a_file_is_whatever_its_name(page):
    part = {"type": "video_url", "video_url": {"url": "file-1"}}
    body = json.dumps({"messages": [{"role": "user", "content": [part]}]})
    for spelled, wanted in (
        ("curl", "data:video/x-matroska;base64,"),
        ("python", '"it\'s a clip.mkv", "video/x-matroska")'),
    ):
        code = page.run(
            f"import('/page/snippets.js').then((s) => s.{spelled}("
            f"s.withHoles({body}, () => ({{name: \"it's a clip.mkv\", type: 'video/x-matroska'}})), 'http://x', false))"
        )
        assert wanted in code


def test_settings_reach_the_server(page, engine):
    page.click("#settings-open")
    page.wait("document.getElementById('settings').open")
    for name, value in (("system", "Be brief."), ("max_tokens", "3"), ("temperature", "0.5")):
        page.run(f"document.querySelector('[name={name}]').value = '{value}'")
    page.click("#settings .primary")
    engine.asked.clear()
    ask(page, "hi")
    page.wait(DONE)
    assert (engine.asked[-1].sampling.max_new_tokens, engine.asked[-1].sampling.temperature) == (3, 0.5)
    assert engine.asked[-1].messages[0].role == "system"
    assert "cut at the longest reply" in page.run("document.querySelector('.cost summary').textContent")


def test_phone_and_dark(page, scene, tmp_path):
    page.size(390, 844, phone=True)
    ask(page, "What is where?", scene)
    page.wait(DONE)
    assert page.run("document.documentElement.scrollWidth") <= 390
    bright = "getComputedStyle(document.body).backgroundColor"
    light = page.run(bright)
    page.scheme("dark")
    dark = page.run(bright)
    assert light != dark
    page.click("#theme")
    assert page.run(bright) == light
    page.screenshot(tmp_path / "phone.png")


def test_mistakes_of_the_server_are_shown(page, engine):
    engine.refusal = "the prompt has 9999 tokens"
    try:
        ask(page, "hi")
        page.wait("!document.querySelector('.problem')?.hidden")
        assert page.run("document.querySelector('.problem').textContent") == "the prompt has 9999 tokens"
    finally:
        engine.refusal = ""
