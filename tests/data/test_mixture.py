"""Two sources as one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest

from qvl.data.mixture import Mixture
from qvl.data.records import Sample


@dataclass(frozen=True)
class Named:
    name: str
    tasks: tuple[str, ...]

    def __getitem__(self, index: int) -> Sample:
        return Sample(f"{self.name}/{index}", self.tasks[0], ())


@pytest.mark.parametrize(("share", "of", "second"), [(0.25, 400, 100), (1 / 3, 300, 100), (0.3, 1000, 300), (0, 9, 0)])
def test_a_share_comes_from_the_second(share: float, of: int, second: int) -> None:
    mixture = Mixture(Named("a", ("x", "y")), Named("b", ("y", "z")), share)
    names = [mixture[i].name for i in range(of)]
    assert mixture.tasks == ("x", "y", "z")
    assert [n for n in names if n.startswith("b")] == [f"b/{i}" for i in range(second)]
    assert [n for n in names if n.startswith("a")] == [f"a/{i}" for i in range(of - second)]
    if second:
        gaps = [len(list(run)) for of_b, run in itertools.groupby(names, lambda n: n.startswith("b")) if not of_b]
        assert max(gaps) <= -(-of // second), "evenly mixed"


def test_nothing_but_the_second() -> None:
    assert [Mixture(Named("a", ("x",)), Named("b", ("y",)), 1.0)[i].name for i in range(3)] == ["b/0", "b/1", "b/2"]
