# Completion of pgrepl's commands, options and values for bash.

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
