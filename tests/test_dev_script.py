"""``./dev`` makes its environment with whatever the machine has; tried on a small package in place of the real one.

Each machine here is a PATH of its own: the few standard programs that the script needs, and a Python from which
ensurepip has been taken away.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests import lean_python

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("sh", "bash", "cat", "chmod", "cksum", "dirname", "env", "id", "mktemp", "rm", "sed", "touch")
PYTHON = f"python3.{sys.version_info.minor}"
PYPROJECT = """
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"
[project]
name = "pgrepl"
version = "0"
[project.optional-dependencies]
sandbox = []
test = []
[tool.setuptools]
packages = ["pgrepl"]
"""


class Machine:
    """A checkout in a directory with a space in its name, and the programs that are to be found."""

    def __init__(self, directory: Path) -> None:
        self.checkout = directory / "a checkout"
        package = self.checkout / "pgrepl"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text("import sys; print(sys.version_info.minor, *sys.argv[1:], sep='|')\n")
        (self.checkout / "pyproject.toml").write_text(PYPROJECT)
        shutil.copy(ROOT / "dev", self.checkout)
        self.bin = directory / "bin"
        self.bin.mkdir()
        for tool in TOOLS:
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.python = directory / "python"

    def add_python(self, *, without: Iterable[str] = (), pip: bool = False) -> None:
        """Install a Python of our own version; see lean_python.install."""
        lean_python.install(self.python, without=without, pip=pip)

    def give_back(self, module: str) -> str:
        """Return the shell command that puts a module back which add_python left out."""
        library = Path(sysconfig.get_path("stdlib"))
        return f"ln -s '{library / module}' '{self.python / 'lib' / library.name / module}'"

    def add_program(self, name: str, script: str) -> None:
        """Add a program written in shell."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def dev(self, *arguments: str, cwd: Path | None = None, shell: str = "sh") -> subprocess.CompletedProcess[str]:
        """Run ``./dev`` with nothing else on PATH; pip's settings of this machine are kept."""
        settings = {
            name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_")) or name == "HOME"
        }
        return subprocess.run(
            [self.bin / shell, self.checkout / "dev", *arguments],
            cwd=cwd or self.checkout,
            env={**settings, "PATH": f"{self.bin}:{self.python / 'bin'}", "TMPDIR": str(self.bin.parent)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def litter(self) -> list[str]:
        """Files in the directory for temporary files that should not be there."""
        return [path.name for path in self.bin.parent.iterdir() if path.name.startswith("tmp")]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


DEMO = f"{sys.version_info.minor}|sandbox|demo|--for|20s\n"


def test_with_a_whole_python_from_another_directory(machine: Machine, tmp_path: Path) -> None:
    machine.add_python()
    done = machine.dev("demo", "--for", "5s", cwd=tmp_path)
    assert done.stdout == DEMO.replace("\n", "|--for|5s\n"), done.stderr
    assert len(done.stderr.splitlines()) == 2  # one line for each step
    again = machine.dev("demo")
    assert (again.stdout, again.stderr) == (DEMO, "")
    assert machine.litter == []


def test_without_ensurepip_a_pip_outside_installs_into_the_environment(machine: Machine) -> None:
    machine.add_python(without=["ensurepip"], pip=True)
    done = machine.dev("demo")
    assert done.stdout == DEMO, done.stderr
    site_packages = Path("lib") / Path(sysconfig.get_path("stdlib")).name / "site-packages"
    assert [path.name for path in (machine.python / site_packages).iterdir() if "pgrepl" in path.name] == []
    assert not (machine.checkout / ".venv" / site_packages / "pip").exists()
    # More extras later, by the same way.
    assert "No module named pytest" in machine.dev("test").stderr


def test_without_ensurepip_and_pip_it_says_what_to_run(machine: Machine) -> None:
    machine.add_python(without=["ensurepip"])
    done = machine.dev("demo")
    assert done.returncode == 2
    assert done.stderr.endswith("dev:   python3 -m pip install --user virtualenv\n")
    assert not (machine.checkout / ".venv").exists()


def test_without_any_python_it_says_what_to_run(machine: Machine) -> None:
    machine.add_program("python3", "exit 1")
    machine.add_program("apt-get", "exit 100")
    done = machine.dev("test")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("apt-get install python3-venv")
    assert machine.litter == []


def test_root_installs_the_missing_package_and_others_are_told_to(machine: Machine) -> None:
    machine.add_python(without=["ensurepip"])
    (machine.bin / "ln").symlink_to(str(shutil.which("ln")))
    machine.add_program(
        "apt-get", f'case "$*" in "install --yes python3-venv") {machine.give_back("ensurepip")} ;; esac'
    )
    done = machine.dev("demo")
    if os.geteuid() == 0:
        assert done.stdout == DEMO, done.stderr
        assert "installing python3-venv with apt-get" in done.stderr
    else:
        assert done.returncode == 2
        assert done.stderr.endswith("dev:   sudo apt-get install python3-venv\n")


def test_a_newer_python_that_does_not_run_is_passed_over(machine: Machine) -> None:
    machine.add_program("python3.14", "echo 'pyenv: python3.14: command not found' >&2; exit 127")
    machine.add_program("python3", "exit 1")
    machine.add_python()
    if PYTHON == "python3.14":
        pytest.fail("this machine's Python is the newest known: take a newer name for the one that does not run")
    assert machine.dev("demo").stdout == DEMO


def test_an_environment_without_its_stamp_or_for_another_project_file_is_made_anew(machine: Machine) -> None:
    machine.add_python()
    leftover = machine.checkout / ".venv" / "leftover"
    leftover.parent.mkdir()
    leftover.touch()
    assert machine.dev("demo").stdout == DEMO
    assert not leftover.exists()
    leftover.touch()
    (machine.checkout / "pyproject.toml").write_text(PYPROJECT + "# changed")
    assert machine.dev("demo").stdout == DEMO
    assert not leftover.exists()


def test_a_moved_checkout_gets_an_environment_of_its_own(machine: Machine) -> None:
    machine.add_python()
    assert machine.dev("demo").stdout == DEMO
    machine.checkout = machine.checkout.rename(machine.checkout.with_name("moved"))
    done = machine.dev("demo")
    assert done.stdout == DEMO, done.stderr
    assert "made .venv" in done.stderr


def test_a_failed_installation_shows_why_and_is_not_taken_for_done(machine: Machine) -> None:
    machine.add_python()
    project = machine.checkout / "pyproject.toml"
    project.write_text(PYPROJECT.replace("sandbox = []", 'sandbox = ["pgrepl-no-such-file @ file:///nowhere"]'))
    done = machine.dev("demo")
    assert done.returncode == 1
    assert "/nowhere" in done.stderr
    assert done.stderr.endswith("dev: the installation failed\n")
    assert not (machine.checkout / ".venv" / "pgrepl-stamp").exists()


@pytest.mark.parametrize("arguments", [[], ["no-such-command"]])
def test_an_unknown_command_shows_the_usage(machine: Machine, arguments: list[str]) -> None:
    done = machine.dev(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert "./dev COMMAND" in done.stderr
