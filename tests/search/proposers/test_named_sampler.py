"""Samplers that are named as `module:Class(arguments)`: read as literals, loaded, tried, and asked like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from search.config.run_config import RunConfig
from search.errors import ConfigError
from search.problem.space import ScheduleSpace
from search.problem.trial import GridIndices
from search.proposers.catalogue import check_samplers, make_proposers, proposer_names
from search.proposers.named_sampler import SamplerText, sampler_factory
from search.proposers.testing import told_of
from studies import Trial

TPE = "optuna.samplers:TPESampler(n_startup_trials=5, multivariate=True)"
NSGA = "optuna.samplers:NSGAIISampler(population_size=8)"
SPACE = ScheduleSpace(6, 0.3)

OWN = '''
from optuna.samplers import BaseSampler, RandomSampler

CALLS = []


class Timid(BaseSampler):
    """Proposes the least that it was allowed to."""

    def __init__(self, least=0, *, seed=None, constraints_func=None):
        CALLS.append((least, seed, constraints_func))
        self._least = least
        self._independent = RandomSampler(seed)

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, name, distribution):
        return self._least


class Fussy(Timid):
    def __init__(self):
        raise RuntimeError("no licence")


class NoSampler:
    pass


def factory():
    return Timid()
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own."""
    name = "own_samplers"
    (tmp_path / f"{name}.py").write_text(OWN)
    (tmp_path / "broken_samplers.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def drive(text: str, n: int, seed: int = 0, told: int = 0) -> list[GridIndices]:
    """Schedules proposed one after the other; another proposer takes over after `told` of them, and is told these."""
    proposals: list[GridIndices] = []
    [proposer] = make_proposers(text, SPACE, seed)
    for number in range(n):
        if number == told:
            [proposer] = make_proposers(text, SPACE, seed)
            for indices in proposals:
                proposer.tell(outcome(indices))
        indices = proposer.ask(number).grid_indices
        proposer.tell(outcome(indices))
        proposals.append(indices)
    return proposals


def outcome(indices: GridIndices) -> Trial:
    broken = max(0.0, (indices[-1] - 15) / 4)
    kl = sum((8 - block) * index**2 for block, index in enumerate(indices))
    return told_of(indices, (kl / 100, float(indices[0])), broken, 1.0 if sum(indices) % 5 else 0.25)


@pytest.mark.parametrize("text", [TPE, NSGA, "optuna.samplers:RandomSampler"])
def test_a_named_sampler_proposes_inside_the_space_and_resumed_goes_on_as_if_never_stopped(text: str) -> None:
    proposals = drive(text, 24)
    assert all(SPACE.contains(indices) for indices in proposals) and len(set(proposals)) > 16
    # Told of the first sixteen, it is asked for those behind them.
    assert proposals == drive(text, 24, told=16)
    assert proposals[:12] == drive(text, 12) and proposals[:12] != drive(text, 12, seed=1)


@pytest.mark.parametrize("text", [TPE, NSGA])
def test_a_named_sampler_learns_from_outcomes_of_others(text: str) -> None:
    space = ScheduleSpace(6)
    [proposer] = make_proposers(text, space, 0)
    [others] = make_proposers("random", space, 0)
    told = [others.ask(number).grid_indices for number in range(120)]
    for indices in told:
        proposer.tell(told_of(indices, (float(sum(indices)), float(sum(indices[:3])))))
    asked = [sum(proposer.ask(120 + number).grid_indices) for number in range(30)]
    assert sum(asked) / len(asked) < 0.8 * sum(map(sum, told)) / len(told)


def test_arguments_are_literals_and_commas_among_them_part_no_names() -> None:
    names = f"deap, {TPE},own.samplers:One('a, b)', [1, (2, 3)], {{'x': None}}, y=-1.5) ,tpe"
    one = "own.samplers:One('a, b)', [1, (2, 3)], {'x': None}, y=-1.5)"
    assert proposer_names(names) == ("deap", TPE, one, "tpe")
    sampler = SamplerText.parse(one)
    assert (sampler.module, sampler.name) == ("own.samplers", "One")
    assert sampler.args == ("a, b)", [1, (2, 3)], {"x": None}) and sampler.kwargs == {"y": -1.5}


@pytest.mark.parametrize(
    "text",
    [
        *("a:b.c", "a:B(x", "a:B(x))", ":B", "a:", "a b:C", "B(1)", "a:B(1)(2)", "a:B()[0]", "a:B(**{})", "a:B(*[1])"),
        *("a:B(__import__('os').system('true'))", "a:B(x=open)", "a:B(x:=1)", "a:B(1) + 1", "a:B(lambda: 1)"),
        "a:B(" + "[" * 3000 + "]" * 3000 + ")",
    ],
)
def test_what_is_no_literal_is_refused_and_never_executed(text: str) -> None:
    with pytest.raises(ConfigError, match="expected module:Class"):
        proposer_names(text)


def test_the_seed_and_the_constraint_function_are_given_where_the_class_takes_them(own: str) -> None:
    sampler_factory(SamplerText.parse(f"{own}:Timid(3)"))(17)
    least, seed, constraints = sys.modules[own].CALLS[-1]
    assert (least, seed) == (3, 17) and callable(constraints)
    sampler_factory(SamplerText.parse(TPE))(17)


def test_a_sampler_of_the_users_own_proposes_what_it_says(own: str) -> None:
    [proposer] = make_proposers(f"{own}:Timid(least=4)", ScheduleSpace(3, dense_blocks=(1,)), 0)
    proposer.tell(told_of((1, 0, 2), (1.0, 2.0)))
    assert proposer.ask(1).grid_indices == (4, 0, 4)
    check_samplers(f"portfolio,{own}:Timid")


def test_a_module_in_the_working_directory_is_found_behind_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sampler_beside.py").write_text(OWN)
    (tmp_path / "fractions.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    # As the installed program has it, which does not search the working directory.
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "fractions", raising=False)
    check_samplers("sampler_beside:Timid")
    with pytest.raises(ConfigError, match="is no sampler"):
        check_samplers("fractions:Timid")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("absent_module:One", "cannot be loaded: No module named 'absent_module'. Install it, or mend the name."),
        ("broken_samplers:One", "importing broken_samplers fails: ZeroDivisionError: division by zero"),
        (
            "own_samplers:Tpe",
            r"is no sampler .* derives from optuna.samplers.BaseSampler \(Fussy, Random",
        ),
        ("own_samplers:NoSampler", "is no sampler"),
        ("own_samplers:factory", "is no sampler"),
        ("own_samplers:Timid(most=1)", "The arguments of .* are wrong: .*unexpected keyword argument 'most'"),
        ("own_samplers:Timid(1, 2)", "The arguments of .* are wrong"),
        ("own_samplers:Timid(seed=1)", "has a seed of its own: leave it out, --seed says it."),
        ("own_samplers:Fussy", "RuntimeError: no licence"),
        ("own_samplers:Timid('x')", "cannot propose schedules"),
        (
            "optuna.samplers:CmaEsSampler()",
            "cannot propose schedules, .*: ValueError: .*multi-objective",
        ),
        ("json:One", "there is none"),
    ],
)
def test_what_is_wrong_with_a_sampler_is_said_before_anything_is_evaluated(own: str, text: str, words: str) -> None:
    RunConfig(sampler=text)  # no module is loaded to look at a configuration
    with pytest.raises(ConfigError, match=words):
        check_samplers(f"deap,{text}")


def test_a_configuration_keeps_a_sampler_whose_module_is_not_there() -> None:
    stored: dict[str, Any] = RunConfig(sampler=f"deap,absent_module:One(1),{TPE}").model_dump()
    config = RunConfig.stored(stored, workers=3)
    assert config.sampler == stored["sampler"] and config.workers == 3


def test_different_texts_have_different_names_that_studies_can_keep() -> None:
    texts = [f"optuna.samplers:TPESampler(n_startup_trials={n}, n_ei_candidates=24, multivariate=True)" for n in (5, 6)]
    names = [proposer.name for proposer in make_proposers(",".join(["tpe", *texts]), SPACE, 0)]
    assert len(set(names)) == 3 and all(len(name) <= 64 for name in names) and names[0] == "tpe"
