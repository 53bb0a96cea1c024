"""requirements.lock, which `make setup` installs, holds what setup.py asks for, with hashes and without addresses."""

import re
import runpy
from itertools import product
from pathlib import Path

import pytest
import setuptools
from packaging.markers import Marker
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
ENTRY = re.compile(r"^([\w.-]+)==(\S+)(?: ; (.+))? \\\n((?:    --hash=sha256:[0-9a-f]{64} \\\n)*    --hash=.+\n)", re.M)


def canonical(name: str) -> str:
    return name.lower().replace("_", "-")


@pytest.fixture
def required(monkeypatch) -> list[Requirement]:
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    described = runpy.run_path(str(ROOT / "setup.py"))
    extras = described["EXTRAS"]
    return [Requirement(line) for line in {*described["BASE"], *extras["dev"], *extras["anytoany"]}]


def test_the_lock_is_names_versions_and_hashes():
    assert "://" not in LOCK and "http:" not in LOCK
    assert re.sub(r"^#.*\n", "", ENTRY.sub("", LOCK), flags=re.M) == ""
    assert {"pip", "setuptools"} <= {name for name, *_ in ENTRY.findall(LOCK)}, "make setup installs them first"


@pytest.mark.parametrize("machine, python", [*product(["x86_64", "aarch64"], ["3.11", "3.12", "3.13"])])
def test_every_requirement_has_one_version_in_its_range(required, machine, python):
    here = {"python_version": python, "python_full_version": f"{python}.5", "platform_machine": machine}
    here |= {"sys_platform": "linux", "platform_system": "Linux"}
    entries = ENTRY.findall(LOCK)
    locked = [(name, version) for name, version, marker, _ in entries if not marker or Marker(marker).evaluate(here)]
    for requirement in required:
        if requirement.marker and not requirement.marker.evaluate(here):
            continue
        found = [version for name, version in locked if name == canonical(requirement.name)]
        assert len(found) == 1 and found[0] in requirement.specifier, f"{requirement}: {found}; run `make lock`"


def test_the_page_of_dependencies_has_every_range_and_version(monkeypatch):
    """Every package of setup.py with its range, versions of the lock, the month of its last release, and a reason."""
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    described = runpy.run_path(str(ROOT / "setup.py"))
    page = (ROOT / "docs/DEPENDENCIES.md").read_text()
    rows = re.findall(r"^\| ([\w.-]+)(?: `\[\w+\]`)? \| (\S+) \| ([^|]+) \| (\d{4}-\d\d) \| (.+) \|$", page, re.M)
    found = {canonical(name): (bound, versions, month, why) for name, bound, versions, month, why in rows}
    locked: dict[str, list[str]] = {}
    for name, version, *_ in ENTRY.findall(LOCK):
        locked.setdefault(name, []).append(version)
    wanted = [Requirement(line) for line in {*described["BASE"], *sum(described["EXTRAS"].values(), [])}]
    assert set(found) == {canonical(requirement.name) for requirement in wanted}
    for requirement in wanted:
        bound, versions, _, why = found[canonical(requirement.name)]
        assert set(bound.split(",")) == set(str(requirement.specifier).split(","))
        assert versions == ", ".join(locked.get(canonical(requirement.name), ["-"])), requirement.name
        assert len(why) >= 5
    assert found["decord"][2] == "2021-06" and "No release since 2021" in found["decord"][3]
