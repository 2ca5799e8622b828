from __future__ import annotations

from collections.abc import Iterator

import pytest

from qvl.data import loader


@pytest.fixture(scope="session", autouse=True)
def forked_workers() -> Iterator[None]:
    """However much memory the tests before have left in this process, data workers begin in the same way."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_SMALL", 1 << 40)
        yield
