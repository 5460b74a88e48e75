"""The two databases that studies live in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.studies.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_server(require_system_dep: Callable[[str], Path]) -> Iterator[PostgresServer]:
    server = PostgresServer(require_system_dep("initdb").parent)
    yield server
    server.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.new_database()
