//! `completions`: prints a shell's completion script. The scripts of bash, zsh and fish run
//! [`super::complete`] at every press of the key. The scripts of other shells list verbs and
//! switches.

use std::io::Write;

use clap::Args;
use clap_complete::Shell;

use super::command;
use super::failure::Failure;

/// Print the completion script of a shell
#[derive(Debug, Args)]
pub(super) struct Completions {
    /// The shell
    pub shell: Shell,
}

/// The script for bash. Bash splits words at `:` and `=`, and inserts only the text after the last
/// split.
const BASH: &str = r#"_blkswitch() {
    local line word words cur=${COMP_WORDS[COMP_CWORD]} head=${COMP_LINE:0:COMP_POINT}
    read -r -a words <<< "$head"
    [[ $head == *[[:space:]] ]] && words+=("")
    word=${words[${#words[@]}-1]}
    [[ $cur == : || $cur == = ]] && cur=
    COMPREPLY=()
    while IFS=$'\t' read -r line _; do
        case $line in
        :files) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -f -- "$cur") ;;
        :folders) compopt -o filenames; mapfile -t COMPREPLY < <(compgen -d -- "$cur") ;;
        *) COMPREPLY+=("${line#"${word%"$cur"}"}") ;;
        esac
    done < <("${words[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
}
complete -F _blkswitch blkswitch
"#;

const ZSH: &str = r#"#compdef blkswitch
_blkswitch() {
    local line
    local -a offered
    for line in "${(@f)$("${words[1]}" __complete -- "${(@Q)words[2,CURRENT]}" 2>/dev/null)}"; do
        case $line in
        :files*) _files ;;
        :folders*) _files -/ ;;
        ?*) offered+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}") ;;
        esac
    done
    (( $#offered )) && _describe -V blkswitch offered
}
if [ "$funcstack[1]" = "_blkswitch" ]; then
    _blkswitch "$@"
else
    compdef _blkswitch blkswitch
fi
"#;

const FISH: &str = r#"function __blkswitch_complete
    set -l words (commandline -opc)
    set -l current (commandline -ct)
    for line in ($words[1] __complete -- $words[2..-1] $current 2>/dev/null)
        switch $line
            case ':files*'
                __fish_complete_path $current
            case ':folders*'
                __fish_complete_directories $current
            case '*'
                echo $line
        end
    end
end
complete -c blkswitch -f -a '(__blkswitch_complete)'
"#;

impl Completions {
    pub(super) fn run(&self, mut out: impl Write) -> Result<(), Failure> {
        let text = match self.shell {
            Shell::Bash => BASH,
            Shell::Zsh => ZSH,
            Shell::Fish => FISH,
            shell => return Ok(out.write_all(&fixed(shell))?),
        };
        Ok(out.write_all(text.as_bytes())?)
    }
}

/// A script that knows only verbs and switches, also those without effect.
fn fixed(shell: Shell) -> Vec<u8> {
    // clap_complete panics if it cannot write, and writing to memory cannot fail.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command::command(), command::PROGRAM, &mut script);
    script
}
