"""Optuna's own tests of a storage, on both databases, and what they do not ask."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from optuna.testing.pytest_storages import StorageTestCase

from studies import StudyStorage


class TestAsOptunaTestsIt(StorageTestCase):
    @pytest.fixture
    def storage(self, database_url: str) -> Iterator[StudyStorage]:
        storage = StudyStorage(database_url)
        yield storage
        storage.close()
