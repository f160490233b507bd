"""Write the manual pages, docs/cli.md and the completion scripts from what the commands say of themselves.

``python -m pgrepl.cli.reference`` writes them below the current directory, the top of the source tree. They hold
nothing that changes from one machine or day to the next, so a test compares them with the files of the tree.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from pgrepl import __version__
from pgrepl.cli import shells
from pgrepl.cli.diagnostics import EXIT_CODES_HELP
from pgrepl.cli.main import cli
from pgrepl.cli.options import command_options

_PGSENSE = "PGSENSE__PIPELINE__STORE, PGSENSE__DATABASES__0__HOST and the like"
_ENVIRONMENT = {
    "PGREPL_DSN": "The connection string, where --dsn is not given.",
    "PGREPL_CONFIG": "The configuration file, where --config is not given.",
    "PGREPL_STORE": "Where the state is kept, where --store is not given; above the configuration file.",
    "PGREPL_STATE_DSN": "The database of the bookmarks, where --state-dsn is not given; above the configuration file.",
    "PGREPL_STATE_TABLE": "The table of bookmarks, where --state-table is not given; above the configuration file.",
    "PGREPL_STATE_POOL": "state_pool, how many connections the bookmarks may take; above the configuration file.",
    "PGREPL_ROLE_PASSWORD": "The password of a new role, where --password-file and --password-prompt are not given.",
    _PGSENSE: "Values of the configuration as pgsense-rs takes them; below PGREPL_ variables, above the file.",
    "XDG_CONFIG_HOME": "Where the user's configuration is; default ~/.config.",
    "XDG_STATE_HOME": "Where tail keeps changes that wait for a copy; default ~/.local/state.",
    "XDG_DATA_HOME": "Where the sandbox is; default ~/.local/share.",
    "NO_COLOR": "Not empty: no colours, unless --color says otherwise.",
}
# The option or the command by which a variable is read whose name the help of no option has.
_READ_BY = {
    "PGREPL_STORE": "--store",
    "PGREPL_STATE_DSN": "--state-dsn",
    "PGREPL_STATE_TABLE": "--state-table",
    "PGREPL_STATE_POOL": "config",
    _PGSENSE: "--config",
    "XDG_CONFIG_HOME": "--config",
    "XDG_DATA_HOME": "sandbox",
}
_LIBPQ_VARIABLES = "PGHOST, PGPORT, PGDATABASE, PGUSER, PGPASSFILE, PGSERVICE and the like"
_LIBPQ = "What libpq reads, for whatever neither the connection string nor the configuration says."
_FILES = {
    "./pgrepl.toml, $XDG_CONFIG_HOME/pgrepl/pgrepl.toml": "The configuration; the first one that exists is read.",
    "~/.pgpass, ~/.pg_service.conf": "libpq's password and service files.",
}
_COMPLETION = {
    "bash": "Copy completions/pgrepl.bash to ~/.local/share/bash-completion/completions/pgrepl, or source it.",
    "zsh": "Copy completions/_pgrepl to a directory of $fpath.",
    "fish": "Copy completions/pgrepl.fish to ~/.config/fish/completions/.",
}
_COMPLETION_NOTE = (
    "Publications and slots complete from the server that the command line so far, or the environment, means. "
    "Without the source tree, _PGREPL_COMPLETE=bash_source pgrepl (zsh_source, fish_source) prints the script."
)


@dataclass(frozen=True)
class Option:
    """One option: its names with the value they take, such as ``-d, --dsn TEXT``, and what it does."""

    names: str
    help: str


@dataclass(frozen=True)
class Entry:
    """What one command says of itself.

    ``name`` is the whole name (``pgrepl slots drop``), ``usage`` what follows it. ``options`` are the command's own,
    ``shared`` those that every command of its kind takes. ``variables`` are the environment variables that it reads.
    """

    name: str
    purpose: str
    usage: str
    description: tuple[str, ...]
    examples: tuple[str, ...]
    options: tuple[Option, ...]
    shared: tuple[Option, ...]
    variables: tuple[str, ...]
    subcommands: tuple[Entry, ...]

    @property
    def page(self) -> str:
        """The name of the manual page."""
        return "-".join(self.name.split()[:2])


def read(command: click.Command = cli, parent: click.Context | None = None) -> Entry:
    """Read a command with everything below it."""
    name = command.name if parent else "pgrepl"
    context = click.Context(command, parent, name, **command.context_settings)
    paragraphs = list(_paragraphs(command.help or ""))
    given = [p for p in command.get_params(context) if isinstance(p, click.Option)]
    described = {_option(option, context): _is_shared(option) for option in given}
    subcommands: tuple[Entry, ...] = ()
    if isinstance(command, click.Group):
        found = [command.get_command(context, name) for name in command.list_commands(context)]
        subcommands = tuple(read(each, context) for each in found if each is not None)
    texts = [option.help for option in described]
    readers = {*context.command_path.split(), *(flag for option in given for flag in option.opts)}
    return Entry(
        name=context.command_path,
        purpose=_first_sentence(paragraphs[0] if paragraphs else ""),
        usage=" ".join(command.collect_usage_pieces(context)),
        description=tuple(p for p in paragraphs if not p.startswith("Example:")),
        examples=tuple(_examples(command)),
        options=tuple(option for option, shared in described.items() if not shared),
        shared=tuple(option for option, shared in described.items() if shared),
        variables=tuple(
            name for name in _ENVIRONMENT if any(name in text for text in texts) or _READ_BY.get(name) in readers
        ),
        subcommands=subcommands,
    )


def _paragraphs(text: str) -> Iterator[str]:
    """Take text apart as click does: blank lines end a paragraph, a backspace keeps its line breaks."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.startswith("\b\n"):
            yield paragraph[2:]
        else:
            yield " ".join(paragraph.split())


