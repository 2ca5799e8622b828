from __future__ import annotations

import pytest
import torch

from qvl.engine.api import Sampling
from qvl.engine.sampler import Sampler, choose_tokens, keep_likely, penalise

LOGITS = torch.tensor([2.0, 1.0, 0.0, -1.0, -2.0])


def _kept(logits_V: torch.Tensor) -> list[int]:
    return logits_V.isfinite().nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"),
    [
        (0, 1.0, [0, 1, 2, 3, 4]),
        (2, 1.0, [0, 1]),
        (9, 1.0, [0, 1, 2, 3, 4]),
        (0, 0.5, [0]),  # softmax: .636 .234 .086 .032 .012
        (0, 0.64, [0, 1]),
        (0, 0.9, [0, 1, 2]),
        (2, 0.72, [0]),  # after top-k: .731 .269
        (2, 0.74, [0, 1]),
    ],
)
def test_only_likely_tokens_are_kept(top_k, top_p, kept):
    assert _kept(keep_likely(LOGITS, top_k, top_p)) == kept
    assert _kept(keep_likely(LOGITS.flip(0), top_k, top_p)) == [4 - i for i in reversed(kept)]


def test_penalty_lowers_seen_tokens_on_both_sides_of_zero():
    assert penalise(LOGITS, {0, 4}, 2.0).tolist() == [1.0, 1.0, 0.0, -1.0, -4.0]


def test_draws_follow_the_distribution_at_its_temperature():
    sampler = Sampler(Sampling(temperature=2.0, seed=0), [])
    counts = torch.bincount(torch.tensor([sampler.choose(LOGITS) for _ in range(4000)]), minlength=5) / 4000
    # 4000 draws: standard deviation below 0.008 each; worst seen 0.010
    torch.testing.assert_close(counts, (LOGITS / 2).softmax(-1), atol=0.03, rtol=0)


def test_a_seed_decides_and_neighbours_do_not():
    def draw(others: int) -> list[int]:
        samplers = [Sampler(Sampling(temperature=1.0, seed=7), [])]
        samplers += [Sampler(Sampling(temperature=1.0, seed=i), []) for i in range(others)]
        return [choose_tokens(LOGITS.expand(1 + others, -1), samplers)[0].token_id for _ in range(20)]

    assert draw(0) == draw(3)
    assert len(set(draw(0))) > 1


@pytest.mark.parametrize("temperature", [5e-324, 1e-40, 1e-12])
def test_the_smallest_temperatures_are_greedy(temperature):
    samplers = [Sampler(Sampling(temperature=temperature, seed=0), []) for _ in range(2)]
    choices = choose_tokens(torch.stack([LOGITS, LOGITS.flip(0)]), samplers)
    assert [choice.token_id for choice in choices] == [0, 4]


def test_seeds_differ_and_none_means_another_each_time():
    def draw(seed: int | None) -> list[int]:
        sampler = Sampler(Sampling(temperature=2.0, seed=seed), [])
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_repetition_penalty_counts_prompt_and_reply():
    sampling = Sampling(repetition_penalty=4.0)
    sampler = Sampler(sampling, [0])
    picked = [choose_tokens(LOGITS[None] + 1, [sampler])[0].token_id for _ in range(3)]  # 3 2 1 0 -1
    assert picked == [1, 2, 0]  # 3/4 < 2;  then 2/4 < 1;  then 1/4, so 3/4 is largest


def test_logprobs_are_those_of_the_model_itself():
    sampler = Sampler(Sampling(temperature=0.1, top_k=1, repetition_penalty=1.5), [0])
    (choice,) = choose_tokens(LOGITS[None], [sampler])
    assert choice.logprob == pytest.approx(float(LOGITS.log_softmax(-1)[choice.token_id]), abs=1e-6)


def test_alternatives_are_the_likeliest_of_the_model_itself():
    samplers = [Sampler(Sampling(top_logprobs=n, temperature=0.1), []) for n in (0, 3, 20)]
    none, three, all_ = choose_tokens(LOGITS.expand(3, -1), samplers)
    wanted = LOGITS.log_softmax(-1).tolist()
    assert none.top == ()
    assert [i for i, _ in three.top] == [0, 1, 2]
    assert [logprob for _, logprob in all_.top] == pytest.approx(wanted)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}])
def test_broken_logits_fail_their_own_row_only(options):
    rows = torch.stack([LOGITS * float("nan"), LOGITS, LOGITS + float("inf")])
    choices = choose_tokens(rows, [Sampler(Sampling(seed=0, **options), []) for _ in range(3)])
    assert ["not finite numbers" in c.problem for c in choices] == [True, False, True]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 4.5}, "max_new_tokens must be a whole number, got 4.5"),
        ({"max_new_tokens": "4"}, "max_new_tokens must be a whole number, got '4'"),
        ({"top_k": True}, "top_k must be a whole number, got True"),
        ({"temperature": float("nan")}, "temperature must be a finite number, got nan"),
        ({"temperature": 1e300}, "temperature must be >= 0 .* and <= 100"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty must be 0.01 to 100"),
        ({"seed": 2**64}, "seed must be a whole number of 64 bits"),
        ({"seed": 1.5}, "seed must be a whole number, got 1.5"),
        ({"json_schema": 3}, "json_schema must be JSON text, got int"),
        ({"json_schema": '{"not":' * 5000}, "json_schema is not JSON"),
        ({"top_logprobs": 21}, "top_logprobs must be 0 to 20, got 21"),
        ({"json_schema": "{"}, "json_schema is not JSON"),
        ({"json_schema": "[]"}, "must be a JSON object .a schema., got list"),
    ],
)
def test_options_are_checked_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


@pytest.mark.parametrize("stop", ["abc", ("",), (3,)])
def test_stop_must_be_texts(stop):
    with pytest.raises(ValueError, match="stop must be a tuple of non-empty strings"):
        Sampling(stop=stop)
