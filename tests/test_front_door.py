"""`import egom2p` is light, and what it promises is there."""

import subprocess
import sys

import pytest

import egom2p


def test_every_name_of_the_front_door_is_there():
    for name in egom2p._FRONT_DOOR:
        assert callable(getattr(egom2p, name)) and name in dir(egom2p)
    with pytest.raises(AttributeError, match="no attribute 'load_modle'.*'load_model'"):
        _ = egom2p.load_modle


def test_importing_the_package_imports_nothing_heavy():
    code = "import sys, egom2p; print([name for name in ('torch', 'numpy', 'hydra') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
