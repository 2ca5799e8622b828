"""A chat request -> what the engine is asked.

Knows: OpenAI's messages, tools and formats, and what each means for `api.Request`. Does not know: HTTP, replies.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from qvl.engine.api import Beginning, Request, Sampling
from qvl.serve.config import ServeConfig
from qvl.serve.errors import ApiError
from qvl.serve.schema import ChatRequest, NamedTool
from qvl.text.messages import parse_messages
from qvl.text.tools import STOP_WORDS, Prompt, ToolSpec, with_tools

Load = Callable[[object, Literal["picture", "video"]], bytes]
_KINDS: dict[str, tuple[str, Literal["picture", "video"]]] = {
    "image_url": ("image", "picture"),
    "image": ("image", "picture"),
    "video_url": ("video", "video"),
    "video": ("video", "video"),
}
_ALLOWED = {
    *("role", "content", "name", "tool_calls", "tool_call_id", "partial"),
    *("refusal", "boxes", "annotations", "parsed"),  # of a reply that is sent back; `parsed` is OpenAI's client's own
}


@dataclass(frozen=True)
class Question:
    """What a chat request asks, `n` times."""

    requests: tuple[Request, ...]
    opening: str = ""
    """What the reply goes on from: a tool's results, or a call that it is made to begin."""
    tools: bool = False
    """Calls in it are the client's to run."""
    max_calls: int | None = None


def read_question(body: ChatRequest, load: Load, config: ServeConfig) -> Question:
    """Blocking: pictures are loaded here.

    Raises:
        ApiError: what cannot be asked, with the field that says so.
    """
    _check_counts(body, config)
    tools = [ToolSpec(t.function.name, t.function.description, t.function.parameters) for t in body.tools or ()]
    choice = _choice(body)
    calls = choice != "none" and bool(tools)
    budget = body.mm_processor_kwargs.model_dump(exclude_none=True)
    try:
        plain = [_loaded(_plain(message, i), i, budget, load) for i, message in enumerate(body.messages)]
        prompt = with_tools(plain, tools, choice=choice, parallel=body.parallel_tool_calls)
        messages = parse_messages(prompt.messages)
    except ValueError as error:
        raise ApiError(str(error), param="messages") from error
    beginning = _beginning(prompt, whole=not body.parallel_tool_calls or isinstance(body.tool_choice, NamedTool))
    samplings = [_sampling(body, number, calls, beginning, config) for number in range(body.n)]
    requests = tuple(Request(messages, sampling) for sampling in samplings)
    return Question(requests, prompt.opening, calls, None if body.parallel_tool_calls else 1)


def _check_counts(body: ChatRequest, config: ServeConfig) -> None:
    limits = config.limits
    if len(body.messages) > limits.messages:
        raise ApiError(f"{len(body.messages):,} messages; the limit is {limits.messages:,}", param="messages")
    if body.n > limits.choices:
        raise ApiError(f"n is {body.n}; the limit is {limits.choices}", param="n")
    media = sum(
        _is_media(part)
        for message in body.messages
        for part in (message.get("content") if isinstance(message.get("content"), list) else ())
    )
    if media > limits.media:
        raise ApiError(f"{media} pictures and clips in one request; the limit is {limits.media}", param="messages")


def _choice(body: ChatRequest) -> str:
    if isinstance(body.tool_choice, NamedTool):
        name, names = body.tool_choice.function.name, [tool.function.name for tool in body.tools or ()]
        if name not in names:
            raise ApiError(
                f"tool_choice names {name[:100]!r}, but the tools are: {', '.join(names) or 'none'}",
                param="tool_choice",
            )
        return name
    if body.tool_choice == "required" and not body.tools:
        raise ApiError("tool_choice is required, but there are no tools", param="tool_choice")
    return body.tool_choice or "auto"


