"""The generated documentation: present, up to date, and valid."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pgrepl.cli import reference
from pgrepl.config.source import PIPELINE_VARIABLES
from tests.contract.commands import context_of, every_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(name for name in reference.documents() if name.startswith("man/"))
SECTIONS = ["NAME", "SYNOPSIS", "DESCRIPTION", "OPTIONS", "EXIT STATUS", "ENVIRONMENT", "EXAMPLES", "SEE ALSO"]
MACROS = r"\.(TH|SH|SS|TP|PP|br|nf|fi)( .*)?"
ESCAPES = r"\\(?:[fB]|f[BIR]|e|-|&|\((?:aq|ga|ha|ti|dq)|\[u[0-9A-F]{4,6}\])"


def test_the_files_are_what_the_commands_say() -> None:
    stale = [name for name, text in reference.documents().items() if _text(ROOT / name) != text]
    assert not stale, "run: python -m pgrepl.cli.reference"


def test_there_is_no_file_of_a_command_that_is_gone() -> None:
    files = {
        f"{directory}/{path.name}" for directory in ("man", "completions") for path in (ROOT / directory).iterdir()
    }
    assert files <= reference.documents().keys()


def test_it_writes_the_same_files_anywhere(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "pgrepl.cli.reference"], cwd=tmp_path, capture_output=True, check=True)
    files = {str(path.relative_to(tmp_path)): _text(path) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == reference.documents()


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_every_section_and_is_valid(page: str) -> None:
    text = reference.documents()[page]
    assert [heading for heading in re.findall(r"^\.SH (.*)$", text, re.MULTILINE) if heading in SECTIONS] == SECTIONS
    assert text.isascii()
    for line in text.splitlines():
        assert line, "an empty line is a request of its own to roff"
        assert not line.startswith((".", "'")) or re.fullmatch(MACROS, line), line
        assert "\\" not in re.sub(ESCAPES, "", line), line
    for checker in (["groff", "-man", "-Tutf8", "-ww", "-z"], ["mandoc", "-Tlint", "-Wunsupp"]):
        if shutil.which(checker[0]):
            done = subprocess.run(checker, input=text, capture_output=True, text=True, check=False)
            assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize("name", [name for name in every_command() if name])
def test_every_option_is_in_the_page_and_in_the_document(name: str) -> None:
    page = reference.documents()[f"man/pgrepl-{name.split()[0]}.1"].replace("\\-", "-")
    document = reference.documents()["docs/cli.md"]
    context = context_of(name)
    assert f"pgrepl {name}" in page
    assert f" pgrepl {name}\n" in document
    for parameter in context.command.get_params(context):
        for option in [*parameter.opts, *parameter.secondary_opts]:
            if option.startswith("-"):
                assert f"\\fB{option}\\fR" in page
                assert re.search(rf"[`, ]{option}[`, ]", document), option


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def test_every_variable_that_is_read_is_in_the_page() -> None:
    code = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "pgrepl").rglob("*.py"))
    read = set(re.findall(r"""["'$]((?:PGREPL|XDG)_[A-Z_]+)\b""", code)) | set(PIPELINE_VARIABLES.values())
    assert len(read) > 8
    pages = reference.documents()
    assert {name for name in read if name not in pages["man/pgrepl.1"]} == set()
    assert "PGSENSE__PIPELINE__STORE" in pages["man/pgrepl.1"]
    for command in ("setup", "doctor", "tail", "state"):
        assert "\\fBPGREPL_STORE\\fR" in pages[f"man/pgrepl-{command}.1"]
    for command in ("setup", "teardown"):
        assert "\\fBPGREPL_STATE_TABLE\\fR" in pages[f"man/pgrepl-{command}.1"]
    assert "\\fBXDG_STATE_HOME\\fR" in pages["man/pgrepl-tail.1"]
    assert "\\fBXDG_DATA_HOME\\fR" in pages["man/pgrepl-sandbox.1"]


def test_the_password_s_variable_is_not_said_to_be_that_of_the_prompt() -> None:
    options = {option.names: option.help for option in reference.read(context_of("setup").command).options}
    assert "PGREPL_ROLE_PASSWORD" not in options["--password-prompt"]
    assert "PGREPL_ROLE_PASSWORD" in options["--password-file FILE"]
