"""The page with a model that really sees, with clips, and without a mouse."""

from __future__ import annotations

from pathlib import Path

import pytest
from browser import CHROMIUM, Browser, chromium
from clips import clip_file
from engine.tiny_vlm import picture as noise
from engine.tiny_vlm import small_vlm
from live_server import Live, serving
from PIL import Image

from qvl.engine.live import Live as LiveEngine
from qvl.serve.config import ServeConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine (Debian: apt install chromium)"),
]
DONE = (
    "!document.body.classList.contains('busy-now')"
    " && document.querySelector('.exchange:last-child .cost:not([hidden])')"
)


@pytest.fixture(scope="module")
def engine() -> LiveEngine:
    return small_vlm("qwen2-vl").live("small")


@pytest.fixture(scope="module")
def live(engine: LiveEngine):
    with serving(engine, ServeConfig(port=0, default_max_tokens=12)) as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    with chromium() as page:
        yield page


@pytest.fixture
def page(browser: Browser, live: Live) -> Browser:
    browser.size(1280, 800)
    browser.open(live.url)
    browser.run("localStorage.clear()")
    browser.events.clear()
    browser.open(f"{live.url}/?")
    browser.wait("document.getElementById('model').textContent === 'small'")
    return browser


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("media") / "it moves.webm"
    file.write_bytes(clip_file(container="webm"))
    return file


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("media") / "still.png"
    Image.fromarray(noise(80, 120)).save(file)
    return file


def ask(page: Browser, question: str) -> None:
    page.run("document.getElementById('question').focus()")
    page.type(question)
    page.key("Enter", 13, "\r")


def test_a_clip_is_shown_sent_and_asked_about_again(page, engine, moving, still):
    page.files("#files", moving, still)
    page.wait("document.querySelectorAll('.thumb img').length === 2")
    ask(page, "what moves?")
    page.wait(DONE)
    assert page.run("document.querySelector('.answer').textContent")
    assert page.run("document.querySelector('.frame video').videoWidth") == 80
    assert "it moves.webm · 80 × 60" in page.run("document.querySelector('figcaption').textContent")
    costs = page.run("document.querySelector('.cost').textContent")
    assert "picture 1 seen at" in costs
    assert "picture 2 seen at112 × 84" in costs
    before = engine.stats()
    ask(page, "and then?")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    page.wait(DONE)
    assert engine.stats().vision_hits == before.vision_hits + 2
    assert page.complaints() == []


def test_an_earlier_conversation_goes_on_with_its_pictures_but_not_with_a_forgotten_clip(
    page, live, engine, still, moving
):
    """After a reload the server still knows the upload; when it has forgotten it, a picture is sent once more from what
    the browser kept, and a clip cannot be."""
    page.files("#files", still)
    page.wait("document.querySelectorAll('.thumb img').length === 1")
    ask(page, "what is it?")
    page.wait(DONE)
    page.open(f"{live.url}/?again")
    page.wait("document.querySelectorAll('#conversations li').length === 1")
    page.run("document.querySelector('#conversations .open').click()")
    forget_uploads(live)
    ask(page, "and now?")
    page.wait("document.querySelectorAll('.exchange').length === 2")
    page.wait(DONE)
    assert page.run("document.querySelector('.exchange:last-child .problem').hidden")
    page.run("document.getElementById('new').click()")
    page.files("#files", moving)
    page.wait("document.querySelectorAll('.thumb img').length === 1")
    ask(page, "what moves?")
    page.wait(DONE)
    page.open(f"{live.url}/?again")
    page.wait("document.querySelectorAll('#conversations li').length === 2")
    page.run("document.querySelector('#conversations .open').click()")
    forget_uploads(live)
    ask(page, "and now?")
    page.wait("!document.querySelector('.exchange:last-child .problem')?.hidden")
    assert "is no longer here; add it again" in page.run(
        "document.querySelector('.exchange:last-child .problem').textContent"
    )


def forget_uploads(live: Live) -> None:
    import httpx2

    for file in httpx2.get(f"{live.url}/v1/files", timeout=60).json()["data"]:
        httpx2.delete(f"{live.url}/v1/files/{file['id']}", timeout=60)


def focused(page: Browser) -> str:
    return page.run("((e) => e.id || e.className || e.tagName)(document.activeElement)")


def tab_to(page: Browser, wanted: str, back: bool = False) -> None:
    """Presses Tab until `wanted` (an id or class) has the focus."""
    seen = []
    for _ in range(40):
        if wanted in (name := focused(page)).split() or name == wanted:
            return
        seen.append(name)
        page.key("Tab", 9, shift=back)
    raise AssertionError(f"{wanted} is not reached by Tab: {seen}")


def test_everything_can_be_done_without_a_mouse(page, still):
    # The outline says where one is.
    page.key("Tab", 9)
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    # A picture is chosen by hand (the file dialog itself is the browser's), an idea by keyboard, the question sent.
    page.files("#files", still)
    page.wait("document.querySelectorAll('.thumb img').length === 1")
    assert focused(page) == "question"
    page.type("what is it?")
    tab_to(page, "send")
    page.key("Enter", 13, "\r")
    page.wait(DONE)
    # Costs fold out, settings open and close, the list of conversations opens and closes.
    tab_to(page, "SUMMARY", back=True)
    page.key("Enter", 13, "\r")
    assert page.run("document.querySelector('details.cost').open")
    tab_to(page, "settings-open", back=True)
    page.key("Enter", 13, "\r")
    page.wait("document.getElementById('settings').open")
    assert page.run("document.getElementById('settings').contains(document.activeElement)")
    page.key("Escape", 27)
    page.wait("!document.getElementById('settings').open")
    assert focused(page) == "settings-open"
    tab_to(page, "history-open", back=True)
    page.key("Enter", 13, "\r")
    page.wait("document.body.classList.contains('with-history')")
    assert focused(page) == "history-close"
    tab_to(page, "open")
    page.key("Tab", 9)
    assert page.run("document.activeElement.getAttribute('aria-label')").startswith("Forget ")
    tab_to(page, "history-close", back=True)
    page.key("Enter", 13, "\r")
    page.wait("!document.body.classList.contains('with-history')")
    assert focused(page) == "history-open"
