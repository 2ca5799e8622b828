"""The server as the real OpenAI client sees it."""

from __future__ import annotations

import json

import openai
import pydantic
import pytest
from canned_live import CannedLive, words
from clips import clip_file
from live_server import Live, data_uri, picture, png, serving

from qvl.engine.api import Sampling
from qvl.serve.schema import ChatRequest
from qvl.text.grounding import box, ref

CAT = f"{ref('the cat')}{box((0, 0, 500, 500))} sleeps."


@pytest.fixture(scope="module")
def engine() -> CannedLive:
    return CannedLive()


@pytest.fixture(scope="module")
def live(engine: CannedLive):
    with serving(engine) as server:
        yield server


@pytest.fixture
def client(live: Live, engine: CannedLive):
    engine.answer, engine.finish = lambda request: CAT, "stop"
    engine.asked.clear()
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def question(*parts: dict | str) -> list[dict]:
    content = [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]
    return [{"role": "user", "content": content}]


def test_models(client):
    assert [model.id for model in client.models.list()] == ["canned"]
    assert client.models.retrieve("canned").object == "model"
    with pytest.raises(openai.NotFoundError, match="there is no model 'other'"):
        client.models.retrieve("other")
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="other", messages=question("hi"))
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_a_whole_reply_with_boxes_in_pixels_and_costs(client):
    reply = client.chat.completions.create(model="canned", messages=question(picture(data_uri(png())), "Where?"))
    choice = reply.choices[0]
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (CAT, "assistant", "stop")
    assert choice.message.model_extra["boxes"] == [{"label": "the cat", "xyxy": [0, 0, 30, 20], "image": 0}]
    usage = reply.usage
    assert usage.prompt_tokens == 11
    assert usage.total_tokens == 11 + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 3
    extra = usage.model_extra
    assert (extra["vision_tokens"], extra["resized_to"], extra["cache_hits"]) == (4, [[40, 60]], 1)
    assert extra["milliseconds"] == {"generate": 30.0, "prefill": 20.0, "queue": 1.0}


def test_a_streamed_reply_is_the_same_in_pieces(client):
    stream = client.chat.completions.create(
        model="canned",
        messages=question(picture(data_uri(png())), "Where?"),
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == CAT
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-2:] == [None, "stop"]
    assert chunks[-2].choices[0].delta.model_extra["boxes"][0]["xyxy"] == [0, 0, 30, 20]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.prompt_tokens == 11
    assert len({c.id for c in chunks}) == 1
    silent = client.chat.completions.create(model="canned", messages=question("hi"), stream=True)
    assert all(c.usage is None for c in silent)


def test_every_option_reaches_the_engine(client, engine):
    client.chat.completions.create(
        model="canned", messages=question("hi"), temperature=0.5, top_p=0.9, seed=7, n=2, stop=["\n", "END"],
        max_completion_tokens=5, presence_penalty=0, user="me", extra_body={"top_k": 3, "repetition_penalty": 1.1},
    )  # fmt: skip
    first, second = (request.sampling for request in engine.asked)
    assert (first.temperature, first.top_p, first.top_k, first.repetition_penalty) == (0.5, 0.9, 3, 1.1)
    assert (first.stop, first.max_new_tokens, first.seed, second.seed) == (("\n", "END"), 5, 7, 8)
    client.chat.completions.create(model="canned", messages=question("hi"))
    assert (engine.asked[-1].sampling.temperature, engine.asked[-1].sampling.max_new_tokens) == (0.0, 256)


def test_null_says_nothing(client, engine):
    def ask(**fields: object) -> Sampling:
        extra = {
            "messages": [{"role": "user", "content": [{"type": "text", "text": "hi", "image_url": None}]}],
            **fields,
        }
        client.chat.completions.create(model="canned", messages=[], extra_body=extra)
        return engine.asked[-1].sampling

    nothing = dict.fromkeys(set(ChatRequest.model_fields) - {"model", "messages"})
    assert ask(**nothing, reasoning_effort=None) == ask()
    function = {"name": "look", "description": None, "parameters": None, "strict": None}
    ask(tools=[{"type": "function", "function": function}])
    assert "look:  Parameters: {" in words(engine.asked[-1])