def _examples(command: click.Command) -> Iterator[str]:
    for paragraph in [*_paragraphs(command.help or ""), *_paragraphs(command.epilog or "")]:
        if paragraph.startswith("Example:"):
            for line in paragraph.removeprefix("Example:").splitlines():
                yield line.strip()


def _first_sentence(text: str) -> str:
    return re.split(r"\.(?: |$)", text, maxsplit=1)[0]


def _option(option: click.Option, context: click.Context) -> Option:
    names = ", ".join(option.opts)
    if option.secondary_opts:
        names += f" / {', '.join(option.secondary_opts)}"
    elif not option.is_flag:
        # Options come with their values as --help shows them.
        names += f" {option.make_metavar(context)}"
    text = " ".join((option.help or "").split())
    if option.show_default:
        text += f"  [default: {option.default}]"
    return Option(names, text)


@command_options()
def _nothing() -> None:
    """Carry the options that every command takes."""


_SHARED = {(tuple(option.opts), option.help) for option in _nothing.__click_params__}  # type: ignore[attr-defined]


def _is_shared(option: click.Option) -> bool:
    return (tuple(option.opts), option.help) in _SHARED or "--help" in option.opts


def exit_codes() -> list[tuple[str, str]]:
    """Return the exit codes and their meanings as the commands' help has them."""
    text = " ".join(EXIT_CODES_HELP.removeprefix("\b").split()).removeprefix("Exit codes: ")
    pairs = [part.strip().partition(" ") for part in text.split(";")]
    return [(code, meaning) for code, _, meaning in pairs]


# Manual pages -------------------------------------------------------------------------------------------------------

_ROFF = str.maketrans({"\\": r"\e", "-": r"\-", "'": r"\(aq", "`": r"\(ga", "^": r"\(ha", "~": r"\(ti", '"': r"\(dq"})


