"""Options that many commands share."""

from __future__ import annotations

from typing import Annotated

import typer

Storage = Annotated[str, typer.Option("--storage", metavar="URL", help="Database of studies.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