def test_choices_are_told_apart_in_a_stream(client, engine):
    engine.answer = lambda request: f"choice {request.sampling.seed}"
    stream = client.chat.completions.create(model="canned", messages=question("hi"), stream=True, n=3, seed=1)
    texts = ["", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert texts == ["choice 1", "choice 2", "choice 3"]
    reply = client.chat.completions.create(model="canned", messages=question("hi"), n=2, seed=4)
    assert [c.message.content for c in reply.choices] == ["choice 4", "choice 5"]
    assert reply.usage.completion_tokens == 4
    assert reply.usage.prompt_tokens == 10


def test_cut_replies_say_so(client, engine):
    reply = client.chat.completions.create(model="canned", messages=question("hi"), max_tokens=2)
    assert (reply.choices[0].message.content, reply.choices[0].finish_reason) == (CAT[:8], "length")
    engine.finish = "repetition"
    reply = client.chat.completions.create(model="canned", messages=question("hi"))
    assert (reply.choices[0].finish_reason, reply.choices[0].model_extra["stop_reason"]) == ("length", "repetition")


def test_logprobs(client, engine):
    engine.answer = lambda request: "a ca"
    reply = client.chat.completions.create(model="canned", messages=question("hi"), logprobs=True, top_logprobs=2)
    (token,) = reply.choices[0].logprobs.content
    assert (token.token, token.bytes, token.logprob) == ("a ca", [97, 32, 99, 97], -0.5)
    assert [(t.token, t.bytes) for t in token.top_logprobs] == [("a ca", [97, 32, 99, 97]), ("�", [255])]
    stream = client.chat.completions.create(model="canned", messages=question("hi"), logprobs=True, stream=True)
    assert [c.choices[0].logprobs.content[0].token for c in stream if c.choices[0].logprobs] == ["a ca"]
    with pytest.raises(openai.BadRequestError, match="top_logprobs needs logprobs"):
        client.chat.completions.create(model="canned", messages=question("hi"), top_logprobs=2)


def test_formats(client, engine):
    client.chat.completions.create(model="canned", messages=question("hi"), response_format={"type": "json_object"})
    assert engine.asked[-1].sampling.json_schema == "{}"
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "count", "schema": schema, "strict": True}}
    client.chat.completions.create(model="canned", messages=question("hi"), response_format=wanted)
    assert json.loads(engine.asked[-1].sampling.json_schema) == schema
    client.chat.completions.create(model="canned", messages=question("hi"), response_format={"type": "text"})
    assert engine.asked[-1].sampling.json_schema is None


class Count(pydantic.BaseModel):
    n: int


def test_what_the_client_has_parsed_can_be_sent_back(client, engine):
    engine.answer = lambda request: '{"n": 3}'
    first = client.chat.completions.parse(model="canned", messages=question("hi"), response_format=Count)
    said = first.choices[0].message
    assert said.parsed == Count(n=3)
    client.chat.completions.create(
        model="canned", messages=[*question("hi"), said.to_dict(warnings=False), *question("sure?")]
    )
    assert words(engine.asked[-1]) == 'user: hi\nassistant: {"n": 3}\nuser: sure?'


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "crop",
            "description": "Cuts out a part.",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer"}}},
        },
    }
]
CALLS = 'Closer.\n✿FUNCTION✿: crop\n✿ARGS✿: {"x": 1}\n✿FUNCTION✿: crop\n✿ARGS✿: {"x": 2}\n✿RESULT✿: made up'


def test_tools_both_ways(client, engine):
    engine.answer = lambda request: CALLS
    messages = question(picture(data_uri(png())), "What does it say?")
    reply = client.chat.completions.create(model="canned", messages=messages, tools=TOOLS)
    choice = reply.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Closer.")
    calls = choice.message.tool_calls
    assert [(c.function.name, json.loads(c.function.arguments)) for c in calls] == [
        ("crop", {"x": 1}),
        ("crop", {"x": 2}),
    ]
    assert "# Tools\n\n## You have access to the following tools:" in words(engine.asked[-1])
    assert "✿RESULT✿" in engine.asked[-1].sampling.stop
    # The client sends back the message as it came, and a picture as result.
    engine.answer = lambda request: ": exit"
    shown = [{"type": "text", "text": "here"}, picture(data_uri(png(30, 30)))]
    results = [{"role": "tool", "tool_call_id": c.id, "content": shown} for c in calls]
    talk = [*messages, choice.message.model_dump(), *results]
    reply = client.chat.completions.create(model="canned", messages=talk, tools=TOOLS)
    assert reply.choices[0].message.content == "exit"
    assert words(engine.asked[-1]).endswith("\n✿RESULT✿: here\n✿RESULT✿: here\n✿RETURN✿")
    assert engine.asked[-1].messages[-1].partial
    assert reply.usage.model_extra["resized_to"] == [[40, 60], [30, 30], [30, 30]]
    # Without tools to call (again) the answer is the same, and what looks like a call is text.
    for options in ({}, {"tools": TOOLS, "tool_choice": "none"}):
        engine.answer = lambda request: ": exit ✿FUNCTION✿: crop"
        reply = client.chat.completions.create(model="canned", messages=talk, **options)
        assert reply.choices[0].message.content == "exit ✿FUNCTION✿: crop"
        chunks = client.chat.completions.create(model="canned", messages=talk, stream=True, **options)
        assert "".join(c.choices[0].delta.content or "" for c in chunks) == "exit ✿FUNCTION✿: crop"


