"""The command `config`: a configuration file to begin with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from search.cli.options import Debug, OverwriteFile
from search.config.file import config_text
from search.errors import ConfigError


def config_command(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write; standard output if not given.")
    ] = None,
    overwrite: OverwriteFile = False,
    debug: Debug = False,
) -> None:
    """Write a configuration file that explains every setting and gives its default.

    Example: ftp-search config run.yaml && ftp-search run --config run.yaml
    """
    if file is None:
        print(config_text(), end="")
        return
    if file.is_dir() or not file.parent.is_dir():
        raise ConfigError(f"FILE is {str(file)!r}: expected a file in a folder that exists.")
    if not overwrite and os.path.lexists(file):
        raise ConfigError(f"{file} exists already: choose another name, or replace it with --overwrite.")
    file.write_text(config_text())
    print(f"wrote {file}")
