"""A service in this process, over a database of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from search.service.http.app import MountDashboard, create_app
from search.service.rules.settings import ServiceSettings
from studies.service.service_store import ServiceStore
from studies.service.tokens import Role

HERE = "http://127.0.0.1:8000"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ServiceStore]:
    with ServiceStore(f"sqlite:///{tmp_path / 'studies.db'}") as store:
        yield store


@pytest.fixture
def settings(tmp_path: Path) -> ServiceSettings:
    (tmp_path / "root").mkdir()
    return ServiceSettings(out=tmp_path / "out", roots=((tmp_path / "root").resolve(),), stream_s=5.0)


MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client(store: ServiceStore, settings: ServiceSettings) -> MakeClient:
    """A client of a service whose settings differ as given."""

    def make(base_url: str = HERE, dashboard: MountDashboard | None = None, **changes: object) -> TestClient:
        app = create_app(store, replace(settings, **changes), dashboard)  # type: ignore[arg-type]
        return TestClient(app, base_url=base_url, follow_redirects=False)

    return make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    """A client on the same machine, while there is no token."""
    return make_client()


@pytest.fixture
def editor(store: ServiceStore) -> dict[str, str]:
    return {"Authorization": f"Bearer {store.tokens.add('ada', Role.EDITOR)}"}


@pytest.fixture
def reader(store: ServiceStore) -> dict[str, str]:
    return {"Authorization": f"Bearer {store.tokens.add('bob', Role.READER)}"}
