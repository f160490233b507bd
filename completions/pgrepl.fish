# Completion of pgrepl's commands, options and values for fish.

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
