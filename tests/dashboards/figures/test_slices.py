"""The first objective against the sparsity of each block."""

from __future__ import annotations

import numpy as np

from dashboards.analysis.trials import Found
from dashboards.figures import slices_figure
from dashboards.figures.appearance import darkened
from studies.records.trial_columns import columns_of
from tests.dashboards import records
from tests.dashboards.figures.test_contrast import LEAST, contrast, drawn, page_of


def test_each_block_has_the_median_and_the_lowest_of_the_trials_at_each_sparsity(found: Found) -> None:
    figure = slices_figure(found)
    assert [one.text for one in figure.layout.annotations] == [f"block {number}" for number in range(records.N_BLOCKS)]
    assert len(figure.data) == 2 * records.N_BLOCKS and "sparsity of each block" in figure.layout.title.text
    kl = found.values("kl")[found.comparable]
    for block in (0, 7):
        own = np.round(found.columns.schedule[found.comparable, block].astype(float), 6)
        for trace, statistic in zip(figure.data[2 * block : 2 * block + 2], (np.median, np.min), strict=True):
            reached = np.array([statistic(kl[own == level]) for level in trace.x])
            said = [f"KL to dense {one:.4g} nats per token" for one in reached]
            assert [one.partition(",")[0] for one in trace.customdata] == said
            assert sum(int(one.split()[-2]) for one in trace.customdata) == len(kl)
            assert f"block {block}, %{{x:.0%}} of tokens" in trace.hovertemplate
            # What is too low for a logarithmic axis stands at its edge.
            is_drawn = np.isclose(trace.y, reached)
            assert is_drawn.any() and set(np.array(trace.y)[~is_drawn]) <= {min(trace.y)}


def test_slices_are_seen_on_light_and_dark_pages(found: Found) -> None:
    for figure in (slices_figure(found), darkened(slices_figure(found))):
        assert min(contrast(colour, page_of(figure)) for _, colour, _ in drawn(figure)) >= LEAST


def test_without_trials_there_is_a_reason() -> None:
    nothing = slices_figure(Found(columns_of([], 2), records.STUDY.objectives))
    assert "No trial has finished" in nothing.layout.annotations[0].text
