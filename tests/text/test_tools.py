"""Function calls as text, both ways: the golden prompt, folding of messages, calls read from streams cut anywhere."""

from __future__ import annotations

import json
import random

import pytest

from qvl.text.chat import ChatML
from qvl.text.chunks import TextChunk
from qvl.text.messages import parse_messages
from qvl.text.tokenizer import Tokenizer
from qvl.text.tool_calls import CallArguments, CallBegins, CallReader, Said, ToolCall, read_calls
from qvl.text.tools import ARGS, FUNCTION, RESULT, RETURN, ToolSpec, tools_prompt, with_tools

CROP = ToolSpec("crop", "Cuts out a part.", {"type": "object", "properties": {"box": {"type": "array"}}})
READ = ToolSpec("read", "Reads text.")
GOLDEN = """\
# Tools

## You have access to the following tools:

### crop

crop: Cuts out a part. Parameters: {"type": "object", "properties": {"box": {"type": "array"}}} \
Format the arguments as a JSON object.

### read

read: Reads text. Parameters: {"type": "object", "properties": {}} Format the arguments as a JSON object.

## When you need to call a tool, please insert the following command in your reply, which can be called zero or \
multiple times according to your needs:

✿FUNCTION✿: The tool to use, should be one of [crop,read]
✿ARGS✿: The input of the tool
✿RESULT✿: Tool results
✿RETURN✿: Reply based on tool results. Images need to be rendered as ![](url)"""


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def call(key: str, name: str, arguments: str = "{}") -> dict:
    return {"id": key, "type": "function", "function": {"name": name, "arguments": arguments}}


def result(key: str, content: object) -> dict:
    return {"role": "tool", "tool_call_id": key, "content": content}


def flat(turn: dict) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(p.get("text", "<picture>") for p in content)


def test_tools_are_listed_in_the_words_of_the_model():
    assert tools_prompt([CROP, READ], parallel=False) == GOLDEN
    parallel = tools_prompt([CROP, READ])
    assert "when you need to call N tools in parallel:\n\n✿FUNCTION✿: The name of tool 1, should be one of" in parallel
    assert parallel.startswith(GOLDEN.split("## When")[0])


def test_the_list_follows_the_system_text_after_a_blank_line():
    prompt = with_tools([user("hi")], [READ])
    assert flat(prompt.messages[0]).startswith("You are a helpful assistant.\n\n# Tools\n\n## You have")
    prompt = with_tools([{"role": "system", "content": "Be brief."}, user("hi")], [READ])
    assert flat(prompt.messages[0]).startswith("Be brief.\n\n# Tools")
    assert [m["role"] for m in prompt.messages] == ["system", "user"]
    assert with_tools([user("hi")], [READ], choice="none").messages == [user("hi")]


def test_calls_and_results_become_one_turn_that_the_reply_goes_on_from():
    asked = {"role": "assistant", "content": None, "tool_calls": [call("a", "crop", '{"box": [1]}')]}
    seen = [{"type": "image", "image": "crop.png"}]
    prompt = with_tools([user("What does it say?"), asked, result("a", seen)], [CROP])
    assert flat(prompt.messages[-1]) == f'{FUNCTION}: crop\n{ARGS}: {{"box": [1]}}\n{RESULT}: <picture>\n{RETURN}'
    assert prompt.opening == RETURN
    done = [user("Q"), asked, result("a", "exit"), {"role": "assistant", "content": "It says exit."}, user("Sure?")]
    turns = with_tools(done, [CROP]).messages
    assert [t["role"] for t in turns] == ["system", "user", "assistant", "user"]
    assert flat(turns[2]).endswith(f"\n{RESULT}: exit\n{RETURN}: It says exit.")


def test_results_of_calls_made_together_stand_in_the_order_of_the_calls():
    asked = {"role": "assistant", "content": "Two things.", "tool_calls": [call("a", "crop"), call("b", "read")]}
    again = {"role": "assistant", "content": "", "tool_calls": [call("c", "read")]}
    talk = [user("Q"), asked, result("b", "two"), result("a", "one"), again, result("c", "three")]
    assert flat(with_tools(talk, [CROP, READ]).messages[-1]) == (
        f"Two things.\n{FUNCTION}: crop\n{ARGS}: {{}}\n{FUNCTION}: read\n{ARGS}: {{}}\n{RESULT}: one\n{RESULT}: two"
        f"\n{RETURN}: \n{FUNCTION}: read\n{ARGS}: {{}}\n{RESULT}: three\n{RETURN}"
    )


def test_a_tool_can_be_forced():
    prompt = with_tools([user("Q")], [CROP, READ], choice="read")
    assert prompt.messages[-1]["role"] == "assistant"
    assert flat(prompt.messages[-1]) == prompt.opening == f"{FUNCTION}: read\n{ARGS}:"
    assert read_calls(' {"x": 1}', prompt.opening) == ("", [ToolCall("read", '{"x": 1}')])
    prompt = with_tools([user("Q")], [CROP, READ], choice="required")
    assert read_calls(f" crop\n{ARGS}: {{}}", prompt.opening) == ("", [ToolCall("crop", "{}")])
    with pytest.raises(ValueError, match="'paint' is not among the tools: crop, read"):
        with_tools([user("Q")], [CROP, READ], choice="paint")


