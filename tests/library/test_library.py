"""What ``import pgrepl`` gives: the names of ``__all__``, loaded late, and the examples of docs/library.md."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import pgrepl
from tests.servers.database import Database

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / "library.md").read_text(), re.MULTILINE | re.DOTALL)


def python(code: str, *options: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python in a process of its own, which finds this pgrepl."""
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "PYTHONPATH": str(ROOT), **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_name_is_there_and_is_what_its_module_calls_so() -> None:
    for name in pgrepl.__all__:
        found = getattr(pgrepl, name)
        assert name in dir(pgrepl)
        if isinstance(found, type):
            assert found.__name__ == name
    with pytest.raises(AttributeError, match="module 'pgrepl' has no attribute 'stram'"):
        pgrepl.stram  # type: ignore[attr-defined]  # noqa: B018


def test_what_a_type_checker_sees_is_what_is_loaded() -> None:
    tree = ast.parse((ROOT / "pgrepl" / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom)
        assert statement.module is not None
        for alias in statement.names:
            assert alias.asname is None
            seen[alias.name] = statement.module
    assert sorted(seen) == sorted(pgrepl.__all__)
    for name, module in seen.items():
        there = getattr(pgrepl, name)
        assert there is getattr(importlib.import_module(module), name)


def test_every_error_and_event_is_public() -> None:
    from pgrepl import errors, events

    raised = {name for name, value in vars(errors).items() if isinstance(value, type)}
    given = {kind.__name__ for kind in events.Event.__args__}
    assert (raised | given) <= set(pgrepl.__all__)


def test_the_import_loads_nothing_else() -> None:
    code = "import sys, pgrepl; print(*sorted(name for name in sys.modules if name[:6] in ('pgrepl', 'psycop')))"
    assert python(code).stdout.split() == ["pgrepl"]
    done = python("import sys, pgrepl; pgrepl.Lsn; print('psycopg' in sys.modules, 'click' in sys.modules)")
    assert done.stdout == "False False\n"
    done = python("from pgrepl import *; print(Pipeline.__module__, doctor.run.__module__)")
    assert done.stdout == "pgrepl.engine.pipeline pgrepl.doctor.engine\n", done.stderr


def test_the_examples_of_the_documentation_run(database18: Database, tmp_path: Path) -> None:
    database18.psql(
        "CREATE TABLE orders (id int PRIMARY KEY, state text); INSERT INTO orders VALUES (1, 'paid'), (2, 'new')"
    )
    set_up, run = EXAMPLES
    done = python(set_up, "-W", "error", cwd=tmp_path, PGREPL_DSN=database18.dsn())
    assert (done.returncode, done.stderr) == (0, "")
    assert "publication shop_pub created\n" in done.stdout
    assert "fail" not in done.stdout
    done = python(run, "-W", "error", cwd=tmp_path, PGREPL_DSN=database18.dsn())
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "until 2\n"
    assert (tmp_path / "orders.txt").read_text() == "Read public.orders 1 paid\nRead public.orders 2 new\n"


def test_the_examples_are_typed(tmp_path: Path) -> None:
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example{number}.py").write_text(example)
    (tmp_path / "wrong.py").write_text(
        "import pgrepl\npgrepl.Lsn.parse(1)\npgrepl.nothing\nreveal_type(pgrepl.Lsn(1))\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *map(str, sorted(tmp_path.glob("*.py")))],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    *told, _ = done.stdout.splitlines()
    assert [line.partition("wrong.py:")[2][:2] for line in told] == ["2:", "3:", "4:"], done.stdout
    assert 'Revealed type is "pgrepl.lsn.Lsn"' in told[2]
