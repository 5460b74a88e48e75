"""Makes sure that a study goes on with the model and the data that it began with, wherever they lie by now."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

from ftp_core.loading.model_source import NAMED, is_local, locate
from ftp_core.sources.source import parse_sources
from search.config.run_config import RunConfig
from search.errors import SearchError
from search.inputs.examples import ReadSource
from studies import StudyRecord

# What is hashed, for whoever wonders what has changed.
_HASHED = {
    "model": "its configuration and its weights",
    "data": "the examples of its splits, in order",
}


def check_same(study: StudyRecord, found: Mapping[str, str]) -> None:
    """Compares fingerprints of "model" and "data" with those that a study began with; one that has not begun takes any.

    Raises:
        SearchError: One of them is another.
    """
    begun_with = {"model": study.facts.model_fingerprint, "data": study.facts.data_fingerprint}
    for what, fingerprint in found.items():
        known = begun_with[what]
        if known is not None and known != fingerprint:
            raise SearchError(
                f"The {what} changed since study {study.name!r} began, or is another one: the fingerprint, a hash of "
                f"{_HASHED[what]}, was {known[:12]} and is {fingerprint[:12]}, so that trials would not compare. "
                f"Restore it, say with --{what} where the right one is, or start a new study."
            )


def check_same_elsewhere(study: StudyRecord, sources: Iterable[ReadSource]) -> None:
    """Compares other data that results are tested on with what it was when they were; another source is a new one.

    Raises:
        SearchError: A source has other examples now.
    """
    known = {source.name: source.fingerprint for source in study.facts.test_sources}
    for source in sources:
        if known.get(source.name, source.fingerprint) != source.fingerprint:
            raise SearchError(
                f"The test data {source.name} changed since study {study.name!r} was tested on it: restore it, or give "
                "it another name and say with --test-data where it is."
            )


def located(name: str, before: RunConfig, config: RunConfig, needs: Collection[str] = ("model", "data")) -> RunConfig:
    """The configuration with which a study goes on, with the place of its model as it is kept.

    A model that was on the Hub, and is on this machine now, has no revision any longer.

    Raises:
        SearchError: Model or data are not where the study has them.
        ModelError: There is no such model where it is said to be.
    """
    places = [("model", config.model)] if config.model == before.model else []
    if config.adapter is not None and config.adapter == before.adapter and "model" in needs:
        places.append(("adapter", config.adapter))
    if config.data == before.data:
        places += [("data", path) for source in parse_sources(config.data) for path in source.paths]
    if config.test_data and config.test_data == before.test_data and "data" in needs:
        places += [("test-data", path) for source in parse_sources(config.test_data) for path in source.paths]
    for what, place in places:
        if (
            (what in needs or what in ("adapter", "test-data"))
            and Path(place).is_absolute()
            and not Path(place).exists()
        ):
            raise SearchError(
                f"The {what} of study {name!r} was at {place}, where there is nothing now: restore it, or say "
                f"with --{what} where it is."
            )
    if config.model != before.model and config.revision == before.revision and is_local(config.model):
        config = config.model_copy(update={"revision": None})
    if config.model in (*NAMED, before.model):
        return config
    return config.model_copy(update={"model": locate(config.reference)})
