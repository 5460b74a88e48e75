"""Quality under schedules whose halves skip apart is that of a masked full computation."""

from __future__ import annotations

import pytest
import torch

from ftp_core.errors import ModelError, ScheduleError
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import FEATURES_OF_HALVES, DynamicRouter, Router, StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.skipping.prefixes import PrefixStore
from ftp_core.skipping.skipping_model import SkippingModel
from ftp_core.text.encoding import EncodedExample
from tests.ftp_core.slow_reference import slow_logits
from tests.ftp_core.tiny_models import tiny

HALVES = SparsitySchedule.of_halves([0.5, 0.3, 0.6], [0.3, 0.6, 0.6], [True, False, False])
EXAMPLES = [
    EncodedExample(tuple(range(2 + i, 12 + 2 * i)), ((5, 6), (7,), (8 + i, 9, 10), (11 + i,)), i % 4, True)
    for i in range(6)
]


def for_halves() -> DynamicRouter:
    router, generator = DynamicRouter(3, FEATURES_OF_HALVES), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(generator=generator)
    return router


@pytest.mark.parametrize("router", [StaticRouter(), for_halves()], ids=["static", "dynamic"])
@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox"])
def test_every_figure_is_that_of_a_masked_full_computation(name: str, router: Router) -> None:
    dense = SparsitySchedule.uniform(0.0, 3)
    kls, right, n_tokens = [], [], 0
    for item in EXAMPLES:
        prompt, totals = list(item.prompt), []
        for place, choice in enumerate(item.continuations):
            rows = []
            for schedule in (HALVES, dense):
                logits, _ = slow_logits(tiny(name), prompt, list(choice), schedule, router)
                rows.append(logits[len(prompt) - 1 : -1].log_softmax(-1))
            totals.append(float(rows[0].gather(1, torch.tensor(choice)[:, None]).sum()))
            if place == item.answer:
                kls.append(float((rows[1].exp() * (rows[1] - rows[0])).sum(-1).mean()))
                n_tokens += len(choice)
        right.append(totals.index(max(totals)) == item.answer)
    quality = QualitySet(SkippingModel(tiny(name)), EXAMPLES, batch_size=4)
    items = quality.per_item(HALVES, router)
    assert [item.kl for item in items] == pytest.approx(kls, rel=1e-3, abs=1e-5)
    assert [item.right for item in items] == right
    whole = quality.evaluate(HALVES, router, choices=True, prefixes=PrefixStore(2**26))
    assert (whole.accuracy, whole.n_tokens) == (pytest.approx(sum(right) / len(right)), n_tokens)


def test_the_numbers_of_a_schedule_with_halves_are_such_a_schedule() -> None:
    quality = QualitySet(SkippingModel(tiny()), EXAMPLES)
    assert quality.evaluate(HALVES.numbers, StaticRouter()) == quality.evaluate(HALVES, StaticRouter())


def test_what_does_not_fit_is_refused() -> None:
    quality, router = QualitySet(SkippingModel(tiny()), EXAMPLES), for_halves()
    with pytest.raises(ScheduleError, match="2 sparsities, but the model has 3 blocks"):
        quality.evaluate(SparsitySchedule.of_halves([0.5] * 2, [0.3] * 2), router)
    router.set_thresholds([0.0] * 6, HALVES)
    with pytest.raises(ModelError, match="calibrated for the schedule"):
        quality.evaluate(SparsitySchedule(HALVES.attention), router)