def test_streamed_calls(client, engine):
    engine.answer = lambda request: CALLS
    stream = client.chat.completions.create(model="canned", messages=question("hi"), tools=TOOLS, stream=True)
    names, arguments, said, reasons = {}, {}, "", []
    for chunk in stream:
        delta = chunk.choices[0].delta
        said += delta.content or ""
        reasons.append(chunk.choices[0].finish_reason)
        for call in delta.tool_calls or ():
            if call.id:
                names[call.index] = call.function.name
            arguments[call.index] = arguments.get(call.index, "") + (call.function.arguments or "")
    assert (said, names, arguments, reasons[-1]) == (
        "Closer.", {0: "crop", 1: "crop"}, {0: '{"x": 1}', 1: '{"x": 2}'}, "tool_calls",
    )  # fmt: skip


def test_tool_choice(client, engine):
    engine.answer = lambda request: ' {"x": 3}'
    named = {"type": "function", "function": {"name": "crop"}}
    create = client.chat.completions.create
    reply = create(model="canned", messages=question("hi"), tools=TOOLS, tool_choice=named)
    assert reply.choices[0].message.tool_calls[0].function.arguments == '{"x": 3}'
    assert words(engine.asked[-1]).endswith("✿FUNCTION✿: crop\n✿ARGS✿:")
    engine.answer = lambda request: CALLS
    reply = create(model="canned", messages=question("hi"), tools=TOOLS, parallel_tool_calls=False)
    assert len(reply.choices[0].message.tool_calls) == 1
    reply = create(model="canned", messages=question("hi"), tools=TOOLS, tool_choice="none")
    assert reply.choices[0].message.content == CALLS
    assert "# Tools" not in words(engine.asked[-1])
    with pytest.raises(openai.BadRequestError, match="tool_choice is required, but there are no tools"):
        create(model="canned", messages=question("hi"), tool_choice="required")
    with pytest.raises(openai.BadRequestError, match="response_format cannot go together with tools"):
        create(model="canned", messages=question("hi"), tools=TOOLS, response_format={"type": "json_object"})


def test_pixel_budgets_are_honoured_per_picture(client, engine):
    one = picture(data_uri(png()), min_pixels=3136, max_pixels=50000)
    two = picture(data_uri(png()))
    client.chat.completions.create(
        model="canned", messages=question(one, two, "hi"), extra_body={"mm_processor_kwargs": {"max_pixels": 9999}}
    )
    first, second = engine.asked[-1].messages[-1].parts[:2]
    assert (first.min_pixels, first.max_pixels) == (3136, 50000)
    assert (second.min_pixels, second.max_pixels) == (None, 9999)
    with pytest.raises(openai.BadRequestError, match=r"unknown keys \['max_pixel'\]"):
        client.chat.completions.create(model="canned", messages=question(picture(data_uri(png()), max_pixel=1), "hi"))


def test_uploads_are_named_in_later_requests(client, engine):
    file = client.files.create(file=("cat.png", png()), purpose="vision")
    assert (file.filename, file.bytes) == ("cat.png", len(png()))
    assert [f.id for f in client.files.list()] == [file.id]
    client.chat.completions.create(model="canned", messages=question(picture(file.id), "hi"))
    assert engine.asked[-1].messages[-1].parts[0].source == png()
    moving = clip_file()
    clip = client.files.create(file=("cat.mp4", moving), purpose="vision")
    part = {"type": "video_url", "video_url": {"url": clip.id}, "fps": 1}
    client.chat.completions.create(model="canned", messages=question(part, "hi"))
    assert (engine.asked[-1].messages[-1].parts[0].source, engine.asked[-1].messages[-1].parts[0].fps) == (moving, 1)
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.BadRequestError, match="there is no uploaded file") as caught:
        client.chat.completions.create(model="canned", messages=question(picture(file.id), "hi"))
    assert caught.value.param == "messages.0.content.0.image_url"
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_refusals_of_the_engine_are_errors_of_the_request(client, engine):
    engine.refusal = "the prompt has 9999 tokens, but the model's context is 512"
    try:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="canned", messages=question("hi"))
        assert refused.value.body["message"] == engine.refusal
        assert refused.value.code is None
    finally:
        engine.refusal = ""
    engine.problem = "out of memory"
    try:
        for stream in (False, True):
            with pytest.raises(openai.InternalServerError, match="out of memory"):
                client.chat.completions.create(model="canned", messages=question("hi"), stream=stream)
    finally:
        engine.problem = ""
