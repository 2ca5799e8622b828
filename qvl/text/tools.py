"""Function calls as Qwen2-VL writes them: plain words in the assistant's turn, both ways.

Knows: the four keywords, the system text that lists tools, calls and results of OpenAI-style messages as text.
Does not know: token ids (the keywords are ordinary text), how a tool is run (`qvl.tools`), HTTP.

    ✿FUNCTION✿: crop
    ✿ARGS✿: {"box": [10, 20, 90, 80]}
    ✿RESULT✿: <picture>
    ✿RETURN✿: It says "exit".

Source: arXiv 2409.12191 (agent data) and the English parallel prompt of Qwen-Agent's `qwen_fncall_prompt.py`.
The model writes the first two lines and is stopped there; whoever runs the tool writes the third, and the model goes on
after ✿RETURN✿.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from qvl.text.template import DEFAULT_SYSTEM

FUNCTION, ARGS, RESULT, RETURN = "✿FUNCTION✿", "✿ARGS✿", "✿RESULT✿", "✿RETURN✿"
STOP_WORDS = (RESULT, RETURN)
"""Texts that end a reply: what follows a call is for the one who runs it."""

_HEAD = "# Tools\n\n## You have access to the following tools:\n\n"
_ONE_AT_A_TIME = f"""\
## When you need to call a tool, please insert the following command in your reply, which can be called zero or \
multiple times according to your needs:

{FUNCTION}: The tool to use, should be one of [%s]
{ARGS}: The input of the tool
{RESULT}: Tool results
"""
_PARALLEL = f"""\
## Insert the following command in your reply when you need to call N tools in parallel:

{FUNCTION}: The name of tool 1, should be one of [%s]
{ARGS}: The input of tool 1
{FUNCTION}: The name of tool 2
{ARGS}: The input of tool 2
...
{FUNCTION}: The name of tool N
{ARGS}: The input of tool N
{RESULT}: The result of tool 1
{RESULT}: The result of tool 2
...
{RESULT}: The result of tool N
"""
_TAIL = f"{RETURN}: Reply based on tool results. Images need to be rendered as ![](url)"


@dataclass(frozen=True)
class ToolSpec:
    """What a model is told about a tool."""

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})
    """JSON schema of the arguments."""

    def __post_init__(self) -> None:
        if not self.name or any(c.isspace() or c == "✿" for c in self.name):
            raise ValueError(f"a tool's name is one word without ✿, got {self.name!r}")


def tools_prompt(tools: Sequence[ToolSpec], *, parallel: bool = True) -> str:
    """The system text that lists `tools` and says how to call them (several at once if `parallel`)."""
    told = "\n\n".join(
        f"### {tool.name}\n\n{tool.name}: {tool.description} Parameters: "
        f"{json.dumps(tool.parameters, ensure_ascii=False)} Format the arguments as a JSON object."
        for tool in tools
    )
    names = ",".join(tool.name for tool in tools)
    return f"{_HEAD}{told}\n\n{(_PARALLEL if parallel else _ONE_AT_A_TIME) % names}{_TAIL}"


@dataclass(frozen=True)
class Prompt:
    """A conversation in which calls and results are text."""

    messages: list[dict[str, Any]]
    """OpenAI-style messages without tool calls. The last one is `partial` if the reply goes on from it."""
    opening: str = ""
    """What the reply goes on from; `CallReader` has to know."""
    calls: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    """If it must begin with a call: the texts that may follow, each with the schema of the arguments after it."""


def with_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[ToolSpec], *, choice: str = "auto", parallel: bool = True
) -> Prompt:
    """Writes tools into the system turn, calls and results into the assistant's turns.

    Args:
        messages: OpenAI-style; the assistant's may have `tool_calls`, those of role "tool" answer them by
            `tool_call_id`. Contents of any role may hold pictures, results too.
        choice: "auto", "required" (some tool must be called), "none" (they are listed nowhere), or a tool's name.

    Raises:
        ValueError: a result without its call, a call without a result before the conversation goes on, an unknown
            choice, something that is no message.
    """
    for index, message in enumerate(messages):
        _check_form(message, index)
    turns = _fold(list(_in_order(messages)))
    opening = RETURN if turns and turns[-1]["role"] == "assistant" and messages[-1].get("role") == "tool" else ""
    if opening:
        turns[-1] |= {"content": [*turns[-1]["content"][:-1], _text(f"\n{RETURN}")], "partial": True}
    if choice == "none" or not tools:
        return Prompt(turns, opening)
    if choice not in ("auto", "required", *(tool.name for tool in tools)):
        raise ValueError(f"tool choice {choice!r} is not among the tools: {', '.join(tool.name for tool in tools)}")
    calls: list[tuple[str, Mapping[str, Any]]] = []
    if choice != "auto":
        forced = f"{FUNCTION}:" if choice == "required" else f"{FUNCTION}: {choice}\n{ARGS}:"
        if opening:
            turns[-1]["content"].append(_text(f": \n{forced}"))
        else:
            turns.append({"role": "assistant", "content": [_text(forced)], "partial": True})
        opening = forced
        asked = [tool for tool in tools if choice in ("required", tool.name)]
        calls = [(f" {tool.name}\n{ARGS}: " if choice == "required" else " ", tool.parameters) for tool in asked]
    return Prompt(_with_system_text(turns, tools_prompt(tools, parallel=parallel)), opening, tuple(calls))


def _check_form(message: Any, index: int) -> None:
    """What folding reads is of the type it takes it for; the rest is looked at by `parse_messages`."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise ValueError(f"message {index} must be an object with 'role' (a text) and 'content'")
    content = message.get("content")
    if not isinstance(content, str | list | tuple) and (content is not None or message["role"] in ("system", "user")):
        raise ValueError(f"message {index}: content must be a string or a list of parts, not {type(content).__name__}")
    if not isinstance(message.get("tool_calls") or [], list | tuple):
        raise ValueError(f"message {index}: tool_calls must be a list")


