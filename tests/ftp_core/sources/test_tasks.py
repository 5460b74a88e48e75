"""Tasks of lm-evaluation-harness give the prompts and choices that lm-eval itself scores."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import lm_eval
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from ftp_core.errors import DataError
from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.sources.reading import read_source
from ftp_core.sources.source import Form, Source
from ftp_core.sources.tasks import load_tasks
from ftp_core.text.encoding import encode

CHOICES = """
task: lamps
dataset_path: json
dataset_kwargs:
  data_files:
    train: {folder}/train.json
    test: {folder}/test.json
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{q}}}}\\nAnswer:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: label
metric_list:
  - metric: acc
  - metric: acc_norm
"""
GAPS = """
task: gaps
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/gaps.json
test_split: test
output_type: multiple_choice
doc_to_text: label
doc_to_target: rest
doc_to_choice: "{{{{[before + a, before + b]}}}}"
metric_list:
  - metric: acc
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/test.json
test_split: test
output_type: generate_until
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{options[label]}}}}"
"""
NAMES = ["Anna", "Ben", "Carl", "Dora"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for split, start in (("train", 100), ("test", 0)):
        rows = [
            {"q": f"Who has lamp {n}?", "options": [*NAMES[n % 3 :], "the cat"], "label": n % 2}
            for n in range(start, start + 12)
        ]
        (tmp_path / f"{split}.json").write_text(json.dumps(rows))
    gaps = [
        {"before": f"Lamp {n} is with ", "a": "Anna", "b": "Annabel", "rest": "in the kitchen.", "label": n % 2}
        for n in range(6)
    ]
    (tmp_path / "gaps.json").write_text(json.dumps(gaps))
    for name, text in (("lamps", CHOICES), ("gaps", GAPS), ("written", WRITTEN)):
        (tmp_path / f"{name}.yaml").write_text(text.format(folder=tmp_path))
    return tmp_path


@pytest.mark.parametrize(("name", "fewshot"), [("lamps", 0), ("lamps", 2), ("gaps", 0), ("gaps", 1)])
def test_accuracy_is_what_lm_eval_itself_finds(folder: Path, name: str, fewshot: int) -> None:
    loaded = load_model("demo")
    found = load_tasks(str(folder / f"{name}.yaml"), fewshot, 0, 0, 100)
    quality = QualitySet(loaded.skipping, encode(loaded.tokenizer, found.test, loaded.skipping.context)).evaluate(
        [0.0] * loaded.skipping.n_blocks, StaticRouter(), choices=True
    )
    results = lm_eval.simple_evaluate(
        HFLM(loaded.skipping.model, tokenizer=loaded.tokenizer, batch_size=4),
        tasks=[name],
        num_fewshot=fewshot,
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        bootstrap_iters=0,
    )
    assert quality.n_choice_items == len(found.test) == (12 if name == "lamps" else 6)
    assert quality.accuracy == pytest.approx(results["results"][name]["acc,none"])
    if name == "lamps":
        assert quality.accuracy_norm == pytest.approx(results["results"][name]["acc_norm,none"])


def test_the_test_set_is_of_the_documents_that_figures_are_published_on(folder: Path) -> None:
    sizes = {"calibration": 6, "validation": 4, "test": 100}
    contents = read_source(Source("task", str(folder / "lamps.yaml")), 0, sizes, Form(fewshot=0))
    assert len(contents.splits["test"]) == 12
    assert all("lamp 1" in example.prompt and len(example.prompt) > 32 for example in contents.splits["calibration"])
    assert {example.group for example in contents.splits["test"]} == {"lamps"}
    assert "lm-eval" in contents.version
    # Without documents to train on, all sets are of the others.
    sizes = {"calibration": 2, "validation": 2, "test": 2}
    whole = read_source(Source("task", str(folder / "gaps.yaml")), 0, sizes).splits
    assert len({example for split in whole.values() for example in split}) == 6


def test_answers_to_write_are_completions(folder: Path) -> None:
    found = load_tasks(str(folder / "written.yaml"), None, 0, 0, 3)
    for example in found.test:
        n = int(example.prompt.split()[-1].removesuffix("?"))
        assert example.completion == f" {NAMES[n % 3 :][n % 2]}" and not example.choices
    # Of more documents than are needed, some are drawn.
    assert len(found.test) == 6


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("arc_eazy", "has no task 'arc_eazy': did you mean arc_easy"),
        ("/none/none.yaml", "there is no such file"),
    ],
)
def test_a_missing_task_is_an_error_that_names_it(name: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        load_tasks(name, None, 0, 1, 1)


def test_broken_tasks_say_what_is_wrong(folder: Path) -> None:
    (folder / "test.json").write_text("{")
    with pytest.raises(DataError, match="lamps.yaml cannot be loaded") as error:
        load_tasks(str(folder / "lamps.yaml"), None, 0, 1, 1)
    assert len(str(error.value).splitlines()) == 1
    (folder / "gaps.yaml").write_text(GAPS.format(folder=folder).replace("label", "nothing"))
    with pytest.raises(DataError, match="of the task gaps makes no prompt"):
        load_tasks(str(folder / "gaps.yaml"), None, 0, 1, 1)


def test_a_missing_harness_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    monkeypatch.delitem(sys.modules, "ftp_core.sources.tasks", raising=False)
    with pytest.raises(DataError, match=r"lm-evaluation-harness is missing .*'\.\[eval\]'"):
        read_source(Source("task", "arc_easy"), 0, {"test": 1})
