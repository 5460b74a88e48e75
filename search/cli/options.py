"""Options that several commands share; those of settings are in `search.cli.settings`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from search.config.run_config import SETTINGS, STORAGE_VARIABLE

Storage = Annotated[str, typer.Option("--storage", metavar="URL", envvar=STORAGE_VARIABLE, help="Database of studies.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress; results and errors are still printed.")]
Track = Annotated[
    str,
    typer.Option(
        "--track",
        metavar="NAMES",
        help="Trackers to report to: mlflow, wandb, tensorboard, separated by commas.",
        show_default="none",
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the report and the pruned model.",
        show_default="as begun, or ftp-out/NAME",
    ),
]
StudyName = Annotated[str, typer.Argument(metavar="NAME", help="Name of the study.")]
Name = Annotated[str, typer.Option("--name", help="Name of the new study.")]
Model = Annotated[str, typer.Option("--model", help=SETTINGS["model"].description)]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REVISION", help=SETTINGS["revision"].description)]
Adapter = Annotated[str | None, typer.Option("--adapter", metavar="DIR", help=SETTINGS["adapter"].description)]
DeviceMap = Annotated[str | None, typer.Option("--device-map", metavar="auto", help=SETTINGS["device_map"].description)]
Tags = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="TAG", help="Tag to find the study by; may be repeated.", show_default=False),
]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="Note on the study.", show_default=False)]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="YAML file with settings, as `ftp-search config` writes it."),
]
Overwrite = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="Replace a study of this name and its results when the new one evaluates its first trial."
    ),
]
