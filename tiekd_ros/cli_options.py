"""What the verbs of the `tiekd` command have in common."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console

State = Annotated[
    str, typer.Option("--state", help="State folder.", show_default="$XDG_STATE_HOME/tiekd")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program to read.")]

console = Console()
