"""Configuration files for one test, and a configuration of nobody else's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

Write = Callable[[str], Path]


@pytest.fixture(autouse=True)
def own_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run this tree's pgrepl in an empty directory, so that files are found or not as the test has it."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


@pytest.fixture
def write() -> Write:
    """Write the text to ``pgrepl.toml`` in the current directory."""

    def write(text: str) -> Path:
        Path("pgrepl.toml").write_text(text, encoding="utf-8")
        return Path("pgrepl.toml")

    return write
