"""The command `config`: a configuration file to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.arguments import check_new_file
from search.cli.options import Debug, OverwriteFile
from search.config.file import config_text


def config_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; standard output if not given.")
    ] = None,
    overwrite: OverwriteFile = False,
    debug: Debug = False,
) -> None:
    """Write a configuration file with every setting at its default, and what it means.

    Example: ftp-search config run.yaml && ftp-search run --config run.yaml
    """
    if file is None:
        print(config_text(), end="")
        return
    check_new_file("FILE", file, overwrite)
    file.write_text(config_text())
    print(f"wrote {file}")