@pytest.mark.parametrize(
    ("talk", "message"),
    [
        ([user("Q"), result("x", "r")], "message 1 answers tool call 'x', which no message before it has made"),
        (
            [user("Q"), {"role": "assistant", "tool_calls": [call("a", "crop")]}, user("and?")],
            r"message 2 comes before the results of the tool calls \['a'\]",
        ),
        ([user("Q"), {"role": "assistant", "tool_calls": [call("a", "crop")]}], r"\['a'\] have no result yet"),
        ([user("Q"), {"role": "assistant", "tool_calls": [{"id": "a"}]}], "message 1, tool call 0 must be"),
    ],
)
def test_calls_and_results_have_to_match(talk, message):
    with pytest.raises(ValueError, match=message):
        with_tools(talk, [CROP])


@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Just words. ✿", "Just words. ✿", []),
        ('Let me see.\n✿FUNCTION✿: crop\n✿ARGS✿: {"t": "a } b\\" "}\n', "Let me see.",
         [("crop", '{"t": "a } b\\" "}')]),
        ('✿FUNCTION✿: a\n✿ARGS✿: {"x": [1, {"y": 2}]} <!-- why -->\n✿FUNCTION✿: b\n✿ARGS✿: {}', "",
         [("a", '{"x": [1, {"y": 2}]}'), ("b", "{}")]),
        ("✿FUNCTION✿: home screen\n✿ARGS✿: None\n", "", [("home screen", "None")]),
        ("✿FUNCTION✿: a\n✿FUNCTION✿: b\n✿ARGS✿: {}", "", [("a", "{}"), ("b", "{}")]),
        ("✿FUNCTION✿: a", "", [("a", "{}")]),
        ("✿FUNCTION✿: a ✿ARGS✿: {}", "", [("a", "{}")]),
    ],
)  # fmt: skip
def test_calls_are_read_the_same_however_the_stream_is_cut(text, said, calls):
    expected = (said, [ToolCall(name, arguments) for name, arguments in calls])
    assert read_calls(text) == expected
    for seed in range(20):
        cuts = sorted(random.Random(seed).choices(range(len(text) + 1), k=6))
        reader, pieces = CallReader(), []
        for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True):
            pieces += reader.push(text[a:b])
        pieces += reader.close()
        words = "".join(p.text for p in pieces if isinstance(p, Said))
        names = [p.name for p in pieces if isinstance(p, CallBegins)]
        written = ["".join(p.text for p in pieces if isinstance(p, CallArguments) and p.index == i) for i in range(9)]
        assert (words, [ToolCall(n, w) for n, w in zip(names, written, strict=False)]) == expected


def test_arguments_are_streamed_as_they_come():
    reader = CallReader()
    assert reader.push("Hm.\n✿FUNC") == [Said("Hm.")]
    assert reader.push("TION✿: crop\n✿ARGS✿: ") == [CallBegins(0, "crop")]
    assert reader.push('{"box": [1,') == [CallArguments(0, '{"box": [1,')]
    assert reader.push(" 2]}\n") == [CallArguments(0, " 2]}")]
    assert reader.close() == []


def test_the_colon_after_return_is_not_part_of_the_answer():
    assert read_calls(": It says exit.", RETURN) == ("It says exit.", [])
    reader = CallReader(RETURN)
    assert [*reader.push(":"), *reader.push(" It"), *reader.close()] == [Said("It")]


def test_where_nothing_may_be_called_everything_is_said():
    text = ": It says exit.\n✿FUNCTION✿: crop\n✿ARGS✿: {}"
    for step in (1, 3, 100):
        reader = CallReader(RETURN, may_call=False)
        pieces = [p for at in range(0, len(text), step) for p in reader.push(text[at : at + step])] + reader.close()
        assert all(isinstance(p, Said) for p in pieces)
        assert "".join(p.text for p in pieces) == text[2:]


def test_one_call_at_a_time():
    text = "✿FUNCTION✿: a\n✿ARGS✿: {}\n✿FUNCTION✿: b\n✿ARGS✿: {}"
    assert read_calls(text, max_calls=1) == ("", [ToolCall("a", "{}")])


def test_a_call_written_and_read_again_is_the_same():
    arguments = json.dumps({"text": '✿ {"', "n": [1, {"a": None}]}, ensure_ascii=False)
    asked = {"role": "assistant", "tool_calls": [call("a", "crop", arguments)]}
    turn = with_tools([user("Q"), asked, result("a", "r")], [CROP]).messages[-1]
    assert read_calls(flat(turn).partition(f"\n{RESULT}")[0]) == ("", [ToolCall("crop", arguments)])


def test_the_reply_goes_on_in_the_open_turn(small: Tokenizer):
    def rendered(*messages: dict) -> str:
        chunks = ChatML(small).render(parse_messages(messages), generation_prompt=True)
        return "".join(small.decode(c.ids) for c in chunks if isinstance(c, TextChunk))

    assert rendered(user("Q")).endswith("user\nQ\nassistant\n")
    begun = {"role": "assistant", "content": "A:"}
    assert rendered(user("Q"), begun | {"partial": True}).endswith("user\nQ\nassistant\nA:")
    assert rendered(user("Q"), begun).endswith("user\nQ\nassistant\nA:\nassistant\n")
    with pytest.raises(ValueError, match="message 0 is partial; only the last"):
        rendered(begun | {"partial": True}, user("Q"))


@pytest.mark.parametrize("bad", ["", "two words", "a✿"])
def test_tool_names_are_one_word(bad):
    with pytest.raises(ValueError, match="one word"):
        ToolSpec(bad)
