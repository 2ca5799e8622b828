"""A small random model behind the real engine and the real server, asked by the real OpenAI client."""

from __future__ import annotations

import io
import json
import threading
import time
from collections.abc import Iterator
from typing import Literal

import openai
import pydantic
import pytest
from clips import clip_file
from engine.tiny_vlm import picture as noise
from engine.tiny_vlm import small_vlm
from live_server import Live, data_uri, picture, serving
from PIL import Image

from qvl.engine.limits import Limits
from qvl.engine.live import Live as LiveEngine
from qvl.engine.vlm import VLM
from qvl.serve.config import ServeConfig

FAMILIES = ("qwen2-vl", "qwen-vl")


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return small_vlm(request.param)


@pytest.fixture(scope="module")
def two(vlm: VLM) -> bool:
    """It is a Qwen2-VL: it sees clips, and pictures in their own shape."""
    return vlm.processor.config.square is None


@pytest.fixture(scope="module")
def served(vlm: VLM) -> Iterator[tuple[LiveEngine, Live]]:
    engine = vlm.live("small", Limits(max_rows=6, page_tokens=8))
    with serving(engine, ServeConfig(port=0, default_max_tokens=16)) as live:
        yield engine, live


@pytest.fixture
def client(served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served[1].url}/v1", api_key="none", max_retries=0) as client:
        yield client


def png_of(height: int, width: int, seed: int = 0) -> str:
    file = io.BytesIO()
    Image.fromarray(noise(height, width, seed)).save(file, format="PNG")
    return data_uri(file.getvalue())


def turn(*parts: dict | str, role: str = "user") -> dict:
    return {"role": role, "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


def text_of(stream: openai.Stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@pytest.fixture
def create(client: openai.OpenAI):
    def create(*messages: dict, **options):
        return client.chat.completions.create(model="small", messages=list(messages), **options)

    return create


@pytest.mark.slow
def test_whole_and_streamed_replies_are_what_the_engine_says(vlm, create):
    messages = [turn(picture(png_of(60, 90)), "the red circle")]
    given = [{"type": "image", "image": noise(60, 90)}, {"type": "text", "text": "the red circle"}]
    wanted = vlm.chat([{"role": "user", "content": given}], 24)
    reply = create(*messages, max_tokens=24)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.completion_tokens == len(wanted.token_ids)
    assert reply.usage.model_extra["vision_tokens"] == wanted.usage.vision_tokens
    assert text_of(create(*messages, max_tokens=24, stream=True)) == wanted.text


def test_a_second_question_about_a_picture_costs_no_vision_time(create, two):
    seen = picture(png_of(112, 84, seed=5))
    first = create(turn(seen, "what is it?"))
    second = create(turn(seen, "and where?"))
    assert (first.usage.model_extra["cache_hits"], second.usage.model_extra["cache_hits"]) == (0, 1)
    assert first.usage.model_extra["milliseconds"]["vision"] > 0
    assert second.usage.model_extra["milliseconds"]["vision"] == 0
    assert second.usage.prompt_tokens_details.cached_tokens > 0
    assert second.usage.model_extra["resized_to"] == [[112, 84] if two else [112, 112]]


def test_a_conversation_goes_on_where_it_was(vlm, create):
    """Each turn finds the pages of the turns before it, and says what a fresh engine says about the whole."""
    shown, talk = [picture(png_of(60, 60, seed=7)), picture(png_of(30, 70, seed=8))], []
    cached, prompts = [], []
    for question in (turn(shown[0], "red"), turn("blue circle"), turn(shown[1], "left of the square")):
        talk.append(question)
        reply = create(*talk, max_tokens=20)
        cached.append(reply.usage.prompt_tokens_details.cached_tokens)
        prompts.append(reply.usage.prompt_tokens)
        fresh = VLM(vlm.model, vlm.processor)
        assert reply.choices[0].message.content == fresh.chat(plain(talk), 20).text
        talk.append({"role": "assistant", "content": reply.choices[0].message.content})
    assert cached[1] >= prompts[0] - 16
    assert cached[2] >= prompts[1] - 16


def plain(talk: list[dict]) -> list[dict]:
    """The messages as `VLM.chat` takes them."""
    out = []
    for message in talk:
        content = message["content"]
        if not isinstance(content, str):
            content = [
                {"type": "image", "image": p["image_url"]["url"]} if p["type"] == "image_url" else p for p in content
            ]
        out.append({"role": message["role"], "content": content})
    return out


def test_stops_end_the_reply_wherever_tokens_end(create):
    whole = create(turn("the square"), max_tokens=30).choices[0].message.content
    assert len(whole) > 12
    for first, length in ((4, 1), (5, 3), (7, 6)):
        stop = whole[first : first + length]
        for stream in (False, True):
            reply = create(turn("the square"), max_tokens=30, stop=[stop, "never said"], stream=stream)
            if stream:
                chunks = list(reply)
                said, reason = text_of(chunks), chunks[-1].choices[0].finish_reason
            else:
                said, reason = reply.choices[0].message.content, reply.choices[0].finish_reason
            assert (said, reason) == (whole[: whole.index(stop)], "stop")


def test_choices_of_one_request_open_its_pictures_once(served, create, monkeypatch):
    from qvl.media import load

    decoded: list[object] = []
    view = load.view_image
    monkeypatch.setattr(load, "view_image", lambda *a, **k: (decoded.append(a), view(*a, **k))[1])
    reply = create(turn(picture(png_of(60, 60, seed=91)), "red"), n=4, temperature=1.0, seed=1, max_tokens=5)
    assert len(reply.choices) == 4
    assert len(decoded) == 1
    assert served[0].stats().pages_used == 0


def test_choices_of_one_request_are_those_of_their_seeds(create):
    wanted = [
        create(turn("of the"), temperature=1.0, seed=seed, max_tokens=10).choices[0].message.content
        for seed in (3, 4, 5)
    ]
    assert len(set(wanted)) == 3
    whole = create(turn("of the"), temperature=1.0, seed=3, n=3, max_tokens=10)
    assert [choice.message.content for choice in whole.choices] == wanted
    texts, ends = ["", "", ""], 0
    for chunk in create(turn("of the"), temperature=1.0, seed=3, n=3, max_tokens=10, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            ends += choice.finish_reason is not None
    assert (texts, ends) == (wanted, 3)


COLOUR = {
    "type": "object",
    "properties": {"colour": {"enum": ["红色", "蓝色 🟦"]}, "count": {"type": "integer", "minimum": 0, "maximum": 20}},
    "required": ["colour", "count"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOUR, "strict": True}}


def test_replies_are_json_that_fits(create):
    whole = create(turn("the circle"), response_format=FORMAT, max_tokens=150)
    said = json.loads(whole.choices[0].message.content)
    assert said["colour"] in ("红色", "蓝色 🟦")
    assert 0 <= said["count"] <= 20
    assert whole.choices[0].finish_reason == "stop"
    stream = create(turn("the circle"), response_format=FORMAT, max_tokens=150, stream=True)
    assert text_of(stream) == whole.choices[0].message.content
    # What does not fit into max_tokens is cut and says so.
    cut = create(turn("the circle"), response_format=FORMAT, max_tokens=4)
    assert cut.choices[0].finish_reason == "length"
    assert whole.choices[0].message.content.startswith(cut.choices[0].message.content.rstrip("�"))
    for choice in create(turn("a"), response_format=FORMAT, max_tokens=150, n=3, temperature=1.5, seed=1).choices:
        assert set(json.loads(choice.message.content)) == {"colour", "count"}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "banana"}, "json_schema cannot be followed: .*banana"),
        ({"type": "integer", "minimum": 5, "maximum": 3}, "Unsatisfiable schema"),
        ({"$ref": "http://169.254.169.254/x"}, "does not fetch resources"),
        ({"$ref": "file:///etc/passwd"}, "does not fetch resources"),
    ],
)
def test_schemas_that_cannot_be_followed(create, schema, message):
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=message):
        create(turn("a"), response_format=wanted)


