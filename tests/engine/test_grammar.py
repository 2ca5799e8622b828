"""Replies that have to be JSON: whatever a random model would like to say, it comes out as what the schema allows."""

from __future__ import annotations

import json

import pytest
from tiny_vlm import picture, user

from qvl.engine.api import Beginning, Request, Sampling
from qvl.engine.grammar import Grammars
from qvl.text.tokenizer import Tokenizer

PLACE = {"type": "integer", "minimum": 0, "maximum": 999}
SCHEMA = {
    "type": "object",
    "properties": {
        "colour": {"enum": ["red", "blue", "红色"]},
        "count": {"type": "integer", "minimum": 0, "maximum": 20},
        "box": {"type": "array", "items": PLACE, "minItems": 4, "maxItems": 4},
    },
    "required": ["colour", "count", "box"],
    "additionalProperties": False,
}


def check(text: str) -> None:
    data = json.loads(text)
    assert set(data) == {"colour", "count", "box"}
    assert data["colour"] in ("red", "blue", "红色")
    assert 0 <= data["count"] <= 20
    assert len(data["box"]) == 4
    assert all(0 <= x <= 999 for x in data["box"])


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_replies_fit_the_schema_alone_and_among_others(vlm, temperature):
    options = {"json_schema": SCHEMA, "max_new_tokens": 150, "temperature": temperature, "seed": 3}
    messages = user(picture(60, 60), "which?")
    alone = vlm.chat(messages, **options)
    check(alone.text)
    assert alone.finish_reason == "stop"
    free = Request(user("free"), Sampling(max_new_tokens=30))
    sampling = Sampling(150, temperature, seed=3, json_schema=json.dumps(SCHEMA))
    together = vlm.engine.generate([free, Request(messages, sampling), free])
    assert together[1].token_ids == alone.token_ids
    assert together[0].token_ids == vlm.engine.generate([free])[0].token_ids
    assert "".join(vlm.stream(messages, **options)) == alone.text


def test_an_empty_schema_means_any_object(vlm):
    reply = vlm.chat(user("x"), json_schema={}, max_new_tokens=300, temperature=1.0, seed=1)
    assert reply.text.startswith("{")
    if reply.finish_reason == "stop":
        assert isinstance(json.loads(reply.text), dict)


def test_what_cannot_be_followed_is_refused_before_anything_is_computed(vlm):
    with pytest.raises(ValueError, match=r"json_schema cannot be followed: .*banana"):
        vlm.chat(user("x"), json_schema={"type": "banana"})


@pytest.mark.parametrize("schema", [{"$ref": "#"}, {"const": "\ud800"}])
def test_what_allows_nothing_is_refused_too(vlm, schema):
    with pytest.raises(ValueError, match=r"^json_schema cannot be followed: [^\n]*$"):
        vlm.chat(user("x"), json_schema=schema)


def test_a_schema_that_grows_too_large_is_no_whole_reply(vlm):
    wide = {"type": "object", "properties": {f"k{i}": {"type": "null"} for i in range(550)}}
    with pytest.raises(ValueError, match=r"^json_schema can be followed no further: [^\n]*$"):
        vlm.chat(user("x"), json_schema=wide)


CROP = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"], "additionalProperties": False}
CALLS = ((" crop\n✿ARGS✿: ", json.dumps(CROP)), (" 读\n✿ARGS✿: ", '{"type": "object", "maxProperties": 0}'))


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_reply_begins_with_given_words_and_what_fits_behind_them(vlm, whole, seed):
    sampling = Sampling(80, 1.5, seed=seed, beginning=Beginning(CALLS, whole))
    reply = vlm.engine.generate([Request(user("x"), sampling)])[0]
    text, schema = next(call for call in CALLS if reply.text.startswith(call[0]))
    said, end = json.JSONDecoder().raw_decode(reply.text[len(text) :])
    assert set(said) == set(json.loads(schema).get("required", ()))
    rest = reply.text[len(text) + end :]
    assert (rest == "") == whole
    assert not whole or reply.finish_reason == "stop"


def test_what_a_beginning_may_not_be(vlm):
    with pytest.raises(ValueError, match="one of no texts"):
        Beginning(())
    with pytest.raises(ValueError, match="cannot go together with beginning"):
        Sampling(json_schema="{}", beginning=Beginning(CALLS))
    with pytest.raises(ValueError, match=r"^the schema of a call cannot be followed: [^\n]*banana$"):
        vlm.engine.generate([Request(user("x"), Sampling(beginning=Beginning(((" ", '{"type": "banana"}'),))))])
    # What is not implemented is left to the model: the tool's own check has the last word.
    unique = Beginning(((" ", '{"type": "object", "minProperties": 0, "if": {}, "then": {}}'),), whole=True)
    vlm.engine.generate([Request(user("x"), Sampling(20, beginning=unique))])


def walk(tokenizer: Tokenizer, text: str, stop: str) -> None:
    """Every token of a fitting text is allowed where it stands, and the end only behind it."""
    stops = (tokenizer.special(stop), tokenizer.special("<|endoftext|>"))
    grammar = Grammars(tokenizer).json(json.dumps(SCHEMA), stops)
    size = tokenizer.vocab_size + 100
    for token in tokenizer.encode(text):
        allowed = grammar.allowed(size)
        assert bool(allowed[token]), (text, tokenizer.token_bytes(token))
        assert not bool(allowed[tokenizer.vocab_size :].any()), "rows beyond the vocabulary"
        assert not bool(allowed[list(tokenizer.specials.values())].any()), "marks and ends inside the text"
        assert not grammar.complete
        grammar.push(token)
    assert grammar.complete
    assert sorted(grammar.allowed(size).nonzero()[:, 0].tolist()) == sorted(stops)


TEXTS = [
    '{"colour": "红色", "count": 7, "box": [1, 22, 333, 999]}',
    '{"colour":"red","count":20,"box":[0,0,0,0]}',
    '{\n  "colour": "blue",\n  "count": 0,\n  "box": [\n    1,\n    2,\n    3,\n    4\n  ]\n}',
]


@pytest.mark.parametrize("text", TEXTS)
def test_the_reduced_vocabulary_is_followed(tokenizer, text):
    walk(tokenizer, text, "<|im_end|>")


@pytest.mark.slow
@pytest.mark.parametrize("whole", [Tokenizer.qwen2_vl, Tokenizer.qwen_vl])
def test_the_full_vocabularies_are_followed(whole):
    tokenizer = whole()
    for text in TEXTS:
        walk(tokenizer, text, "<|im_end|>")
