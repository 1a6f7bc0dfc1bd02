"""What is installed is what requirements.lock says, pyproject.toml allows it, and the other files agree."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pinned(text):
    """The requirements of a file, without hashes and comments."""
    lines = text.replace("\\\n", "").splitlines()
    found = [re.split(r"\s+(?:#|--hash)", line)[0] for line in lines if line and line[0] not in "#- "]
    return [Requirement(line) for line in found]


LOCKED = {}
for requirement in pinned(LOCK):
    LOCKED.setdefault(canonicalize_name(requirement.name), []).append(requirement)
DIRECT = pinned((ROOT / "requirements.txt").read_text())


@pytest.mark.parametrize("direct", DIRECT, ids=lambda direct: direct.name)
def test_the_lock_is_of_these_requirements(direct):
    """`make lock` was run after the last change."""
    assert [r.specifier for r in LOCKED[canonicalize_name(direct.name)]] == [direct.specifier]


def test_all_is_pinned_and_hashed():
    assert len(DIRECT) >= 15 and len(LOCKED) > len(DIRECT)
    for requirements in LOCKED.values():
        for requirement in requirements:
            (specifier,) = requirement.specifier
            assert specifier.operator == "==" and "*" not in specifier.version, requirement
    entries = re.split(r"\n(?=\S)", LOCK.strip())
    assert all("--hash=sha256:" in entry for entry in entries if not entry.startswith("#"))


def test_the_lock_names_no_index():
    assert not re.search(r"^\s*--?(i|f|index|extra|find)|://", LOCK, re.MULTILINE)


def test_the_package_allows_what_is_locked():
    project = PROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for needed in {Requirement(line) for group in groups for line in group}:
        for requirement in LOCKED[canonicalize_name(needed.name)]:
            (specifier,) = requirement.specifier
            assert needed.specifier.contains(specifier.version), f"{needed} allows no {requirement}"


def test_the_lower_bounds_are_tested():
    """The first environment of `make versions` has them."""
    script = (ROOT / "tests" / "versions.sh").read_text()
    first = script.split("environments=(\n")[1].splitlines()[0].strip(' "').split()
    tested = {r.name: r.specifier for r in map(Requirement, first[1:])}
    for needed in map(Requirement, PROJECT["project"]["dependencies"]):
        (bound,), (at,) = needed.specifier, tested[needed.name]
        assert bound.operator == ">=" and at.version.removesuffix(".0") == bound.version.removesuffix(".0")
    assert PROJECT["project"]["requires-python"] == f">={first[0]}"


def test_pre_commit_has_the_same_ruff():
    (ruff,) = (str(direct.specifier) for direct in DIRECT if direct.name == "ruff")
    hooks = (ROOT / ".pre-commit-config.yaml").read_text()
    assert re.findall(r"/ruff-pre-commit\n +rev: v(\S+)", hooks) == [ruff.removeprefix("==")]


def test_the_workflow_has_the_pythons_of_make_versions():
    script = (ROOT / "tests" / "versions.sh").read_text()
    (tested,) = re.findall(r"python-version: \[(.+)\]", (ROOT / ".github/workflows/test.yml").read_text())
    assert re.findall(r"[\d.]+", tested) == re.findall(r'^ +"([\d.]+)', script, re.MULTILINE)
