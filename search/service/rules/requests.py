"""Requests that create and resume studies: fields of `RunConfig` within limits, checked as commands check them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar

from annotated_types import Le, MaxLen
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, create_model, field_validator

from ftp_core.sources.source import parse_sources
from search.config.labels import MAX_NOTE_LENGTH, MAX_TAG_LENGTH, MAX_TAGS, checked_labels
from search.config.run_config import RESUMABLE, SETTINGS, SUBMITTABLE, RunConfig
from search.config.study_name import MAX_NAME_LENGTH, checked_study_name, normalised
from search.errors import ConfigError
from search.inputs.examples import read_examples
from search.pipeline.resume_settings import check_changes
from search.proposers.catalogue import check_shipped
from search.service.rules.problems import in_fields
from search.service.rules.roots import check_makeable, checked_data, checked_model, checked_out, confined
from search.service.rules.settings import ServiceSettings
from studies import StudyRecord, StudyStore, Trial
from studies.records.compared import Match
from studies.records.labels import Labels

Tags = Annotated[list[Annotated[str, MaxLen(MAX_TAG_LENGTH)]], MaxLen(MAX_TAGS)]
Note = Annotated[str, MaxLen(MAX_NOTE_LENGTH)]
# Larger data is checked by the runner alone.
_MAX_CHECKED_BYTES = 64 * 2**20


# Characters of somebody's own prompt, and tokens of an answer to it.
MAX_PROMPT = 200_000
DEFAULT_NEW_TOKENS, MAX_NEW_TOKENS = 32, 512
# Methods, budgets, seeds and shapes of a comparison.
MAX_METHODS, MAX_BUDGETS, MAX_SEEDS, MAX_SHAPES = 64, 20, 20, 20


def _worded(text: str) -> str:
    if not text.strip():
        raise ValueError("expected a prompt of some words")
    return text


class _Fields(BaseModel):
    """Fields of a request; missing ones have their defaults."""

    model_config: ClassVar[ConfigDict] = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[info.field_name or ""].annotation is not bool:
            raise ValueError("expected a number or text")
        return value


class _Settings(_Fields):
    """Settings of a study."""

    def given(self) -> dict[str, Any]:
        """The settings that the request gives."""
        given = {field: getattr(self, field) for field in self.model_fields_set & SETTINGS.keys()}
        if "sampler" in given:
            # Loading any other than the program's own would execute a module that the request names.
            try:
                check_shipped(given["sampler"])
            except ConfigError as error:
                raise ConfigError(f"sampler is {given['sampler']!r}: {error}") from error
        return given


def _fields(names: Iterable[str]) -> dict[str, Any]:
    """Fields of `RunConfig` for `create_model`, within the limits of requests."""
    definitions: dict[str, Any] = {}
    for field in names:
        setting = SETTINGS[field]
        about, info = setting.about, setting.info
        limits = [Le(about.most)] if about.most is not None else []
        lengths = [MaxLen(about.longest)] if about.longest is not None else []
        own = "default" if info.default_factory is None else "default_factory"
        described = Field(description=setting.description, **{own: getattr(info, own)})
        definitions[field] = Annotated[info.annotation, *info.metadata, *limits, *lengths, described]
    return definitions


_StudySettings: Any = create_model("_StudySettings", __base__=_Settings, **_fields(SUBMITTABLE))
_ChangedSettings: Any = create_model("_ChangedSettings", __base__=_Settings, **_fields(RESUMABLE))


class StudyRequest(_StudySettings):
    """A new study: its name and settings, which `ftp-search config` describes."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"name": "mine", "trials": 500, "cost": "flops", "target_flops_saved": 0.3, "tags": ["paper"]}
        }
    )

    name: Annotated[str, AfterValidator(normalised)] = Field(
        min_length=1, max_length=MAX_NAME_LENGTH, description="Unique in the service."
    )
    tags: Tags = Field([], description="Short texts to find it by.")
    note: Note = Field("", description="Note on it.")

    def labels(self) -> Labels:
        """The labels that the request gives, checked and normalised."""
        return checked_labels(self.tags, self.note)


class LabelsRequest(BaseModel):
    """Labels of a study that change; others stay."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"example": {"tags": ["paper", "1B"]}})

    tags: Tags = Field([], description="All tags that it has from now on.")
    note: Note = Field("", description="Note that it has from now on; empty for none.")

    def given(self) -> dict[str, Any]:
        """The labels that the request gives, checked and normalised."""
        labels = checked_labels(self.tags, self.note)
        return {field: getattr(labels, field) for field in self.model_fields_set}


class ResumeRequest(_ChangedSettings):
    """Settings of a study that change as it is resumed."""

    model_config = ConfigDict(json_schema_extra={"example": {"trials": 1000, "also_measure": [57]}})


class ComparisonRequest(_Fields):
    """Other methods that a study's schedules are compared with."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"methods": ["shortgpt", "puzzle"], "budgets": [0.15, 0.25], "match": "latency"}}
    )

    methods: Annotated[list[Annotated[str, MaxLen(64)]], MaxLen(MAX_METHODS)] | None = Field(
        None, description="Names of methods, such as `shortgpt`; null for all."
    )
    budgets: Annotated[list[float], MaxLen(MAX_BUDGETS)] | None = Field(
        None,
        description="Shares of the dense model's time, or operations, to save; null for what the selected schedule "
        "saves.",
    )
    match: Match = Field("latency", description="What is alike: measured time, or operations.")
    seeds: int = Field(3, ge=1, le=MAX_SEEDS, description="Seeds of each method with chance.")
    shapes: Annotated[list[Annotated[str, MaxLen(16)]], MaxLen(MAX_SHAPES)] = Field(
        default_factory=list, description="Further prefills to time, as rows x tokens, such as `8x2048`."
    )


