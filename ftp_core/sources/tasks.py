"""Tasks of lm-evaluation-harness as examples, with its own prompts and choices.

It is an optional dependency, imported here and by `ftp_core.harness` alone.
"""

from __future__ import annotations

import difflib
import logging
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ftp_core.errors import DataError
from ftp_core.extras import install_extra
from ftp_core.loading.model_source import one_line
from ftp_core.sources.plain_text import windows
from ftp_core.sources.progress import Begin, unseen
from ftp_core.sources.source import is_task_file
from ftp_core.text.boundary import common_length
from ftp_core.text.data import Example

try:
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise DataError(f"lm-evaluation-harness is missing ({error}): {install_extra('eval')} installs it.") from error

# By which lm-eval draws few-shot examples unless it is told otherwise (its simple_evaluate).
_FEWSHOT_SEED = 1234
# Documents are drawn before they become examples; some repeat others, or are too long for a model.
_SPARE = 2


@dataclass(frozen=True)
class TaskExamples:
    """Examples of tasks.

    Attributes:
        training: Examples of the documents that the tasks train on; none if they have none.
        test: Examples of the documents that figures are published on.
        version: Versions of the tasks and of lm-evaluation-harness.
    """

    training: list[Example]
    test: list[Example]
    version: str


def load_tasks(
    names: str, fewshot: int | None, seed: int, n_training: int, n_test: int, begin: Begin = unseen
) -> TaskExamples:
    """Examples of tasks, as many of each.

    Args:
        names: Names of tasks, groups or tags, or paths of YAML files of tasks, separated by commas.
        fewshot: Solved examples before each prompt; as many as the task itself says for None.
        seed: Seed by which documents are drawn where there are more than are needed.
        n_training: Examples wanted of documents to train on.
        n_test: Examples wanted of the others.
        begin: Shows how far work is.

    Raises:
        DataError: There is no such task, its data cannot be loaded, or it asks for what is no text with an answer.
    """
    tasks = _loaded(names.split(","), begin)
    training: list[Example] = []
    test: list[Example] = []
    with begin(f"Prompts of {names}", len(tasks)) as work:
        for name, task in tasks.items():
            each_training, each_test = (-(-_SPARE * n // len(tasks)) for n in (n_training, n_test))
            has_training = bool(task.has_training_docs())
            if not has_training:
                # All sets are of the same documents.
                each_test += each_training
            test += _examples(name, task, list(task.eval_docs), fewshot, seed, each_test)
            if has_training and n_training:
                training += _examples(name, task, list(task.training_docs()), fewshot, seed, each_training)
            work.advance(note=name)
    if training and any(not task.has_training_docs() for task in tasks.values()):
        lacking = [name for name, task in tasks.items() if not task.has_training_docs()]
        raise DataError(
            f"The tasks {', '.join(lacking)} have no data to train on, but others of task:{names} have: give them as "
            "sources of their own, as task:A + task:B."
        )
    versions = ", ".join(f"{name} {task.VERSION}" for name, task in tasks.items())
    return TaskExamples(training, test, f"{versions}; lm-eval {version('lm-eval')}")


def _loaded(names: Sequence[str], begin: Begin) -> dict[str, Any]:
    """Tasks by name."""
    for name in names:
        if is_task_file(name) and not Path(name).expanduser().is_file():
            raise DataError(f"task:{name}: there is no such file; expected a YAML file of lm-evaluation-harness.")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with begin(f"Loading task:{','.join(names)}", 1) as work:
        manager = TaskManager(include_defaults=not all(map(is_task_file, names)))
        for name in names:
            if not is_task_file(name) and name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, n=3)
                raise DataError(
                    f"lm-evaluation-harness has no task {name!r}: "
                    f"{'did you mean ' + ' or '.join(near) + '?' if near else '`lm_eval ls tasks` lists all.'}"
                )
        try:
            tasks = manager.load([str(Path(one).expanduser()) if is_task_file(one) else one for one in names])["tasks"]
        except Exception as error:  # files, templates and data sets fail each in their own way
            raise DataError(
                f"The task {','.join(names)} cannot be loaded: {one_line(error).rstrip('.')}. Its data comes "
                "from the Hugging Face Hub or the files that it names: is there a network, or are they cached?"
            ) from error
        work.advance()
    if not tasks:
        raise DataError(f"task:{','.join(names)} holds no task of lm-evaluation-harness.")
    return dict(tasks)


def _examples(
    name: str, task: Any, documents: Sequence[Any], fewshot: int | None, seed: int, wanted: int
) -> list[Example]:
    """Examples of some documents of a task, in their order."""
    drawn: Sequence[int] = range(len(documents))
    if wanted < len(documents):
        drawn = sorted(random.Random(seed).sample(drawn, wanted))
    task.set_fewshot_seed(_FEWSHOT_SEED)
    n_shots = fewshot if fewshot is not None else task.config.num_fewshot or 0
    examples: list[Example] = []
    for place in drawn:
        document = documents[place]
        try:
            examples += _of_document(name, task, document, n_shots)
        except DataError:
            raise
        except Exception as error:  # templates are code of their own
            raise DataError(
                f"Document {place} of the task {name} makes no prompt: {one_line(error).rstrip('.')}."
            ) from error
    return examples


def _of_document(name: str, task: Any, document: Any, n_shots: int) -> Iterator[Example]:
    kind = task.OUTPUT_TYPE
    if kind == "loglikelihood_rolling":
        yield from windows([str(task.doc_to_target(document))])
        return
    context = task.fewshot_context(document, n_shots, gen_prefix=task.doc_to_prefix(document))
    requests = task.construct_requests(doc=document, ctx=context, metadata=(name, 0, 1))
    if kind == "multiple_choice":
        yield _multiple_choice(name, task, document, [request.args for request in requests])
    elif kind == "loglikelihood":
        yield Example(requests.args[0], requests.args[1], group=name)
    else:
        target = task.doc_to_target(document)
        target = target[0] if isinstance(target, list) else target
        text = task.doc_to_choice(document)[target] if isinstance(target, int) else str(target)
        if not text.strip():
            raise DataError(f"The task {name} has documents without an answer: their answers are not public.")
        yield Example(context, f"{task.config.target_delimiter}{text}", group=name)


def _multiple_choice(name: str, task: Any, document: Any, pairs: Sequence[tuple[str, str]]) -> Example:
    choices = task.doc_to_choice(document)
    gold = task.doc_to_text(document) if task.multiple_input else task.doc_to_target(document)
    gold = gold[0] if isinstance(gold, list) else gold
    answer = choices.index(gold) if isinstance(gold, str) and gold in choices else int(gold)
    if not 0 <= answer < len(choices):
        raise DataError(f"The task {name} has documents without an answer: their answers are not public.")
    # Behind them may stand choices alone, for mutual information.
    pairs = pairs[: len(choices)]
    prompt, scored = pairs[0][0], ""
    if task.multiple_input:
        # Each choice has a context of its own, and the same text is scored behind all of them.
        contexts = [context for context, _ in pairs]
        scored, prompt = pairs[0][1], prompt[: common_length(min(contexts), max(contexts))]
        # Cut where a word begins.
        prompt = re.sub(r"\S+$", "", prompt)
    texts = tuple(context[len(prompt) :] + continuation for context, continuation in pairs)
    return Example(prompt, texts[answer], texts, answer, group=name, scored=scored)