def _plain(message: dict[str, Any], index: int) -> dict[str, Any]:
    """A message without what only clients need: names, and what a reply of ours carried along."""
    message = {key: value for key, value in message.items() if value is not None}
    if unknown := set(message) - _ALLOWED:
        raise ValueError(f"message {index} has unknown keys {sorted(unknown)}; allowed: {', '.join(sorted(_ALLOWED))}")
    kept = {key: value for key, value in message.items() if key in ("role", "content", "tool_call_id", "partial")}
    if kept.get("role") == "developer":
        kept["role"] = "system"
    if message.get("tool_calls"):
        kept["tool_calls"] = message["tool_calls"]
    elif kept.get("role") == "assistant" and kept.get("content") is None:
        kept["content"] = ""
    if kept.get("role") != "tool":
        kept.pop("tool_call_id", None)
    return kept


def _loaded(message: dict[str, Any], index: int, budget: dict[str, Any], load: Load) -> dict[str, Any]:
    """The message with encoded bytes in the place of every address."""
    content = message.get("content")
    if not isinstance(content, list):
        return message
    parts = [_loaded_part(part, budget, load, f"messages.{index}.content.{j}") for j, part in enumerate(content)]
    return {**message, "content": parts}


def _is_media(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, Mapping) else None
    return isinstance(kind, str) and kind in _KINDS


def _loaded_part(part: Any, budget: dict[str, Any], load: Load, where: str) -> Any:
    """An `image_url` or `video_url` part as `image` or `video` with bytes; anything else as it is."""
    if isinstance(part, Mapping):
        part = {key: value for key, value in part.items() if value is not None}
    if not _is_media(part):
        return part
    written = part["type"]
    name, kind = _KINDS[written]
    options = {key: value for key, value in part.items() if key not in ("type", written)}
    source = part.get(written)
    if isinstance(source, Mapping):
        options = {**{k: v for k, v in source.items() if k not in ("url", "detail")}, **options}
        source = source.get("url")
    # Nothing in a request may say what is opened except the address that `load` checks.
    if smuggled := {"type", *_KINDS} & set(options):
        raise ApiError(f"{where}: a part has one address, in {written!r}; leave {sorted(smuggled)} out", param=where)
    try:
        data = load(source, kind)
    except ValueError as error:
        raise ApiError(str(error), param=f"{where}.{written}", code=f"invalid_{name}") from error
    return {"type": name, name: data, **budget, **options}


def _beginning(prompt: Prompt, *, whole: bool) -> Beginning | None:
    """The call that a reply must begin with: its name is one of the tools', its arguments are an object."""
    if not prompt.calls:
        return None
    texts = tuple((text, json.dumps({"type": "object"} | dict(schema))) for text, schema in prompt.calls)
    try:
        return Beginning(texts, whole)
    except ValueError as error:
        raise ApiError(str(error), param="tools") from error


def _sampling(
    body: ChatRequest, number: int, calls: bool, beginning: Beginning | None, config: ServeConfig
) -> Sampling:
    if body.top_logprobs and not body.logprobs:
        raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
    temperature = config.default_temperature if body.temperature is None else body.temperature
    try:
        return Sampling(
            max_new_tokens=body.max_completion_tokens or body.max_tokens or config.default_max_tokens,
            temperature=temperature,
            top_k=body.top_k,
            top_p=1.0 if body.top_p is None else body.top_p,
            repetition_penalty=body.repetition_penalty,
            seed=None if body.seed is None else body.seed + number,
            stop=body.stops + (STOP_WORDS if calls else ()),
            logprobs=body.logprobs,
            top_logprobs=body.top_logprobs or 0,
            json_schema=_json_schema(body, calls),
            beginning=beginning,
            stop_on_repetition=body.stop_on_repetition,
        )
    except ValueError as error:
        raise ApiError(str(error)) from error


def _json_schema(body: ChatRequest, calls: bool) -> str | None:
    wanted = body.response_format
    if wanted is None or wanted.type == "text":
        return None
    if calls:
        raise ApiError(
            "response_format cannot go together with tools; set tool_choice to none", param="response_format"
        )
    if wanted.type == "json_object":
        return "{}"
    if wanted.json_schema is None:
        raise ApiError("response_format json_schema needs the field json_schema", param="response_format.json_schema")
    return json.dumps(wanted.json_schema.schema_)
