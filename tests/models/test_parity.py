"""The model is the published one: same activations, logits, losses, gradients, training steps and generations from the
same weights. What is compared, and how closely, stands in benchmarks/parity_checks.
"""

import pytest
from parity_checks.check import failures
from parity_checks.generation_folder import generation_checks
from parity_checks.model_folder import model_checks
from parity_checks.reference_like_folder import reference_like_checks

VARIANTS = ("swiglu_nobias", "gelu_bias", "swiglu_qknorm_nobias", "swiglu_nobias_registers")


@pytest.mark.parametrize("variant", VARIANTS)
def test_model(parity_dir, variant):
    assert not failures(model_checks(parity_dir / "model" / variant), at_least=40)


def test_generation(parity_dir):
    assert not failures(generation_checks(parity_dir / "generation"), at_least=30)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_our_speed_is_held_against(parity_dir, variant):
    """benchmarks/reference_like computes the published numbers, generation included."""
    assert not failures(reference_like_checks(parity_dir / "model" / variant), at_least=60)
