"""Functions as tools, and the loop that runs them: a worked example with pictures in results."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np
import pytest

from qvl.engine.api import Reply, Request, Usage
from qvl.text.messages import Image, Text, parse_messages
from qvl.text.tools import ToolSpec
from qvl.tools import Picture, Tool, run_tools, tool

PICTURE = np.arange(40 * 60 * 3, dtype=np.uint32).reshape(40, 60, 3).astype(np.uint8)


class Script:
    """A model that says these things one after the other."""

    def __init__(self, *says: str) -> None:
        self.says = list(says)
        self.saw: list[Request] = []

    def generate(self, requests: list[Request]) -> list[Reply]:
        self.saw += requests
        return [Reply(self.says.pop(0), (), "stop", (), Usage(1, 0, 1)) for _ in requests]


def crop(x1: Annotated[int, "left edge, pixels"], y1: int, x2: int, y2: int, zoom: Literal[1, 2] | None = None) -> Any:
    """Cuts a part
    out of the picture.

    The rest of the docstring is for people.
    """
    if x2 <= x1 or y2 <= y1:
        raise ValueError("the part is empty")
    return "here it is", Picture(PICTURE[y1:y2, x1:x2])


def asked() -> list[dict]:
    return [
        {"role": "user", "content": [{"type": "image", "image": PICTURE}, {"type": "text", "text": "Read the sign."}]}
    ]


def test_a_signature_becomes_a_schema():
    spec = tool(crop).spec
    assert (spec.name, spec.description) == ("crop", "Cuts a part out of the picture.")
    properties = spec.parameters["properties"]
    assert properties["x1"] == {"type": "integer", "description": "left edge, pixels"}
    assert properties["zoom"] == {"enum": [1, 2]}
    assert spec.parameters["required"] == ["x1", "y1", "x2", "y2"]

    def names(words: list[str], table: dict, share: float, loud: bool = False) -> None: ...

    assert tool(names).spec.parameters["properties"] == {
        "words": {"type": "array", "items": {"type": "string"}},
        "table": {"type": "object"},
        "share": {"type": "number"},
        "loud": {"type": "boolean"},
    }


def test_the_model_looks_closer_and_answers():
    model = Script(
        'Too small.\n✿FUNCTION✿: crop\n✿ARGS✿: {"x1": 10, "y1": 5, "x2": 30, "y2": 25}\n',
        ": It says <exit>.",
    )
    talk = run_tools(model, asked(), [tool(crop)])
    assert talk.text == "It says <exit>."
    assert [m["role"] for m in talk.messages] == ["user", "assistant", "tool", "assistant"]
    assert len(talk.replies) == 2
    first, second = (parse_messages(request.messages) for request in model.saw)
    assert "crop: Cuts a part out of the picture. Parameters: {" in first[0].parts[1].text
    assert set(model.saw[0].sampling.stop) == {"✿RESULT✿", "✿RETURN✿"}
    words = "".join(p.text if isinstance(p, Text) else "<picture>" for p in second[-1].parts)
    assert words == (
        'Too small.\n✿FUNCTION✿: crop\n✿ARGS✿: {"x1": 10, "y1": 5, "x2": 30, "y2": 25}'
        "\n✿RESULT✿: here it is<picture>\n✿RETURN✿"
    )
    shown = next(p for p in second[-1].parts if isinstance(p, Image))
    assert shown.source.shape == (20, 20, 3)
    assert second[-1].partial


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("paint\n✿ARGS✿: {}", "error: there is no tool 'paint'; there are: crop"),
        ('crop\n✿ARGS✿: {"x1": 1', "error: the arguments are not JSON"),
        ("crop\n✿ARGS✿: [1]", "error: the arguments must be a JSON object"),
        ('crop\n✿ARGS✿: {"x1": ' + "[" * 100_000, "error: the arguments are not JSON"),
        (
            'crop\n✿ARGS✿: {"x1": 1, "y1": 1, "x2": 2, "z": 0}',
            "error: unknown arguments ['z'], missing arguments ['y2']",
        ),
        (
            'crop\n✿ARGS✿: {"x1": "9", "y1": 9, "x2": 10, "y2": 10}',
            'error: argument x1 must be "integer", got "9"',
        ),
        (
            'crop\n✿ARGS✿: {"x1": 9, "y1": 9, "x2": 10, "y2": 10, "zoom": 3}',
            "error: argument zoom must be [1, 2], got 3",
        ),
        ('crop\n✿ARGS✿: {"x1": 9, "y1": 9, "x2": 10, "y2": 10, "zoom": null}', "here it is"),
        ('crop\n✿ARGS✿: {"x1": 9, "y1": 9, "x2": 1, "y2": 1}', "error: the part is empty"),
    ],
)
def test_the_model_is_told_what_went_wrong(call, told):
    talk = run_tools(Script(f"✿FUNCTION✿: {call}", ": never mind"), asked(), [tool(crop)])
    assert talk.messages[2]["content"][0]["text"].startswith(told)
    assert talk.text == "never mind"


def test_a_schema_that_names_no_arguments_takes_any():
    anything = Tool(ToolSpec("say", parameters={"type": "object"}), lambda **given: sorted(given))
    talk = run_tools(Script('✿FUNCTION✿: say\n✿ARGS✿: {"a": 1, "b": null}', "ok"), asked(), [anything])
    assert talk.messages[2]["content"][0]["text"] == '["a", "b"]'


def test_results_are_json_unless_they_are_text():
    def size() -> dict:
        return {"width": 60, "图": True}

    talk = run_tools(Script("✿FUNCTION✿: size\n✿ARGS✿: {}", "ok"), asked(), [tool(size)])
    assert talk.messages[2]["content"] == [{"type": "text", "text": '{"width": 60, "图": true}'}]


def test_it_does_not_go_on_for_ever():
    with pytest.raises(ValueError, match="still calls tools after 3 replies"):
        run_tools(Script(*["✿FUNCTION✿: crop\n✿ARGS✿: {}"] * 9), asked(), [tool(crop)], max_rounds=3)


def test_only_types_that_json_knows():
    def bad(x: complex) -> None: ...

    def untyped(x): ...

    def many(*x: int) -> None: ...

    for function, message in [(bad, "JSON does not know"), (untyped, "has no type"), (many, "cannot be given by name")]:
        with pytest.raises(ValueError, match=message):
            tool(function)
