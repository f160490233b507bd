"""Completion scripts for bash, zsh and fish, and the answers that they read.

The scripts pass the command line up to the cursor as it was typed, in COMP_WORDS, and read lines of ``kind<TAB>value``,
for zsh and fish with a third field that explains the value. Both sides are pgrepl's own, so that a script keeps working
with whatever version of click is installed; and click's script for bash passes the words that bash has split at ``:``
and ``=``, from which a connection string cannot be put together again.
"""

from __future__ import annotations

import os
import re
import shlex
from typing import ClassVar

import click
from click.shell_completion import CompletionItem, ShellComplete, add_completion_class, shell_complete, split_arg_string

VARIABLE = "_PGREPL_COMPLETE"

# Stands at the end of the line, so that the word at the cursor is always the last one, also when it is empty.
_CURSOR = "\0"


class _Shell(ShellComplete):
    def source(self) -> str:
        return self.source_template

    def get_completion_args(self) -> tuple[list[str], str]:
        words = split_arg_string(os.environ.get("COMP_WORDS", "") + _CURSOR)
        return words[1:-1], words[-1].removesuffix(_CURSOR)

    def format_completion(self, item: CompletionItem[str]) -> str:
        explained = [" ".join(item.help.split())] if item.help else []
        return "\t".join([item.type, item.value, *explained])


class _Bash(_Shell):
    name: ClassVar[str] = "bash"
    source_template: ClassVar[str] = r"""# Completion of pgrepl's commands, options and values for bash.

_pgrepl_completion() {
    local kind value
    COMPREPLY=()
    while IFS=$'\t' read -r kind value; do
        case $kind in
            plain) COMPREPLY+=("$value") ;;
            file) compopt -o default 2>/dev/null ;;
            dir) compopt -o dirnames 2>/dev/null ;;
        esac
    done < <(_PGREPL_COMPLETE=bash_complete COMP_WORDS="${COMP_LINE:0:COMP_POINT}" "$1" 2>/dev/null)
}

complete -o nosort -F _pgrepl_completion pgrepl 2>/dev/null || complete -F _pgrepl_completion pgrepl
"""

    def format_completion(self, item: CompletionItem[str]) -> str:
        value = item.value if item.type != "plain" or self._in_quotes() else _escaped(item.value)
        return f"{item.type}\t{value}"

    @staticmethod
    def _in_quotes() -> bool:
        """Whether a quote is open at the cursor, which bash then closes by itself."""
        try:
            shlex.split(os.environ.get("COMP_WORDS", "").rstrip("\\"))
        except ValueError:
            return True
        return False


class _Zsh(_Shell):
    name: ClassVar[str] = "zsh"
    source_template: ClassVar[str] = r"""#compdef pgrepl
# Completion of pgrepl's commands, options and values for zsh.

_pgrepl() {
    local kind value explained
    local -a plain described
    integer found=1
    local line="${words[1,CURRENT]}"
    while IFS=$'\t' read -r kind value explained; do
        case $kind in
            plain)
                if [[ -n $explained ]]; then
                    described+=("${value//:/\\:}:$explained")
                else
                    plain+=("$value")
                fi
                ;;
            file) _files && found=0 ;;
            dir) _files -/ && found=0 ;;
        esac
    done < <(_PGREPL_COMPLETE=zsh_complete COMP_WORDS="$line" ${~words[1]} 2>/dev/null)
    [[ $PREFIX == -*=* ]] && compset -P 1 '*='
    (( $#described )) && _describe -V 'pgrepl' described && found=0
    (( $#plain )) && compadd -V pgrepl -a plain && found=0
    return found
}

if [[ $funcstack[1] == _pgrepl ]]; then
    # Loaded by the first completion, for which this file itself is the function.
    _pgrepl "$@"
else
    compdef _pgrepl pgrepl
fi
"""


class _Fish(_Shell):
    name: ClassVar[str] = "fish"
    source_template: ClassVar[str] = r"""# Completion of pgrepl's commands, options and values for fish.

function _pgrepl_completion
    set -l program (commandline -op)[1]
    for line in (env _PGREPL_COMPLETE=fish_complete COMP_WORDS=(commandline -cp) $program 2>/dev/null)
        set -l part (string split -m 2 \t -- $line)
        switch $part[1]
            case plain
                string join \t -- $part[2..-1]
            case file
                __fish_complete_path $part[2]
            case dir
                __fish_complete_directories $part[2]
        end
    end
end

complete --no-files --keep-order --command pgrepl --arguments '(_pgrepl_completion)'
"""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        found = super().get_completions(args, incomplete)
        option, equals, _ = incomplete.partition("=")
        if not (equals and option.startswith("-")):
            return found
        # fish compares with the whole word.
        return [CompletionItem(f"{option}={item.value}", type=item.type, help=item.help) for item in found]


for _shell in (_Bash, _Zsh, _Fish):
    add_completion_class(_shell)


def complete(cli: click.Command, instruction: str) -> int:
    """Answer a completion script: print the completions, or for ``bash_source`` and its like the script itself."""
    return shell_complete(cli, {}, "pgrepl", VARIABLE, instruction)


def scripts() -> dict[str, str]:
    """Return the completion scripts by the name of the file that each shell looks for."""
    return {
        "pgrepl.bash": _Bash.source_template,
        "_pgrepl": _Zsh.source_template,
        "pgrepl.fish": _Fish.source_template,
    }


def _escaped(text: str) -> str:
    return re.sub(r"([^\w@%+=:,./~-])", r"\\\1", text)
