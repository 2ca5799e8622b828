"""CIDEr-D, BLEU and ROUGE-L against numbers of pycocoevalcap; tokens against Stanford's Java program."""

import csv
import gzip
import hashlib
import io
import json
import math
from pathlib import Path

import pytest

from qvl.evals.metrics.bleu import bleu
from qvl.evals.metrics.cider import cider_d
from qvl.evals.metrics.ptb import ptb_tokens, space_chinese
from qvl.evals.metrics.rouge import longest_common_subsequence, rouge_l

GOLDEN = Path(__file__).parents[1] / "golden" / "caption"
ORACLE = json.loads((GOLDEN / "pycocoevalcap.json").read_text())
CASES = json.loads((GOLDEN / "ptb_cases.json").read_text())


def corpus(name: str) -> tuple[list[str], list[list[str]]]:
    text = gzip.decompress((GOLDEN / f"{name}.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    return [r["caption_predicted"] for r in rows], [[r[f"caption_{k}"] for k in range(1, 6)] for r in rows]


# data.md's figures of the public scorer, to the digits it gives
@pytest.mark.parametrize(
    ("name", "published"),
    [("example_1", 0.401724), pytest.param("example_2", 0.634285, marks=pytest.mark.slow)],
)
def test_scores_equal_pycocoevalcap(name, published):
    candidates, references = corpus(name)
    tokens: dict[str, list[str]] = {}

    def cached(text: str) -> list[str]:
        return tokens.setdefault(text, ptb_tokens(text))

    oracle = ORACLE[name]
    score = cider_d(candidates, references, tokenize=cached)
    assert score.mean == pytest.approx(published, abs=5e-7)
    assert score.mean == pytest.approx(oracle["cider"], abs=1e-13)  # measured: 2e-16
    assert score.each == pytest.approx(oracle["cider_each"], abs=1e-11)  # 5e-13: the oracle's are stored to 12 digits
    assert bleu(candidates, references, tokenize=cached) == pytest.approx(oracle["bleu"], abs=1e-13)
    rouge = rouge_l(candidates, references, tokenize=cached)
    assert rouge.mean == pytest.approx(oracle["rouge_l"], abs=1e-13)
    assert rouge.each == pytest.approx(oracle["rouge_l_each"], abs=1e-11)


@pytest.mark.parametrize("name", ["example_1", "example_2"])
def test_tokens_of_both_corpora_equal_stanfords(name):
    candidates, references = corpus(name)
    lines = [
        " ".join(ptb_tokens(text))
        for candidate, group in zip(candidates, references, strict=True)
        for text in (candidate, *group)
    ]
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == ORACLE[name]["tokens_sha256"]


@pytest.mark.parametrize(("text", "tokens"), CASES["equal"], ids=range(len(CASES["equal"])))
def test_tokens_of_hard_sentences_equal_stanfords(text, tokens):
    assert ptb_tokens(text) == tokens


def test_chinese_is_one_token_unless_spaced():
    assert ptb_tokens("两只猫。") == ["两只猫", "。"]
    assert space_chinese("两只cat。") == "两 只 cat 。"
    assert space_chinese("no Chinese  here") == "no Chinese  here"
    assert cider_d(["一只猫在左边", "狗"], [["一只狗在左边"], ["狗"]]).each[0] == 0  # one unknown token
    spaced = cider_d(
        ["一只猫在左边", "狗"],
        [["一只狗在左边"], ["狗"]],
        tokenize=lambda text: ptb_tokens(space_chinese(text)),
    )
    assert spaced.each[0] > 0


def test_cider_by_hand():
    # Two pictures, captions of one word: only n = 1 can match, 10 * 1 / 4 for a perfect one, 0 for a wrong one.
    assert cider_d(["cat", "tree"], [["cat"], ["dog"]]).each == pytest.approx((2.5, 0.0))
    # A perfect caption of four words scores 10; one of three words has no 4-gram and stops at 7.5.
    perfect = cider_d(["a cat sits here", "one big dog"], [["a cat sits here"], ["one big dog"]])
    assert perfect.each == pytest.approx((10.0, 7.5))
    # A word that every picture has weighs nothing (log 2/2 = 0).
    assert cider_d(["the", "the"], [["the"], ["the"]]).mean == 0


def test_cider_penalises_length_by_bigrams():
    refs = [["red cat"], ["blue dog"]]
    short = cider_d(["red cat", "blue dog"], refs).each[0]
    long = cider_d(["red cat red cat red cat", "blue dog"], refs).each[0]
    # Clipping leaves n=1 cosine 1/3, n=2: (1 * 1) / (norm of {red cat: 3, cat red: 2}); the penalty is exp(-16/72).
    idf_pair, idf_new = math.log(2), math.log(2)
    cosine_2 = idf_pair**2 / (math.hypot(3 * idf_pair, 2 * idf_new) * idf_pair)
    assert short == pytest.approx(5.0)
    assert long == pytest.approx(10 / 4 * (1 / 3 + cosine_2) * math.exp(-16 / 72))


def test_corpus_mistakes_are_named():
    with pytest.raises(ValueError, match="2 captions but 1 groups"):
        cider_d(["a", "b"], [["a"]])
    with pytest.raises(ValueError, match="got none"):
        bleu([], [])
    with pytest.raises(ValueError, match="picture 1 needs a non-empty list"):
        rouge_l(["a", "b"], [["a"], []])
    with pytest.raises(ValueError, match="picture 0 needs a non-empty list"):
        cider_d(["a"], ["a"])


def test_longest_common_subsequence_allows_gaps():
    assert longest_common_subsequence(list("abcde"), list("axcye")) == 3
    assert longest_common_subsequence([], ["a"]) == 0


def test_empty_caption_scores_zero():
    assert cider_d(["", "a dog"], [["a cat"], ["a dog"]]).each[0] == 0
    assert rouge_l(["", "a dog"], [["a cat"], ["a dog"]]).each == pytest.approx((0.0, 1.0))
