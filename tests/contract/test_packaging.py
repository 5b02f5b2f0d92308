"""What an installation has is what the checkout has."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
HOUSES = ("p2rec_core", "storage", "tasks", "flows", "deployments")


def test_every_package_is_installed() -> None:
    folders = {path.parent for house in HOUSES for path in (ROOT / house).rglob("*.py")}
    there = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == there


def test_every_file_that_is_no_code_is_installed() -> None:
    named = PROJECT["tool"]["setuptools"]["package-data"]
    installed = {
        path
        for package, globs in named.items()
        for glob in globs
        for path in (ROOT / package.replace(".", "/")).glob(glob)
    }
    others = {
        path
        for house in HOUSES
        for path in (ROOT / house).rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert installed == others