class PromptRequest(BaseModel):
    """Somebody's own prompt."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"example": {"text": "Tom has the red ball. Who has it?", "new_tokens": 32}}
    )

    text: Annotated[str, AfterValidator(_worded)] = Field(max_length=MAX_PROMPT, description="The prompt.")
    new_tokens: int = Field(DEFAULT_NEW_TOKENS, ge=1, le=MAX_NEW_TOKENS, description="Most tokens of an answer.")


def checked_study(
    request: StudyRequest, store: StudyStore, settings: ServiceSettings, reads_data: bool = True
) -> tuple[RunConfig, set[str]]:
    """The configuration of a requested study, checked as far as possible without loading a model.

    Args:
        request: The request.
        store: Known studies.
        settings: Settings of the service.
        reads_data: False to check that data is there, and not what it says, which may take seconds.

    Returns:
        The configuration, and the fields that the request leaves to the runner.

    Raises:
        ConfigError: A setting or a label is out of range, or names what requests may not name.
        DataError: The data cannot be read.
        StudyNotFoundError: The study to start from does not exist.
    """
    checked_study_name(request.name)
    request.labels()
    given = request.given()
    config = RunConfig.checked(str, **given)
    paths = {"model": config.model, "data": config.data, "test_data": config.test_data, "out": config.out}
    paths |= {} if config.adapter is None else {"adapter": config.adapter}
    config = config.model_copy(update=_checked_paths(paths, request.name, settings))
    if reads_data:
        _check_examples(config)
    if config.warm_start is not None:
        if config.warm_start == request.name:
            raise ConfigError("warm_start is the new study itself: name another one.")
        if all(summary.name != config.warm_start for summary in store.studies.summaries()):
            raise ConfigError(f"warm_start is {config.warm_start!r}: there is no such study.")
    return config, {"workers"} - set(given)


def checked_changes(
    request: ResumeRequest, study: StudyRecord, trials: list[Trial], settings: ServiceSettings
) -> dict[str, Any]:
    """The settings that a request changes, checked together with the others."""
    changes = request.given()
    if changes.get("out") == study.config.get("out"):
        changes.pop("out", None)
    changes |= _checked_paths(changes, study.name, settings)
    try:
        check_changes(study, trials, RunConfig.stored(study.config, **changes), changes)
    except ConfigError as error:
        raise ConfigError(in_fields(str(error))) from error
    return changes


def check_own_folder(out: str, name: str, configurations: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuses a folder of results that is, contains or lies in another study's, symbolic links resolved.

    Configurations are those of all studies, by name.
    """
    path = _resolved(Path(out))
    for other, config in configurations.items():
        folder = _resolved(RunConfig(out=config.get("out")).folder(other))
        if other != name and (path.is_relative_to(folder) or folder.is_relative_to(path)):
            raise ConfigError(
                f"out is {str(path)!r}, and the results of study {other!r} go to {str(folder)!r}: expected a folder "
                "that neither lies in another study's nor holds it. Name another one, or delete that study."
            )


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return path.absolute()


def _checked_paths(values: Mapping[str, Any], name: str, settings: ServiceSettings) -> dict[str, str]:
    """The model, data and folder of results among values, as a study keeps them."""
    checks: dict[str, Callable[[Any], str]] = {
        "model": lambda value: checked_model(value, settings.roots, settings.hub),
        "data": lambda value: checked_data(value, settings.roots, settings.hub),
        "test_data": lambda value: value and checked_data(value, settings.roots, settings.hub, "test_data"),
        "adapter": lambda value: value and str(confined("adapter", value, settings.roots)),
        "out": lambda value: _out(value, name, settings),
    }
    return {field: check(values[field]) for field, check in checks.items() if field in values}


def _out(value: str | None, name: str, settings: ServiceSettings) -> str:
    if value is not None:
        return checked_out(value, settings.roots)
    # Files of a deleted study of this name may be there; they are replaced.
    check_makeable(settings.out / name)
    return str(settings.out / name)


def _check_examples(config: RunConfig) -> None:
    sources = parse_sources(config.data)
    paths = [Path(source.name) for source in sources if source.is_path]
    files = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    if all(source.is_path or source.kind == "demo" for source in sources) and (
        sum(file.stat().st_size for file in files) <= _MAX_CHECKED_BYTES
    ):
        read_examples(config.data, config.seed, config.sizes, config.form)
