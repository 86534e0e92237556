"""The completion of the command line in a shell."""

from typing import Literal

from terminal.output import terminal


def completion(shell: Literal["bash", "zsh"], /) -> int:
    """Print the completion of this command for a shell.

    For bash: eval "$(checkout completion bash)" in ~/.bashrc. For zsh: checkout completion zsh >
    ~/.zfunc/_checkout, with ~/.zfunc in fpath before compinit.

    Args:
        shell: Your shell.
    """
    from console.main import command_line

    terminal().print(command_line().generate_completion(shell=shell))
    return 0
