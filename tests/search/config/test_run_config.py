"""A configuration file says what a run shall do: it is written with its meaning, and read with its mistakes."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.config.file import config_text, configured
from search.config.groups import DEFAULT_RANK, Group
from search.config.run_config import GROUPS, OF_NEW_STUDIES, SETTINGS, RunConfig
from search.config.yaml_file import read_yaml
from search.errors import ConfigError
from search.proposers.catalogue import PORTFOLIO_NAME, PROPOSERS

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def to_file(text: str) -> Path:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return path

    return to_file


def test_the_file_that_is_written_loads_back_to_the_defaults(write: Write) -> None:
    path = write(config_text())
    assert configured(path, {}) == RunConfig()
    # The number of cores is that of the machine that reads it.
    assert set(yaml.safe_load(path.read_text())) == {"version", *OF_NEW_STUDIES} - {"workers"}


def test_the_file_that_is_written_says_what_every_field_means() -> None:
    lines = config_text().splitlines()
    text = " ".join(line.removeprefix("# ") for line in lines)
    assert str(RunConfig.model_fields["version"].description) in text
    assert all(SETTINGS[field].description in text for field in OF_NEW_STUDIES)
    for field in ("version", *OF_NEW_STUDIES):
        assert sum(line.removeprefix("# ").startswith(f"{field}: ") for line in lines) == 1
    assert all(len(line) <= 100 for line in lines)
    assert all(name in SETTINGS["sampler"].description for name in (PORTFOLIO_NAME, *PROPOSERS))


def test_every_field_is_documented_where_it_is_defined() -> None:
    """Without the source, pydantic would find no descriptions."""
    documented: list[str] = []
    for group in (Group, *GROUPS):
        [definition] = [node for node in ast.parse(inspect.getsource(group)).body if isinstance(node, ast.ClassDef)]
        documented += [
            field.target.id
            for field, text in zip(definition.body, definition.body[1:], strict=False)
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr)
        ]
    assert documented == list(RunConfig.model_fields) == ["version", *SETTINGS]


def test_a_file_gives_what_it_names_and_leaves_the_rest(write: Write) -> None:
    config = configured(write("trials: 12\nfidelities: [0.25, 1]\nmin_retention: 0.99\ndense_blocks: [0, -1]\n"), {})
    given = {"trials": 12, "fidelities": (0.25, 1.0), "min_retention": 0.99, "dense_blocks": (0, -1)}
    assert config == RunConfig(**given)  # type: ignore[arg-type]
    assert configured(write(""), {}) == configured(write("# nothing\n"), {}) == RunConfig()


def test_options_override_the_file_and_nothing_else(write: Write) -> None:
    path = write("trials: 12\nseed: 3\ndeterministic: true\n")
    assert configured(path, {"trials": 20, "deterministic": False}) == RunConfig(trials=20, seed=3)


def test_paths_begin_at_the_folder_of_the_file(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models/small").mkdir(parents=True)
    path = write("model: models/small\ndata: train.jsonl\nout: ../results\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    config = configured(Path("../run.yaml"), {})
    assert config.model == str(tmp_path / "models/small")
    assert config.data == str(tmp_path / "train.jsonl")
    assert config.out == str(tmp_path.parent / "results") and config.folder("one") == tmp_path.parent / "results"
    # An id is no path, and neither is the demo.
    plain = configured(write("model: some/model\ndata: demo\n"), {})
    assert (plain.model, plain.data, plain.folder("one")) == ("some/model", "demo", Path("ftp-out/one"))
    assert configured(path, {"data": "/elsewhere/mine.jsonl"}).data == "/elsewhere/mine.jsonl"


WRONG: list[tuple[str, str]] = [
    ("trials: 300\ntrails: 3\n", "run.yaml, line 2: trails is unknown: did you mean trials?"),
    ("target-sparsity: 0.3\n", "line 1: target-sparsity is unknown: did you mean target_sparsity?"),
    ("flavour: blue\n", "line 1: flavour is unknown: expected one of version, model, revision"),
    ("\nseed: 1\n\nseed: 2\n", "run.yaml, line 4: 'seed' is given a second time"),
    ("trials: 0\n", "run.yaml, line 1: trials is 0: expected a number greater than or equal to 1."),
    ("trials: many\n", "line 1: trials is 'many': expected a whole number."),
    ("trials: 1.5\n", "line 1: trials is 1.5: expected a whole number."),
    ("trials: yes\n", "line 1: trials is True: expected a number or text"),
    ("seed:\n", "line 1: seed is None: expected a whole number."),
    ("target_sparsity: high\n", "line 1: target_sparsity is 'high': expected a number."),
    ("model: 7\n", "line 1: model is 7: expected text."),
    ("sampler: off\n", "line 1: sampler is False: expected a number or text (put words such as no and"),
    ("sampler: genius\n", "line 1: sampler is 'genius': No proposer is called 'genius': expected one of portfolio"),
    ("deterministic: 3\n", "line 1: deterministic is 3: expected true or false."),
    ("dense_blocks: 0\n", "line 1: dense_blocks is 0: expected a list."),
    ("dense_blocks:\n- 0\n- first\n", "line 1: dense_blocks is 'first': expected a whole number."),
    ("cost: money\n", "line 1: cost is 'money': expected one of 'latency_ms', 'flops' or 'kv_bytes'."),
    ("export: all\n", "line 1: export is 'all': expected one of 'reference', 'full' or 'none'."),
    ("pruner: median\ndeterministic: true\n", "--pruner median decides by what has ended so far"),
    ("data: ~no-such-user/x.jsonl\n", "line 1: data is '~no-such-user/x.jsonl'"),
    ("version: 2\n", "line 1: version is 2, and this program reads 1"),
    ("trials: 3: 4\n", "run.yaml, line 1: mapping values are not allowed here."),
    ("trials: [1\n", "run.yaml, line 2:"),
    ("model: !!python/object/apply:os.system [ls]\n", "line 1: could not determine a constructor"),
    ("model: &a {b: *a}\n", "line 1: a reference to another value: write the value itself."),
    ("trials: 3\n---\nseed: 1\n", "expected a single document"),
    ("- trials: 3\n", "run.yaml holds no settings: expected one in each line, such as 'trials: 300'."),
    ("3: 4\n", "holds no settings"),
    ("trials", "holds no settings"),
    ("trials: \x07\n", "run.yaml is no YAML"),
]


@pytest.mark.parametrize(("text", "words"), WRONG, ids=[text.strip().replace("\n", " | ") for text, _ in WRONG])
def test_a_mistake_is_shown_with_its_place_and_what_is_expected(write: Write, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(write(text), {})
    assert words in " ".join(str(caught.value).split())


def test_a_mistake_on_the_command_line_names_the_option(write: Write) -> None:
    with pytest.raises(ConfigError, match=r"^--seed is -1: expected a number greater than or equal to 0\.$"):
        configured(write("trials: 3\nseed: 2\n"), {"seed": -1})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    for name, words in (("nowhere.yaml", "No such file"), (".", "cannot be read"), ("latin.yaml", "utf-8")):
        with pytest.raises(ConfigError, match=words) as caught:
            configured(tmp_path / name, {})
        assert str(tmp_path / name) in str(caught.value)


def test_what_stands_deep_in_a_file_has_its_line(write: Write) -> None:
    file = read_yaml(write("a:\n  b: 1\n  c:\n  - 2\n  - d: 3\n"))
    assert file.values == {"a": {"b": 1, "c": [2, {"d": 3}]}}
    assert file.place("a", "c", 1, "d") == f"{file.path}, line 5"
    assert file.place("a", "x") == f"{file.path}, line 1" and file.place("y") == str(file.path)
    with pytest.raises(ConfigError, match="line 3: 'b' is given a second time"):
        read_yaml(write("a:\n  b: 1\n  b: 2\n"))


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({}, []),
        ({"rounds": 0, "refine_trials": 10, "router_steps": 9}, ["--refine-trials", "--router-steps"]),
        ({"rounds": 0, "router_trials": 0}, []),
        ({"router": "hidden", "router_trials": 9}, ["--router-trials"]),
        ({"router": "one-pass", "router_trials": 9}, ["--router-trials"]),
        ({"pruner": "asha"}, ["--pruner"]),
        ({"fewshot": 2, "columns": "prompt=a,completion=b"}, ["--fewshot", "--columns"]),
        ({"fewshot": 2, "columns": "prompt=a,completion=b", "data": "a.csv", "test_data": "task:piqa"}, []),
        ({"pruner": "asha", "fidelities": (0.25, 1.0)}, []),
        ({"gpu_share": 0.5}, []),
        ({"gpu_share": 0.5, "device": "cpu"}, ["--gpu-share"]),
        ({"cost": "flops", "profile_seconds": 9.0}, ["--profile-seconds"]),
        ({"cost": "flops", "profile_seconds": 9.0, "max_latency_ms": 9.0}, []),
        ({"keys": "fitted"}, ["--keys"]),
        ({"keys": "fitted", "kv": "keep"}, []),
        ({"keys": "own"}, []),
        # The defaults: a file that lists all settings asks for nothing by it.
        ({"rounds": 0, "refine_trials": 150, "cost": "flops", "profile_seconds": 60.0}, []),
    ],
)
def test_a_setting_that_another_one_makes_useless_is_named(given: dict[str, Any], named: list[str]) -> None:
    said = RunConfig.checked(**given).without_effect
    assert [line.split()[0] for line in said] == named and all("no effect: " in line for line in said)


def test_a_run_has_one_target_at_most() -> None:
    with pytest.raises(ConfigError, match="--target-sparsity and --target-speedup are all given: expected one target"):
        RunConfig.checked(target_sparsity=0.3, target_speedup=1.3)
    assert RunConfig.checked(target_speedup=1.3, cost="flops").predicts_latency
    assert str(RunConfig.checked(target_flops_saved=0.25).target) == "25 % of FLOPs saved"


def test_data_may_be_a_list_and_names_its_sources_by_where_the_file_lies(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("data: [2:a.jsonl, self, 'hf:org/set:one']\ntest_data: ./b.csv\n")
    config = configured(path, {})
    assert config.data == f"2:{tmp_path.resolve()}/a.jsonl + self + hf:org/set:one"
    assert config.test_data == f"{tmp_path.resolve()}/b.csv"
    path.write_text("data: 'a.jsonl + '\n")
    with pytest.raises(ConfigError, match=r"run\.yaml, line 1: data is .*empty source"):
        configured(path, {})
    assert RunConfig(data=["a.jsonl", "demo"], workers=1).data == "a.jsonl + demo"  # type: ignore[arg-type]
    for wrong in ({"data": ""}, {"data": "hf:.."}, {"columns": "q=a"}, {"test_data": "0:a"}):
        with pytest.raises(ConfigError, match="expected|names an empty"):
            RunConfig.checked(workers=1, **wrong)


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({}, ("block", "drop")),
        ({"target_sparsity": 0.3}, ("block", "drop")),
        ({"target_flops_saved": 0.3}, ("half", "keep")),
        ({"target_speedup": 1.3}, ("half", "keep")),
        ({"target_speedup": 1.3, "granularity": "block"}, ("block", "keep")),
        ({"target_flops_saved": 0.3, "granularity": "auto", "kv": "drop"}, ("half", "drop")),
    ],
)
def test_at_a_target_of_cost_halves_with_kept_keys_skip_unless_another_kind_is_asked_for(
    given: dict[str, Any], kind: tuple[str, str]
) -> None:
    config = RunConfig.checked(**given)
    assert (config.granularity, config.kv) == kind
    # As it is stored, so that later defaults do not change a study.
    again = RunConfig.stored(config.model_dump())
    assert (again.granularity, again.kv) == kind
    # Tokens that skip whole blocks and leave no keys have nothing that stands in.
    assert config.substitute == again.substitute == (0 if kind == ("block", "drop") else DEFAULT_RANK)
    assert RunConfig.checked(**given, substitute=5).substitute == 5
