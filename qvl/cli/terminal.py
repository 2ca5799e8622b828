"""Pictures inside a terminal, where the terminal can show them.

Knows: the escape sequences of kitty (also Ghostty, WezTerm, Konsole) and of iTerm2. Does not know: what is drawn.
"""

from __future__ import annotations

import base64
from typing import Literal

Protocol = Literal["kitty", "iterm"]
_CHUNK = 4096


def picture_escape(png: bytes, protocol: Protocol) -> str:
    """The sequence that shows an encoded PNG where the cursor stands.

    Sources: the terminal graphics protocol of kitty (payload in chunks of 4096, m=1 while more follow), the inline
    images protocol of iTerm2.
    """
    payload = base64.b64encode(png).decode()
    if protocol == "iterm":
        return f"\x1b]1337;File=inline=1;size={len(png)};preserveAspectRatio=1:{payload}\x07"
    chunks = [payload[at : at + _CHUNK] for at in range(0, len(payload), _CHUNK)]
    first = "a=T,f=100,"
    return "".join(
        f"\x1b_G{first if i == 0 else ''}m={int(i < len(chunks) - 1)};{chunk}\x1b\\" for i, chunk in enumerate(chunks)
    )
