"""One request on its way: from messages to a prompt, from tokens to a `Reply`.

Knows: the prompt, what was generated so far, when it is finished. Does not know: models, caches, other requests.
"""

from __future__ import annotations

import time
from typing import Literal, final

from qvl.engine.api import Reply, Request, Usage
from qvl.engine.boxes import find_boxes, scene_of
from qvl.engine.reply_text import ReplyText
from qvl.engine.sampler import Sampler
from qvl.inputs.processor import Processor
from qvl.inputs.sequence import Sequence
from qvl.text.grounding import Coordinates
from qvl.text.messages import parse_messages


@final
class Answer:
    """A prepared request. `sequence` holds the pictures' patches and is let go once they have been seen."""

    def __init__(self, key: int, request: Request, processor: Processor, max_positions: int) -> None:
        """
        Raises:
            ValueError, FileNotFoundError: what the processor refuses; a prompt that leaves no room for the reply.
        """
        messages = parse_messages(request.messages)
        self.key = key
        self.sampling = request.sampling
        chat = processor.chat(request.chat_format)
        prompt = processor.sequence(messages, generation_prompt=True, chat_format=request.chat_format)
        self.sequence: Sequence | None = prompt
        self.prompt_tokens = len(prompt.tokens_T)
        _check_room(prompt, self.sampling.max_new_tokens, max_positions)
        self.sampler = Sampler(self.sampling, prompt.tokens_T.tolist())
        self.text = ReplyText(processor.tokenizer.stream(), self.sampling.stop)
        self.ms = _media_ms(prompt)
        self.started = 0.0
        self._stop_ids = chat.stop_ids
        self._next_position = prompt.next_position
        self._vision_tokens = len(prompt.vision_rows_M)
        self._resized_to = tuple(v.resized_hw for v in prompt.visuals)
        coordinates = [Coordinates(v.original_hw, v.resized_hw) for v in prompt.visuals]
        self._scene = scene_of(messages, coordinates, processor.tokenizer.family.markup)
        self._ids: list[int] = []
        self._logprobs: list[float] = []
        self.finish: Literal["stop", "length"] | None = None
        """Why it ended; None while it goes on."""

    @property
    def last_token(self) -> tuple[int, int]:
        """The newest token and its rotary position: the prompt's next position, then one more each."""
        return self._ids[-1], self._next_position + len(self._ids) - 1

    def push(self, token_id: int, logprob: float) -> str:
        """Takes the next token; returns the text it makes certain and decides whether the reply ends here."""
        self._ids.append(token_id)
        self._logprobs.append(logprob)
        if token_id in self._stop_ids:
            self.finish = "stop"
            return self.text.close()
        piece = self.text.push(token_id)
        if self.text.stopped:
            self.finish = "stop"
        elif len(self._ids) == self.sampling.max_new_tokens:
            self.finish = "length"
            piece += self.text.close()
            if self.text.stopped:
                self.finish = "stop"
        return piece

    def reply(self) -> Reply:
        assert self.finish is not None, "the reply is not finished"
        text = self.text.text
        return Reply(
            text=text,
            token_ids=tuple(self._ids),
            finish_reason=self.finish,
            boxes=find_boxes(text, self._scene),
            usage=Usage(
                prompt_tokens=self.prompt_tokens,
                vision_tokens=self._vision_tokens,
                completion_tokens=len(self._ids),
                resized_to=self._resized_to,
                milliseconds=self.ms | {"generate": 1000 * (time.perf_counter() - self.started)},
            ),
            logprobs=tuple(self._logprobs),
        )


def _check_room(prompt: Sequence, max_new_tokens: int, max_positions: int) -> None:
    tokens, vision = len(prompt.tokens_T), len(prompt.vision_rows_M)
    if tokens == 0:
        raise ValueError("the prompt is empty: there is nothing to go on from")
    if tokens + max_new_tokens > max_positions:
        seen = f" ({vision} of them pictures: a smaller max_pixels makes them fewer)" if vision else ""
        raise ValueError(
            f"the prompt has {tokens} tokens{seen} and max_new_tokens is {max_new_tokens}: together "
            f"{tokens + max_new_tokens}, but the model's context is {max_positions}; shorten one of the two"
        )


def _media_ms(prompt: Sequence) -> dict[str, float]:
    """decode: opening files; resize: everything else that happens to pixels."""
    decode = sum(v.ms.get("decode", 0.0) for v in prompt.visuals)
    return {"decode": decode, "resize": sum(sum(v.ms.values()) for v in prompt.visuals) - decode}
