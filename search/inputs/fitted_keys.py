"""Keys and values of skipped tokens, fitted to schedules on the calibration items of a study."""

from __future__ import annotations

from collections.abc import Sequence

from ftp_core.skipping.fitted_keys import FittedKeys, give_fitted_keys, n_batches, prompts_to_fit
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.sources.progress import Begin, unseen
from search.config.run_config import RunConfig
from search.config.study_name import resume_command
from search.errors import SearchError
from search.inputs.data import Workload
from studies import StudyStore

Prompts = Sequence[Sequence[int]]


def fits_keys(config: RunConfig) -> bool:
    """True if keys and values of tokens that skip attention are fitted to each schedule; dropped ones are not."""
    return config.keys == "fitted" and config.kv != "drop"


def calibration_prompts(config: RunConfig, workload: Workload) -> list[tuple[int, ...]]:
    """Token ids of the prompts that keys are fitted to.

    Items that schedules are evaluated on count only where there are no others: what is fitted to them does better on
    them than elsewhere.
    """
    items = workload.splits["calibration"]
    prompts = [one.prompt for one in (*items[config.search_items :], *items[: config.search_items])]
    return prompts_to_fit(workload.model.skipping, prompts)


def kept_prompts(store: StudyStore, name: str, config: RunConfig) -> list[tuple[int, ...]] | None:
    """Token ids of the prompts that a study fits keys to, as it keeps them; None if it fits none.

    Raises:
        SearchError: It keeps no prompts, as it has not begun.
    """
    if not fits_keys(config):
        return None
    kept = store.fitted_prompts.of(name)
    if not kept:
        raise SearchError(
            f"Study {name!r} fits keys of skipped tokens, but has kept no prompts for that: "
            f"`{resume_command(repr(store), name)}` keeps them."
        )
    return kept


def fit_keys(model: SkippingModel, prompts: Prompts, begin: Begin = unseen) -> None:
    """Lets keys and values of a model's skipped tokens be fitted to each schedule from now on.

    Args:
        model: The model, with what else stands in for what its tokens skip.
        prompts: Token ids of the prompts that they are fitted to.
        begin: Begins a display of progress.
    """
    with begin("Keys of calibration prompts", n_batches(prompts)) as stage:
        give_fitted_keys(model.model, FittedKeys(model, prompts, stage.advance))