def _roff(text: str) -> str:
    """Escape text for a line of roff that is no request."""
    escaped = text.translate(_ROFF)
    escaped = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in escaped)
    return rf"\&{escaped}" if escaped.startswith(".") else escaped


def _filled(text: str) -> list[str]:
    """Break text into lines, as roff fills them again; no line of the source is longer than it need be."""
    wrapped = textwrap.wrap(text, 72, break_long_words=False, break_on_hyphens=False)
    return [_roff(line) for line in wrapped]


def _tagged(tag: str, text: str) -> list[str]:
    return [".TP", rf"\fB{_roff(tag)}\fR", *_filled(text)]


def _tagged_option(option: Option) -> list[str]:
    # Names are bold, values are in italics, as in every manual.
    parts = re.split(r"((?:^|(?<=[ ,/]))--?[\w-]+)", option.names)
    tag = "".join(
        rf"\fB{_roff(part)}\fR" if part.startswith("-") else _roff(part).replace(_roff(part.strip()), _italic(part))
        for part in parts
        if part
    )
    return [".TP", tag, *_filled(option.help)]


def _italic(part: str) -> str:
    text = part.strip()
    return rf"\fI{_roff(text)}\fR" if text not in (",", "/", "") else _roff(text)


def _example_lines(examples: tuple[str, ...]) -> list[str]:
    return [".nf", *(_roff(example) for example in examples), ".fi"]


def manual_page(entry: Entry, top: Entry) -> str:
    """Write the manual page of a command; a group's holds those of its subcommands."""
    title = entry.page.upper()
    lines = [
        f'.TH {_roff(title)} 1 "" "pgrepl {__version__}" "pgrepl manual"',
        ".SH NAME",
        rf"{_roff(entry.page)} \- {_roff(_lowered(entry.purpose))}",
        ".SH SYNOPSIS",
    ]
    leaves = entry.subcommands if entry.subcommands and entry is not top else (entry,)
    for leaf in leaves:
        lines += [rf"\fB{_roff(leaf.name)}\fR {_roff(leaf.usage)}", ".br"]
    lines[-1:] = [".SH DESCRIPTION", *_text(entry.description)]
    if entry is top:
        lines.append(".SH COMMANDS")
        for command in entry.subcommands:
            lines += [".TP", rf"\fB{_roff(command.page)}\fR(1)", *_filled(f"{command.purpose}.")]
    elif entry.subcommands:
        lines.append(".SH COMMANDS")
        for leaf in leaves:
            lines += [f".SS {_roff(leaf.name)} {_roff(leaf.usage)}", *_text(leaf.description)]
            lines += [line for option in leaf.options for line in _tagged_option(option)]
    shared = _shared_of(leaves)
    if entry.subcommands and entry is not top:
        lines.append(".SH OPTIONS")
        lines += _filled("Every command above takes these where they make sense for it; its --help lists them.")
    else:
        lines.append(".SH OPTIONS")
        lines += [line for option in entry.options for line in _tagged_option(option)]
        if entry.options:
            lines.append(".SS Options of every command")
    lines += [line for option in shared for line in _tagged_option(option)]
    lines.append(".SH EXIT STATUS")
    for code, meaning in exit_codes():
        lines += _tagged(code, meaning)
    lines.append(".SH ENVIRONMENT")
    for name, text in _variables(entry):
        lines += _tagged(name, text)
    if entry is top:
        lines.append(".SH FILES")
        for name, text in _FILES.items():
            lines += _tagged(name, text)
        lines.append(".SH SHELL COMPLETION")
        for shell, text in _COMPLETION.items():
            lines += _tagged(shell, text)
        lines += [".PP", *_filled(_COMPLETION_NOTE)]
    lines += [".SH EXAMPLES", *_example_lines(_all_examples(entry) if entry is not top else entry.examples)]
    others = [other.page for other in (top, *top.subcommands) if other.page != entry.page]
    lines += [".SH SEE ALSO", ",\n".join(rf"\fB{_roff(name)}\fR(1)" for name in [*others, "psql"])]
    return "\n".join(lines) + "\n"


