"""``p2rec completion``."""

import sys
from typing import Annotated, Literal

from cyclopts import Parameter


def completion(
    shell: Annotated[Literal["bash", "zsh", "fish"], Parameter(help="Which shell.")],
    /,
) -> None:
    """Print the script with which a shell completes p2rec's commands, options and choices.

    Examples:
        p2rec completion bash > ~/.local/share/bash-completion/completions/p2rec
        p2rec completion zsh > ~/.zfunc/_p2rec
        p2rec completion fish > ~/.config/fish/completions/p2rec.fish
    """
    from flows.cli import app

    sys.stdout.write(app.generate_completion(prog_name="p2rec", shell=shell))
