"""What a request's keys and values depend on: its tokens, where they stand, and what its pictures show.

Knows: token ids, rotary positions, pixels, and digests of them. Does not know: who keeps what, models, text.

The key of page i is a hash over the key of page i - 1, the page's token ids and rotary positions, and for every row
that a picture fills, which row of which pixels it is. The ids under a picture do not count (in Qwen-VL they spell the
path of the file, and vision tokens overwrite them). Prompts whose pages have equal keys compute equal keys and values,
whether their tokens were given or generated.
"""

from __future__ import annotations

import hashlib
from typing import final

import numpy as np
from numpy.typing import NDArray

from qvl.engine.scheduler import Look
from qvl.inputs.sequence import Sequence
from qvl.media.load import Visual


@final
class Content:
    """The tokens of one request. They only ever grow, by what is generated."""

    def __init__(self, prompt: Sequence, looks: tuple[Look, ...], page_tokens: int, salt: bytes = b"") -> None:
        """`salt`: whatever else the keys and values depend on."""
        self._tokens_T: NDArray[np.int64] = prompt.tokens_T.copy()
        self._tokens_T[prompt.vision_rows_M] = 0
        self._positions_RT = prompt.positions_RT
        self._next_position = prompt.next_position
        self._looks = looks
        self._size = page_tokens
        self._salt = salt
        self._keys: list[bytes] = []
        self.generated: list[int] = []

    def rows(self, begin: int, end: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Ids [n] and positions [R, n] of tokens `begin` to `end`; ids under pictures are 0.

        Generated tokens stand one after the other on all axes, from the prompt's next position.
        """
        prompt = len(self._tokens_T)
        tokens_T, positions_RT = self._tokens_T[begin:end], self._positions_RT[:, begin:end]
        if end > prompt:
            first = max(begin, prompt) - prompt
            new_T = np.array(self.generated[first : end - prompt], np.int64)
            assert len(new_T) == end - prompt - first, f"token {end - 1} is not known yet"
            places_T = self._next_position + first + np.arange(len(new_T))
            tokens_T = np.concatenate((tokens_T, new_T))
            positions_RT = np.concatenate(
                (positions_RT, np.broadcast_to(places_T, (len(positions_RT), len(new_T)))), axis=1
            )
        return tokens_T, positions_RT

    def page_key(self, page: int) -> bytes:
        """The key of page `page`, all of whose tokens must be known."""
        while len(self._keys) <= page:
            self._keys.append(self._compute_key(len(self._keys)))
        return self._keys[page]

    def _compute_key(self, page: int) -> bytes:
        begin, end = page * self._size, (page + 1) * self._size
        made = hashlib.blake2b(self._keys[-1] if self._keys else self._salt, digest_size=16)
        for rows in self.rows(begin, end):
            made.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes())
        for look in self._looks:
            if look.row < end and look.row + look.rows > begin:
                made.update(look.digest + (begin - look.row).to_bytes(8, "little", signed=True))
        return made.digest()


def looks_of(prompt: Sequence) -> tuple[Look, ...]:
    """The pictures of a prompt and the moments of its clips, in reading order.

    A clip of 4 moments is 4 looks: each attends to itself only, so they can be seen one by one.

    Raises:
        ValueError: a picture that is told in words; there is nothing to see.
    """
    looks: list[Look] = []
    at = 0
    for visual, tokens in zip(prompt.visuals, _vision_tokens(prompt), strict=True):
        moments, height, width = visual.grid
        for digest in _digests(visual):
            looks.append(Look(digest, int(prompt.vision_rows_M[at]), tokens // moments, height * width))
            at += tokens // moments
    return tuple(looks)


def _vision_tokens(prompt: Sequence) -> list[int]:
    """Vision tokens of each picture or clip: between two of them there is always a token of text."""
    breaks = np.flatnonzero(np.diff(prompt.vision_rows_M) != 1) + 1
    lens = [len(run) for run in np.split(prompt.vision_rows_M, breaks) if len(run)]
    if len(lens) != len(prompt.visuals):
        raise ValueError(
            f"{len(lens)} pictures have places in the prompt but {len(prompt.visuals)} have pixels: pictures told in "
            "words are for training only"
        )
    return lens


def _digests(visual: Visual) -> list[bytes]:
    """One per moment: of the pixels as the model sees them and their shape."""
    moments, height, width = visual.grid
    shape = np.array([height, width], np.int64).tobytes()
    made = []
    for patches_PC in visual.patches_PC.contiguous().numpy().reshape(moments, height * width, -1):
        digest = hashlib.sha256(patches_PC.data)
        digest.update(shape)
        made.append(digest.digest())
    return made
