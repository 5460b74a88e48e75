"""The commands `db`, `studies import` and `studies export`: a database's schema, and studies of Optuna's databases."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from optuna.storages import BaseStorage
from rich.console import Console

from search.cli.options import AsJson, Storage
from search.config.run_config import DEFAULT_STORAGE
from search.progress.progress_view import ProgressView
from studies import StorageError, StudyStorage, copy_study, open_optuna
from studies.sql.migration import current_revision, upgrade_database
from studies.sql.schema import HEAD as SCHEMA_HEAD

OptunaUrl = Annotated[str, typer.Option("--optuna", metavar="URL", help="Optuna's database (RDBStorage).")]
Name = Annotated[
    str | None, typer.Option("--name", metavar="NAME", help="Only this study.", show_default="every study")
]

db = typer.Typer(help="Show, check and upgrade the schema of a database.", no_args_is_help=True, rich_markup_mode=None)


@db.command()
def upgrade(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Upgrade a database to this program's schema, in one transaction.

    Example: ftp-search db upgrade --storage sqlite:///ftp-studies.db
    """
    with Console(stderr=True).status("upgrading the database"):
        before, after = upgrade_database(storage)
    text = f"revision {after} already" if before == after else f"upgraded from revision {before} to {after}"
    print(json.dumps({"before": before, "after": after}) if as_json else text)


@db.command()
def current(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Print the revision of a database's schema and the one that this program reads.

    Example: ftp-search db current
    """
    revision = current_revision(storage)
    text = f"revision {revision}, this program reads {SCHEMA_HEAD}"
    print(json.dumps({"current": revision, "head": SCHEMA_HEAD}) if as_json else text)


@db.command()
def check(storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False) -> None:
    """Fail unless this program can read the database.

    Example: ftp-search db check && ftp-search resume mine
    """
    revision = current_revision(storage)
    # Opening it raises an error that says what is wrong and what to do.
    StudyStorage(storage, create=False).close()
    print(json.dumps({"current": revision, "head": SCHEMA_HEAD}) if as_json else f"revision {revision}: up to date")


def import_studies(
    optuna: OptunaUrl, name: Name = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False
) -> None:
    """Copy studies from an Optuna database into this program's, where Optuna's tools read them through `StudyStorage`.

    Studies that `studies export` wrote can be resumed. Others have no model, data or settings: they can be listed,
    shown and deleted.

    Example: ftp-search studies import --optuna sqlite:///optuna.db
    """
    _copy(open_optuna(optuna, create=False), StudyStorage(storage), name, as_json)


def export_studies(
    optuna: OptunaUrl, name: Name = None, storage: Storage = DEFAULT_STORAGE, as_json: AsJson = False
) -> None:
    """Copy studies into an Optuna database; missing tables are created.

    Example: ftp-search studies export --optuna sqlite:///optuna.db --name mine
    """
    _copy(StudyStorage(storage, create=False), open_optuna(optuna), name, as_json)


def _copy(source: BaseStorage, target: BaseStorage, name: str | None, as_json: bool) -> None:
    totals = {study.study_name: source.get_n_trials(study._study_id) for study in source.get_all_studies()}
    names = [name] if name is not None else list(totals)
    if not names:
        raise StorageError("There is no study to copy.")
    view = ProgressView(Console(stderr=True, markup=False))
    copied = {}
    for one in names:
        with view.stage(f"Copying {one}", totals.get(one, 0)) as stage:
            copied[one] = copy_study(source, target, one, stage.advance)
    text = "\n".join(f"copied {one}: {n} trials" for one, n in copied.items())
    print(json.dumps({"copied": copied}) if as_json else text)
