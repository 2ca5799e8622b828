"""Generated ids -> text that may be shown, piece by piece.

Knows: stop strings, and that a piece once shown cannot be taken back. Does not know: models, stop ids.
"""

from __future__ import annotations

from typing import final

from qvl.text.tokenizer import StreamDecoder


@final
class ReplyText:
    """Text of one reply. Holds back what might still turn out to be the beginning of a stop string."""

    def __init__(self, decoder: StreamDecoder, stop: tuple[str, ...] = ()) -> None:
        self._decoder = decoder
        self._stop = stop
        self._held = ""
        self._shown: list[str] = []
        self.stopped = False
        """A stop string was met; it and everything after it is left out."""

    @property
    def text(self) -> str:
        """Everything shown so far."""
        return "".join(self._shown)

    def push(self, token_id: int) -> str:
        """Text that this id makes certain."""
        return self._show(self._decoder.push(token_id))

    def close(self) -> str:
        """What was held back: no more ids come."""
        piece = self._show(self._decoder.flush())
        if not self.stopped and self._held:
            piece += self._held
            self._shown.append(self._held)
            self._held = ""
        return piece

    def _show(self, new: str) -> str:
        if self.stopped or not new:
            return ""
        text = self._held + new
        met = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if met:
            piece, self._held, self.stopped = text[: min(met)], "", True
        else:
            keep = max((_overlap(text, stop) for stop in self._stop), default=0)
            piece, self._held = text[: len(text) - keep], text[len(text) - keep :]
        if piece:
            self._shown.append(piece)
        return piece


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that is a beginning of `stop`: ("say <|", "<|end|>") -> 2."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