class Place(pydantic.BaseModel):
    where: Literal["left", "right"]
    sure: bool


def test_the_clients_own_parser_gets_its_type(client):
    reply = client.chat.completions.parse(
        model="small", messages=[turn("where?")], response_format=Place, max_tokens=150
    )
    assert isinstance(reply.choices[0].message.parsed, Place)


def test_logprobs_of_every_token_whole_and_streamed(create):
    """Characters of several tokens too: the bytes of all tokens together are the text."""
    options = {"response_format": FORMAT, "max_tokens": 150, "logprobs": True, "top_logprobs": 3}
    whole = create(turn("the circle"), **options).choices[0]
    tokens = whole.logprobs.content
    assert bytes(b for t in tokens for b in t.bytes).startswith(whole.message.content.encode())
    assert any(len(t.bytes) == 1 and t.bytes[0] >= 0x80 for t in tokens), "no character was split"
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= token.top_logprobs[0].logprob + 1e-5
        assert token.top_logprobs[0].logprob >= token.top_logprobs[1].logprob
    streamed = [
        t
        for chunk in create(turn("the circle"), **options, stream=True)
        for c in chunk.choices
        if c.logprobs
        for t in c.logprobs.content
    ]
    assert [(t.bytes, t.token) for t in streamed] == [(t.bytes, t.token) for t in tokens]
    assert [t.logprob for t in streamed] == pytest.approx([t.logprob for t in tokens], abs=1e-4)