def _text(paragraphs: tuple[str, ...]) -> list[str]:
    lines: list[str] = []
    for paragraph in paragraphs:
        lines += [".PP", *_filled(paragraph)]
    return lines[1:]


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]


def _shared_of(entries: tuple[Entry, ...]) -> list[Option]:
    return list(dict.fromkeys(option for entry in entries for option in entry.shared))


def _all_examples(entry: Entry) -> tuple[str, ...]:
    below = [example for each in entry.subcommands for example in _all_examples(each)]
    return tuple(dict.fromkeys([*entry.examples, *below]))


def _variables(entry: Entry) -> list[tuple[str, str]]:
    names = _all_variables(entry)
    found = [(name, text) for name, text in _ENVIRONMENT.items() if name in names or name == "NO_COLOR"]
    return [*found, (_LIBPQ_VARIABLES, _LIBPQ)] if "PGREPL_DSN" in names else found


def _all_variables(entry: Entry) -> set[str]:
    return set(entry.variables).union(*map(_all_variables, entry.subcommands))


# docs/cli.md --------------------------------------------------------------------------------------------------------


def command_line_document(top: Entry) -> str:
    """Write docs/cli.md."""
    leaves = [leaf for command in top.subcommands for leaf in (command.subcommands or (command,))]
    shared = _shared_of(tuple(leaves))
    lines = ["# The command line", "", "Made by `python -m pgrepl.cli.reference` from what `--help` prints.", ""]
    lines += [f"{top.purpose}: `{top.name} {top.usage}`.", ""]
    lines += [
        f"- [`{command.name}`](#{command.name.replace(' ', '-')}): {command.purpose}." for command in top.subcommands
    ]
    for command in top.subcommands:
        lines += ["", f"## {command.name}", "", *_section(command)]
        for leaf in command.subcommands:
            lines += ["", f"### {leaf.name}", "", *_section(leaf)]
    lines += [
        "",
        "## Options of every command",
        "",
        "Each command takes those that make sense for it; its `--help` lists them.",
        "",
    ]
    lines += [_item(option.names, option.help) for option in shared]
    lines += ["", "## Exit codes", "", "| code | meaning |", "|---|---|"]
    lines += [f"| {code} | {meaning} |" for code, meaning in exit_codes()]
    lines += ["", "## Environment", "", *(_item(name, text) for name, text in _variables(top))]
    lines += ["", "## Files", "", *(_item(name, text) for name, text in _FILES.items())]
    lines += ["", "## Shell completion", "", *(f"- {shell}: {text}" for shell, text in _COMPLETION.items())]
    lines += ["", _COMPLETION_NOTE]
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> list[str]:
    lines = [] if entry.subcommands else ["```", f"{entry.name} {entry.usage}", "```", ""]
    for paragraph in entry.description:
        lines += [paragraph, ""]
    if entry.options:
        lines += [*(_item(option.names, option.help) for option in entry.options), ""]
    if entry.examples:
        lines += ["```sh", *entry.examples, "```", ""]
    return lines[:-1]


def _item(name: str, text: str) -> str:
    return f"- `{name}`: {text}"


# Files --------------------------------------------------------------------------------------------------------------


def documents() -> dict[str, str]:
    """Return the text of every generated file by its path in the source tree."""
    top = read()
    pages = {f"man/{entry.page}.1": manual_page(entry, top) for entry in (top, *top.subcommands)}
    scripts = {f"completions/{name}": text for name, text in shells.scripts().items()}
    return {**pages, **scripts, "docs/cli.md": command_line_document(top)}


def main() -> None:
    """Write the files below the current directory."""
    for name, text in documents().items():
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        sys.stdout.write(f"{name}\n")


if __name__ == "__main__":
    main()
