"""Replies in OpenAI's shapes, whole and in pieces.

Knows: chunks, completions, usage, logprobs, and our extra fields (`boxes`, `stop_reason`, details of `usage`), which
ordinary clients ignore. Does not know: HTTP, engines.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any, final

from qvl.engine.api import Delta, Reply, TokenLogprob
from qvl.serve.conversation import Question
from qvl.text.tool_calls import CallBegins, CallReader, Piece, Said


@final
class Choice:
    """One choice in the making: gives out its deltas, and keeps the message they add up to."""

    def __init__(self, index: int, question: Question) -> None:
        self._index = index
        self._reader = CallReader(question.opening, max_calls=question.max_calls, may_call=question.tools)
        self._taken = ""
        self._message: dict[str, Any] = {"role": "assistant", "content": None}
        self.reply: Reply | None = None
        self.finish_reason = ""

    def push(self, item: Delta) -> list[dict[str, Any]]:
        """Choices of chunks: `{"index", "delta", "logprobs", "finish_reason"}`."""
        self._taken += item.text
        chunks = [self._chunk(delta) for delta in self._deltas(item.text)]
        if item.logprobs:
            chunks = chunks or [self._chunk({})]
            chunks[0]["logprobs"] = _logprobs(item.logprobs)
        return chunks

    def finish(self, reply: Reply, why_cancelled: str) -> list[dict[str, Any]]:
        """The last chunks; the very last has the reason, the boxes and where they lie."""
        self.reply = reply
        deltas = self._deltas(reply.text.removeprefix(self._taken) if reply.text != self._taken else "", last=True)
        boxes = [{"label": box.label, "xyxy": list(box.xyxy), "image": box.image} for box in reply.boxes]
        self._message["boxes"] = boxes
        self.finish_reason = _finish_reason(reply, "tool_calls" in self._message)
        end = self._chunk({"boxes": boxes}) | {"finish_reason": self.finish_reason}
        end["stop_reason"] = why_cancelled if reply.finish_reason == "cancelled" else reply.finish_reason
        return [*(self._chunk(delta) for delta in deltas), end]

    def whole(self, why_cancelled: str) -> dict[str, Any]:
        """The choice of a completion that is not streamed."""
        assert self.reply is not None, "the choice is not finished"
        if self._message["content"] is None and "tool_calls" not in self._message:
            self._message["content"] = ""
        cancelled = self.reply.finish_reason == "cancelled"
        return {
            "index": self._index,
            "message": self._message | {"refusal": None},
            "logprobs": _logprobs(self.reply.token_logprobs) if self.reply.token_logprobs else None,
            "finish_reason": self.finish_reason,
            "stop_reason": why_cancelled if cancelled else self.reply.finish_reason,
        }

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None}

    def _deltas(self, text: str, last: bool = False) -> list[dict[str, Any]]:
        pieces = self._reader.push(text) + (self._reader.close() if last else [])
        return [self._delta(piece) for piece in pieces]

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if isinstance(piece, Said):
            self._message["content"] = (self._message["content"] or "") + piece.text
            return {"content": piece.text}
        calls = self._message.setdefault("tool_calls", [])
        if isinstance(piece, CallBegins):
            begun = {"id": f"call_{secrets.token_hex(12)}", "type": "function"}
            calls.append(begun | {"function": {"name": piece.name, "arguments": ""}})
            return {"tool_calls": [{"index": piece.index, **begun, "function": {"name": piece.name, "arguments": ""}}]}
        calls[piece.index]["function"]["arguments"] += piece.text
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}


def _finish_reason(reply: Reply, called: bool) -> str:
    """OpenAI knows no word for a reply that was stopped because it went round in circles or out of time: it is cut."""
    if reply.finish_reason == "stop":
        return "tool_calls" if called else "stop"
    return "length"


def _logprobs(tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    return {"content": [_logprob(token) for token in tokens], "refusal": None}


def _logprob(token: TokenLogprob) -> dict[str, Any]:
    def entry(data: bytes, logprob: float) -> dict[str, Any]:
        return {"token": data.decode("utf-8", "replace"), "bytes": list(data), "logprob": max(logprob, -9999.0)}

    top = [entry(data, logprob) for _, data, logprob in token.top]
    return entry(token.data, token.logprob) | {"top_logprobs": top}


@final
class Envelope:
    """What all chunks of one answer have in common."""

    def __init__(self, model: str) -> None:
        self._common = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}

    def chunk(self, choices: list[dict[str, Any]], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        chunk = {**self._common, "object": "chat.completion.chunk", "choices": choices}
        return chunk if usage is None else chunk | {"usage": usage}

    def completion(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._common, "object": "chat.completion", "choices": choices, "usage": usage}


def usage_of(replies: Sequence[Reply]) -> dict[str, Any]:
    """OpenAI's counts (the prompt once, completions added up) and ours: vision tokens, sizes, hits, milliseconds.

    Of phases that several choices went through, the longest counts.
    """
    first = replies[0].usage
    completion = sum(reply.usage.completion_tokens for reply in replies)
    phases = {phase for reply in replies for phase in reply.usage.milliseconds}
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": first.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "vision_tokens": first.vision_tokens,
        "resized_to": [list(hw) for hw in first.resized_to],
        "cache_hits": first.cache_hits,
        "milliseconds": {
            phase: round(max(reply.usage.milliseconds.get(phase, 0.0) for reply in replies), 3)
            for phase in sorted(phases)
        },
    }
