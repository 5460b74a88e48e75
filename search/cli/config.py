"""The command `config`: a configuration file to begin with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import Debug
from search.config_file import config_text
from search.errors import ConfigError


def config_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Where to write; standard output if not given.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
    debug: Debug = False,
) -> None:
    """Write a configuration file with every setting at its default, and what it means.

    Example: ftp-search config run.yaml && ftp-search run --config run.yaml
    """
    if file is None:
        print(config_text(), end="")
        return
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"FILE is {str(file)!r}: expected a file in a folder that exists.")
    try:
        with file.open("w" if overwrite else "x") as stream:
            stream.write(config_text())
    except FileExistsError:
        raise ConfigError(f"{file} exists already: choose another name, or replace it with --overwrite.") from None
    print(f"wrote {file}")
