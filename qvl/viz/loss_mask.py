"""What is learned: the tokens of a sequence, coloured by whether they are supervised.

Knows: token ids, labels. Does not know: chat formats. Look at ten samples with this before the first step: a wrong
mask trains without any error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from qvl.viz.svg import escape

if TYPE_CHECKING:
    from qvl.batch import Batch


@dataclass(frozen=True)
class Piece:
    """A run of tokens of one kind."""

    text: str
    tokens: int
    supervised: bool
    vision: bool = False


def mask_pieces(batch: Batch, sequence: int, decode: Callable[[Sequence[int]], str]) -> list[Piece]:
    """The sequence's tokens in runs: supervised, not supervised, vision.

    A token is supervised when the row *before* it has it as label (`Batch.labels_T` is shifted); the first token of a
    sequence never is.

    Args:
        decode: ids -> text, special tokens shown.

    Raises:
        ValueError: no labels in the batch, or no such sequence.
    """
    if batch.labels_T is None:
        raise ValueError("this batch has no labels; make it with labels=True to see what is supervised")
    if not 0 <= sequence < len(batch.seq_lens):
        raise ValueError(f"there is no sequence {sequence}: the batch has {len(batch.seq_lens)}")
    start, end = batch.seq_offsets[sequence : sequence + 2]
    ids = batch.tokens_T[start:end].tolist()
    labels = batch.labels_T[start:end].tolist()
    vision = set(batch.vision_rows_M.tolist())
    kinds = [
        (i > 0 and labels[i - 1] == token, start + i in vision) for i, token in enumerate(ids)
    ]  # a label is never a placeholder's id, and IGNORE is negative, so equality says "supervised"
    pieces: list[Piece] = []
    at = 0
    for i in range(1, len(ids) + 1):
        if i == len(ids) or kinds[i] != kinds[at]:
            supervised, seen = kinds[at]
            text = f"[{i - at} vision tokens]" if seen else decode(ids[at:i])
            pieces.append(Piece(text, i - at, supervised, seen))
            at = i
    return pieces


def mask_text(pieces: Sequence[Piece]) -> Text:
    """For a terminal: supervised green and bold, the rest dim, vision blue."""
    text = Text()
    for piece in pieces:
        text.append(piece.text, "blue" if piece.vision else "bold green" if piece.supervised else "dim")
    return text


def mask_html(pieces: Sequence[Piece]) -> str:
    """A `<pre>`: supervised runs are `<mark>`, vision runs `<i>`; every run tells its number of tokens."""
    runs = []
    for piece in pieces:
        tag = "i" if piece.vision else "mark" if piece.supervised else "span"
        what = "supervised" if piece.supervised else "vision" if piece.vision else "not supervised"
        runs.append(f'<{tag} title="{piece.tokens} tokens, {what}">{escape(piece.text)}</{tag}>')
    return f'<pre class="mask">{"".join(runs)}</pre>'
