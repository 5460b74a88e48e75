"""Substitutes of skipped halves, fitted to the calibration items of a study."""

from __future__ import annotations

from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.skipping.substitutes import Substitutes, give_substitutes
from ftp_core.sources.progress import Begin, unseen
from ftp_core.training.substitution import fit_substitutes, n_passes
from search.config.run_config import RunConfig
from search.inputs.data import Workload


def uses_substitutes(config: RunConfig) -> bool:
    """True if low-rank maps stand in for halves that tokens skip; where whole blocks drop keys there are none."""
    return bool(config.substitute) and (config.granularity, config.kv) != ("block", "drop")


def substitute(config: RunConfig, workload: Workload, begin: Begin = unseen) -> None:
    """Lets maps stand in for halves that tokens of a loaded model skip, if a study uses any; they are fitted now.

    Args:
        config: Configuration of the study.
        workload: Its model, and the calibration items that they are fitted to.
        begin: Begins a display of progress.
    """
    if not uses_substitutes(config):
        return
    model, calibration = workload.model.skipping, workload.splits["calibration"]
    rank = _rank(config, model)
    with begin("Fitting substitutes of skipped halves", n_passes(model, calibration)) as stage:
        maps = fit_substitutes(model, calibration, rank, stage.advance)
    give_substitutes(model.model, maps, model.blocks)


def substitute_for_costs(config: RunConfig, model: SkippingModel) -> None:
    """Lets maps of zeros stand in, if a study uses any: blocks cost what they cost with whatever numbers.

    Args:
        config: Configuration of the study.
        model: Its model.
    """
    if uses_substitutes(config):
        width, dtype = model.model.config.hidden_size, model.model.dtype
        give_substitutes(model.model, Substitutes(model.n_blocks, width, _rank(config, model), dtype), model.blocks)


def _rank(config: RunConfig, model: SkippingModel) -> int:
    # Decided as the configuration was built.
    assert config.substitute != "auto"
    width: int = model.model.config.hidden_size
    return min(config.substitute, width)
