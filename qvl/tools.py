"""Python functions that a model may call, and the loop that lets it.

Knows: a function's signature as a JSON schema, running calls, pictures in results. Does not know: models (any
`api.Generator` answers), how calls are spelled (`qvl.text.tools`).

    def crop(x1: int, y1: int, x2: int, y2: int) -> Picture:
        "Cuts a part out of the picture."
        return Picture(picture.crop((x1, y1, x2, y2)))

    talk = run_tools(vlm.engine, [{"role": "user", "content": [...]}], [tool(crop)])
    talk.text
"""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from qvl.engine.api import Generator, Reply, Request, Sampling
from qvl.text.tool_calls import ToolCall, read_calls
from qvl.text.tools import STOP_WORDS, ToolSpec, with_tools

_JSON_TYPES: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", dict: "object"}
_PYTHON_TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "integer": int, "number": (int, float), "boolean": bool, "object": dict, "array": list,
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A picture in a tool's result: whatever an image part's source may be (path, bytes, PIL picture, array)."""

    source: Any


@dataclass(frozen=True)
class Tool:
    spec: ToolSpec
    run: Callable[..., Any]
    """Called with the arguments by name. Gives text, a `Picture`, a list of these, or anything JSON can say."""


@dataclass(frozen=True)
class Talk:
    """A conversation that the model has brought to an end."""

    messages: list[dict[str, Any]]
    """OpenAI-style, calls and results included; the last one is the answer."""
    replies: tuple[Reply, ...]
    """One per round."""

    @property
    def text(self) -> str:
        """The answer."""
        return str(self.messages[-1]["content"])


def tool(function: Callable[..., Any]) -> Tool:
    """A function as a tool: its name, the first paragraph of its docstring, its parameters as a JSON schema.

    `Annotated[int, "left edge, pixels"]` describes a parameter; parameters without a default are required.

    Raises:
        ValueError: a parameter without a type that JSON knows, or one that cannot be given by name.
    """
    hints = get_type_hints(function, include_extras=True)
    properties, required = {}, []
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ValueError(f"tool {function.__name__}: parameter {parameter.name} cannot be given by name")
        if parameter.name not in hints:
            raise ValueError(f"tool {function.__name__}: parameter {parameter.name} has no type")
        properties[parameter.name] = _schema(hints[parameter.name], f"tool {function.__name__}: {parameter.name}")
        if parameter.default is parameter.empty:
            required.append(parameter.name)
    described = (inspect.getdoc(function) or "").partition("\n\n")[0].replace("\n", " ")
    schema = {"type": "object", "properties": properties, "required": required}
    return Tool(ToolSpec(function.__name__, described, schema), function)


def run_tools(
    generator: Generator,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    *,
    sampling: Sampling = Sampling(),  # noqa: B008 (frozen)
    max_rounds: int = 8,
) -> Talk:
    """Lets the model answer, runs what it calls, shows it the results, until it answers without a call.

    A tool that raises `ValueError` or `OSError` tells the model so, as do an unknown tool and broken arguments: it may
    try again. Any other error is the caller's.

    Raises:
        ValueError: still calling after `max_rounds` replies; whatever the generator refuses.
    """
    talk = [dict(message) for message in messages]
    replies: list[Reply] = []
    by_name = {own.spec.name: own for own in tools}
    with_stops = replace(sampling, stop=(*sampling.stop, *STOP_WORDS))
    for _ in range(max_rounds):
        prompt = with_tools(talk, [own.spec for own in tools])
        reply = generator.generate([Request(prompt.messages, with_stops)])[0]
        replies.append(reply)
        said, calls = read_calls(reply.text, prompt.opening)
        if not calls:
            talk.append({"role": "assistant", "content": said})
            return Talk(talk, tuple(replies))
        ids = [f"call_{len(replies)}_{number}" for number in range(len(calls))]
        talk.append(
            {
                "role": "assistant",
                "content": said,
                "tool_calls": [_written(c, i) for c, i in zip(calls, ids, strict=True)],
            }
        )
        for call, call_id in zip(calls, ids, strict=True):
            talk.append({"role": "tool", "tool_call_id": call_id, "content": _parts(_run(call, by_name))})
    raise ValueError(f"the model still calls tools after {max_rounds} replies; allow more with max_rounds")


def _written(call: ToolCall, call_id: str) -> dict[str, Any]:
    return {"id": call_id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _run(call: ToolCall, tools: Mapping[str, Tool]) -> Any:
    if call.name not in tools:
        return f"error: there is no tool {call.name!r}; there are: {', '.join(tools)}"
    try:
        arguments = json.loads(call.arguments)
    except (ValueError, RecursionError) as error:
        return f"error: the arguments are not JSON: {error}"
    if not isinstance(arguments, dict):
        return "error: the arguments must be a JSON object"
    if wrong := _what_is_wrong(arguments, tools[call.name].spec.parameters):
        return f"error: {wrong}"
    try:
        return tools[call.name].run(**arguments)
    except (ValueError, OSError) as error:
        return f"error: {error}"


def _what_is_wrong(arguments: dict[str, Any], schema: Mapping[str, Any]) -> str:
    """Why a function cannot be called so; empty = it can. Types are looked at no deeper than the argument itself."""
    properties, required = schema.get("properties"), set(schema.get("required", ()))
    unknown, missing = set(arguments) - set(arguments if properties is None else properties), required - set(arguments)
    if unknown or missing:
        return f"unknown arguments {sorted(unknown)}, missing arguments {sorted(missing)}"
    for name, value in arguments.items():
        wanted = (properties or {}).get(name, {})
        if (value is not None or name in required) and not _fits(value, wanted):
            said = json.dumps(wanted.get("enum", wanted.get("type")), ensure_ascii=False)
            return f"argument {name} must be {said}, got {json.dumps(value, ensure_ascii=False)}"
    return ""


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    if "enum" in schema:
        return value in schema["enum"]
    wanted = schema.get("type")
    kinds = _PYTHON_TYPES.get(wanted) if isinstance(wanted, str) else None
    return kinds is None or (isinstance(value, kinds) and (wanted == "boolean" or not isinstance(value, bool)))


def _parts(result: Any) -> list[dict[str, Any]]:
    items = result if isinstance(result, list | tuple) and any(isinstance(i, Picture) for i in result) else [result]
    return [_part(item) for item in items]


def _part(item: Any) -> dict[str, Any]:
    if isinstance(item, Picture):
        return {"type": "image", "image": item.source}
    return {"type": "text", "text": item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)}


def _schema(hint: Any, where: str) -> dict[str, Any]:
    if get_origin(hint) is Annotated:
        kind, *about = get_args(hint)
        return _schema(kind, where) | {"description": " ".join(map(str, about))}
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [kind for kind in get_args(hint) if kind is not types.NoneType]
        if len(kinds) == 1:
            return _schema(kinds[0], where)
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if hint is list or get_origin(hint) is list:
        return {"type": "array"} | ({"items": _schema(get_args(hint)[0], where)} if get_args(hint) else {})
    if (get_origin(hint) or hint) in _JSON_TYPES:
        return {"type": _JSON_TYPES[get_origin(hint) or hint]}
    raise ValueError(
        f"{where} has type {hint}, which JSON does not know; use str, int, float, bool, list, dict or Literal"
    )
