"""As for the tests of the product: third parties' deprecations are errors only against the newest releases."""

import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_configure(config: pytest.Config) -> None:
    if not os.environ.get("EGOM2P_LATEST"):
        for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"ignore::{category}")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
