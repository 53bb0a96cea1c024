"""Shared fixtures: generators, and the folders of external test data (skipped with a reason where absent)."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Third parties' deprecations are errors only against the newest releases: `make test LATEST=1`."""
    if not os.environ.get("EGOM2P_LATEST"):
        for category in ("DeprecationWarning", "PendingDeprecationWarning", "FutureWarning"):
            config.addinivalue_line("filterwarnings", f"ignore::{category}")


_BESIDE = Path(__file__).resolve().parents[2] / "shared"


def _data_dir(variable: str, default: Path) -> Path:
    folder = Path(os.environ.get(variable, default))
    if not folder.is_dir():
        pytest.skip(f"no test data at {folder}; set {variable} to a folder that holds it")
    return folder


@pytest.fixture(scope="session")
def parity_dir() -> Path:
    """Numbers the reference implementation computes."""
    return _data_dir("EGOM2P_PARITY_DIR", _BESIDE / "parity" / "public")


@pytest.fixture(scope="session")
def real_data_dir() -> Path:
    """Small real recordings."""
    return _data_dir("EGOM2P_REAL_DATA_DIR", _BESIDE / "real_data" / "public")


@pytest.fixture(scope="session")
def door_dir() -> Path:
    """Recordings that once came in wrong."""
    return _data_dir("EGOM2P_DOOR_DIR", _BESIDE / "cases" / "door")


@pytest.fixture(scope="session")
def collected_dir() -> Path:
    """Real tracks, gaze and files of many formats."""
    return _data_dir("EGOM2P_COLLECTED_DIR", _BESIDE / "real_data" / "collected")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def _root_handlers():
    """A command run inside a test may set up logging; its handler holds the test's captured stream, which is closed."""
    before = list(logging.root.handlers)
    yield
    logging.root.handlers[:] = before