CROP = {
    "type": "function",
    "function": {"name": "crop", "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}}},
}


def test_calls_whole_and_streamed(create):
    """A random model calls nothing by itself: it is made to, and what it says then are the arguments."""
    named = {"type": "function", "function": {"name": "crop"}}
    options = {"tools": [CROP], "tool_choice": named, "max_tokens": 8}
    (call,) = create(turn("cut"), **options).choices[0].message.tool_calls
    assert call.function.name == "crop"
    names, arguments = [], ""
    for chunk in create(turn("cut"), **options, stream=True):
        for piece in chunk.choices[0].delta.tool_calls or ():
            names += [piece.function.name] if piece.id else []
            arguments += piece.function.arguments or ""
    assert (names, arguments) == (["crop"], call.function.arguments)
    # The results, with a picture among them, go on from there.
    asked = {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]}
    result = {
        "role": "tool",
        "tool_call_id": call.id,
        "content": [picture(png_of(30, 30)), {"type": "text", "text": "x"}],
    }
    reply = create(turn("cut"), asked, result, tools=[CROP], max_tokens=8)
    assert reply.usage.completion_tokens <= 8
    assert len(reply.usage.model_extra["resized_to"]) == 1


def reader(name: str, *things: str) -> dict:
    what = {"type": "object", "properties": {"what": {"enum": things}}, "additionalProperties": False}
    return {"type": "function", "function": {"name": name, "parameters": what}}


THINGS = {"read": ("sign", "page"), "paint": ("wall", "door")}


@pytest.mark.slow
@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "read"}}])
@pytest.mark.parametrize("parallel", [False, True])
def test_a_call_that_is_required_names_a_tool_and_fits_it(create, choice, parallel):
    """Whatever a random model would rather say."""
    options = {"tools": [reader(n, *things) for n, things in THINGS.items()], "parallel_tool_calls": parallel}
    for seed in range(3):
        reply = create(turn("cut"), **options, tool_choice=choice, temperature=1.5, seed=seed, max_tokens=80).choices[0]
        call = reply.message.tool_calls[0].function
        assert call.name in (THINGS if choice == "required" else ("read",))
        assert json.loads(call.arguments).get("what", THINGS[call.name][0]) in THINGS[call.name]
        if choice != "required" or not parallel:
            assert len(reply.message.tool_calls) == 1
            assert (reply.finish_reason, reply.message.content) == ("tool_calls", None)


def test_clips(vlm, create, two):
    file = clip_file(frames=8)
    part = {"type": "video_url", "video_url": {"url": data_uri(file, "video/mp4")}, "nframes": 4}
    if not two:
        with pytest.raises(openai.BadRequestError, match="Qwen-VL has no videos"):
            create(turn(part, "what moves?"))
        return
    reply = create(turn(part, picture(png_of(30, 30)), "what moves?"))
    given = [{"type": "video", "video": file, "nframes": 4}, {"type": "image", "image": png_of(30, 30)}]
    wanted = vlm.chat([{"role": "user", "content": [*given, {"type": "text", "text": "what moves?"}]}], 16)
    assert reply.choices[0].message.content == wanted.text
    assert reply.usage.model_extra["resized_to"] == [list(hw) for hw in wanted.usage.resized_to]
    assert len(wanted.usage.resized_to) == 2


def test_impatient_clients_leave_nothing_behind(served, create):
    engine, _ = served
    options = {"max_tokens": 300, "extra_body": {"stop_on_repetition": False}}
    with pytest.raises(openai.APITimeoutError):
        create(turn("go on"), timeout=0.01, **options)
    stream = create(turn("go on"), stream=True, **options)
    next(iter(stream))
    stream.close()
    deadline = time.monotonic() + 60
    while engine.stats().running + engine.stats().waiting and time.monotonic() < deadline:
        time.sleep(0.02)
    stats = engine.stats()
    assert (stats.running, stats.waiting, stats.pages_used) == (0, 0, 0)


@pytest.mark.slow
def test_together_as_alone(served, client):
    """Eight clients at once, each with a question of its own: what everyone gets does not depend on the others."""
    _, live = served
    asked = [
        [turn(picture(png_of(30 + 10 * (i % 3), 60, seed=i % 3)), "red " * (1 + i))]
        if i % 2
        else [turn("of " * (1 + i))]
        for i in range(8)
    ]

    def answer(messages: list[dict]) -> str:
        with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as own:
            return (
                own.chat.completions.create(model="small", messages=messages, max_tokens=30).choices[0].message.content
            )

    alone = [answer(messages) for messages in asked]
    together: dict[int, str] = {}
    threads = [
        threading.Thread(target=lambda i=i: together.update({i: answer(asked[i])}), daemon=True) for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[i] for i in range(8)] == alone


def test_what_never_fits_is_refused_without_decoding(create, two, monkeypatch):
    """64 pictures of a kilobyte each would be gigabytes of pixels."""
    from qvl.media import load

    decoded: list[object] = []
    view = load.view_image
    monkeypatch.setattr(load, "view_image", lambda *a, **k: (decoded.append(a), view(*a, **k))[1])
    large = {"min_pixels": 3_000_000, "max_pixels": 3_000_000} if two else {}
    with pytest.raises(openai.BadRequestError, match="of them pictures"):
        create(
            turn(*[picture(png_of(8, 8), **large)] * (1 if two else 64), "what?"), max_tokens=100_000 if not two else 8
        )
    assert decoded == []
    create(turn(picture(png_of(30, 30, seed=77)), "what?"))
    assert len(decoded) == 1
