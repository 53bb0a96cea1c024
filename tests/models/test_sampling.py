"""Drawing from logits, and the schedules: promises, and the numbers of the reference."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from egom2p.models.sampling import candidates, combine_guided, draw, keep_likely, step_temperatures, token_counts


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize(("num_steps", "num_tokens"), [(1, 1), (50, 30), (7, 30), (3, 24), (9, 9), (10, 5120)])
def test_schedule_writes_every_token_once_and_has_no_empty_step(schedule, num_steps, num_tokens):
    counts = token_counts(schedule, num_steps=num_steps, num_tokens=num_tokens)
    assert sum(counts) == num_tokens and min(counts) > 0 and len(counts) <= num_steps


def test_nothing_to_write_needs_no_step():
    assert token_counts("cosine", num_steps=4, num_tokens=0) == ()
    assert step_temperatures("onex:0.1:0.5", temperature=1.0, counts=()) == ()


def test_schedules_match_the_reference(parity_dir):
    published = json.loads((parity_dir / "generation" / "schedules.json").read_text())
    for schedule in ("linear", "cosine"):
        for sizes, counts in published[f"{schedule}_schedule"].items():
            num_steps, num_tokens = map(int, sizes.split(","))
            if min(counts) > 0:  # The published 50-step cosine writes -2 tokens at the end.
                found = token_counts(schedule, num_steps=num_steps, num_tokens=num_tokens)
                assert found == tuple(counts), (schedule, sizes)
    linear = token_counts("linear", num_steps=5, num_tokens=30)
    cosine = token_counts("cosine", num_steps=8, num_tokens=30)
    cases = [
        ("linear", 2.0, linear, "linear_temp_schedule(2.0, linear 5/30)"),
        ("onex:0.5:0.5", 3.0, linear, "onex_temp_schedule(max 3, min 0.5, linear 5/30, power .5)"),
        ("onex:0:2", 5.0, cosine, "onex_temp_schedule(max 5, min 0, cosine 8/30, power 2)"),
    ]
    for schedule, temperature, counts, key in cases:
        found = step_temperatures(schedule, temperature=temperature, counts=counts)
        np.testing.assert_allclose(found, published[key], atol=2e-9)


def test_bad_schedules_are_refused():
    with pytest.raises(ValueError, match="linear or cosine"):
        token_counts("quadratic", num_steps=2, num_tokens=4)
    with pytest.raises(ValueError, match="temperature_schedule"):
        step_temperatures("onex:1", temperature=1.0, counts=(1,))


def test_filtering_matches_the_reference(parity_dir):
    fixture = load_file(parity_dir / "generation" / "filtering.safetensors")
    cases = {
        "topk_3": {"top_k": 3},
        "topk_frac_0.1": {"top_k": 0.1},
        "topp_0.8": {"top_p": 0.8},
        "topk_10_topp_0.6": {"top_k": 10, "top_p": 0.6},
    }
    for name, options in cases.items():
        assert torch.equal(keep_likely(fixture["logits"], **options), fixture[name]), name


def test_top_p_of_a_flat_distribution_takes_as_many_as_needed(generator):
    logits_RV = 0.01 * torch.randn(3, 5000, generator=generator)
    values_RC, _ = candidates(logits_RV, top_p=0.9)
    num_kept_R = torch.isfinite(values_RC).sum(1)
    assert ((num_kept_R > 4300) & (num_kept_R < 4600)).all()


@pytest.mark.parametrize("options", [{}, {"top_k": 4}, {"top_p": 0.7}])
def test_draws_follow_the_distribution(options, generator):
    logits_RV = torch.randn(1, 9, generator=generator)
    uniform_RK = torch.rand(1, 40_000, generator=generator, dtype=torch.float64)
    ids_RK, log_probs_RK = draw(logits_RV, uniform_RK, temperature=0.7, **options)
    wanted_V = torch.softmax(keep_likely(logits_RV / 0.7, **options)[0], dim=0)
    found_V = torch.bincount(ids_RK[0], minlength=9) / uniform_RK.shape[1]
    assert (found_V - wanted_V).abs().max() < 0.012
    assert (found_V[wanted_V == 0] == 0).all()
    torch.testing.assert_close(log_probs_RK[0], torch.log_softmax(logits_RV[0], 0)[ids_RK[0]])


def test_cold_draws_are_the_most_likely_token(generator):
    logits_RV = torch.randn(5, 40, generator=generator)
    uniform_RK = torch.rand(5, 3, generator=generator, dtype=torch.float64)
    wanted_RK = logits_RV.argmax(1, keepdim=True).expand(-1, 3)
    for options in ({"temperature": 0.0}, {"temperature": 1.0, "top_k": 1}, {"temperature": 1e-4, "top_p": 0.8}):
        assert torch.equal(draw(logits_RV, uniform_RK, **options)[0], wanted_RK)


def test_edges_of_the_random_numbers_stay_in_range():
    logits_RV = torch.tensor([[-50.0, 0.0, -50.0, 0.0, -50.0]])
    ids_RK, _ = draw(logits_RV, torch.tensor([[0.0, 1.0]], dtype=torch.float64), temperature=0.3)
    assert ids_RK.tolist() == [[1, 3]] or set(ids_RK.flatten().tolist()) <= {0, 1, 2, 3, 4}


def test_guidance_is_the_published_formula(generator):
    conditional, unconditional = torch.randn(2, 4, 7, generator=generator)
    wanted = unconditional + (conditional - unconditional) * 2.5
    assert torch.equal(combine_guided([conditional, unconditional], (2.5, -1.5)), wanted)