def _with_system_text(turns: list[dict[str, Any]], text: str) -> list[dict[str, Any]]:
    has_system = bool(turns) and turns[0]["role"] == "system"
    before = _parts(turns[0]["content"]) if has_system else [_text(DEFAULT_SYSTEM)]
    return [{"role": "system", "content": [*before, _text(f"\n\n{text}")]}, *turns[has_system:]]


def _fold(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every run of assistant's and tools' messages becomes one assistant's turn."""
    turns: list[dict[str, Any]] = []
    open_calls: dict[str, int] = {}
    for index, message in enumerate(messages):
        role = message.get("role")
        if role == "tool":
            call = message.get("tool_call_id")
            if not isinstance(call, str) or call not in open_calls:
                raise ValueError(f"message {index} answers tool call {call!r}, which no message before it has made")
            del open_calls[call]
            _add_result(turns[-1]["content"], _parts(message.get("content")))
            continue
        if open_calls:
            raise ValueError(f"message {index} comes before the results of the tool calls {sorted(open_calls)}")
        calls = message.get("tool_calls") or []
        if role != "assistant" or not (calls or _after_result(turns)):
            turns.append(dict(message))
            continue
        if not _after_result(turns):
            turns.append({"role": "assistant", "content": []})
        parts = turns[-1]["content"]
        parts += _parts(message.get("content"))
        for number, call in enumerate(calls):
            name, arguments, key = _read_call(call, f"message {index}, tool call {number}")
            parts.append(_text(("\n" if parts else "") + f"{FUNCTION}: {name}\n{ARGS}: {arguments}"))
            open_calls[key] = number
    if open_calls:
        raise ValueError(f"the tool calls {sorted(open_calls)} have no result yet: a message of role 'tool' for each")
    return turns


def _after_result(turns: Sequence[Mapping[str, Any]]) -> bool:
    """The last turn is the assistant's and ends with a tool's result: what the assistant says next belongs to it."""
    if not turns or turns[-1]["role"] != "assistant" or not isinstance(turns[-1].get("content"), list):
        return False
    last = turns[-1]["content"][-1:]
    return bool(last) and isinstance(last[0], Mapping) and str(last[0].get("text", "")) == f"\n{RETURN}: "


def _add_result(parts: list[Any], result: list[Any]) -> None:
    """Results of calls made together stand one after the other before the single ✿RETURN✿."""
    if parts and parts[-1] == _text(f"\n{RETURN}: "):
        parts.pop()
    parts += [_text(f"\n{RESULT}: "), *result, _text(f"\n{RETURN}: ")]


def _read_call(call: Any, where: str) -> tuple[str, str, str]:
    function = call.get("function") if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    arguments = function.get("arguments", "{}") if isinstance(function, Mapping) else None
    key = call.get("id") if isinstance(call, Mapping) else None
    if not (isinstance(name, str) and name and isinstance(arguments, str) and isinstance(key, str)):
        raise ValueError(
            f"{where} must be {{'id', 'type': 'function', 'function': {{'name', 'arguments': JSON text}}}}"
        )
    return name, arguments, key


def _parts(content: Any) -> list[Any]:
    if content is None or content == "":
        return []
    return [_text(content)] if isinstance(content, str) else list(content)


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _in_order(messages: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """The same messages with the results of calls made together in the order of the calls."""
    order: dict[str, int] = {}
    run: list[Mapping[str, Any]] = []
    for message in messages:
        if message.get("role") == "tool":
            run.append(message)
            continue
        yield from sorted(run, key=lambda m: order.get(str(m.get("tool_call_id")), 0))
        run = []
        yield message
        calls = message.get("tool_calls") or []
        order = {str(c.get("id")): i for i, c in enumerate(calls) if isinstance(c, Mapping)}
    yield from sorted(run, key=lambda m: order.get(str(m.get("tool_call_id")), 0))
