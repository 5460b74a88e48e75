"""Generated reading comprehension: short stories of facts that get overridden, then questions about them.

A story states who is where, who holds what, and what costs how much. Later statements override earlier ones and
distractors name the same people in other roles, so the answer may stand anywhere and recency alone does not find it.
Every item is a pure function of (split, seed, index): splits never share a random stream.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

Split = Literal["train", "calibration", "validation", "test"]
Relation = Literal["location", "owner", "price"]

MIN_STATEMENTS = 8
MAX_STATEMENTS = 30
MIN_WORDS = 54
N_CHOICES = 4


def _words(text: str) -> list[str]:
    return text.split()


_NAMES = _words(
    "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Maria Noah Olga Peter Quinn Rosa Sam Tara Ugo "
    "Vera Will Xenia Yann Zoe Alice Bruno Cora Dylan Elsa Frank"
)
_PLACES = _words(
    "kitchen garden school library station museum office harbour castle forest market bakery church theatre "
    "hospital airport cellar attic stable hotel palace bridge tower farm"
)
_OBJECTS = _words(
    "lamp key book ball ring clock violin hat basket knife mirror letter bottle camera drum umbrella coin map "
    "rope candle blanket kite medal helmet"
)
_GOODS = _words("bread cheese honey butter milk rice sugar tea soup cake salt pepper jam fish wine oil")
_PRICES = [str(n) for n in range(10, 50)]
_KEYS: dict[Relation, list[str]] = {"location": _NAMES, "owner": _OBJECTS, "price": _GOODS}
_VALUES: dict[Relation, list[str]] = {"location": _PLACES, "owner": _NAMES, "price": _PRICES}

_STATEMENTS: dict[Relation, tuple[str, ...]] = {
    "location": (
        "{key} went to the {value}",
        "{key} is in the {value}",
        "{key} walked to the {value}",
        "{key} moved to the {value}",
    ),
    "owner": (
        "The {key} belongs to {value}",
        "The {key} was found by {value}",
        "The {key} is with {value}",
        "The {key} was bought by {value}",
    ),
    "price": (
        "The {key} costs {value} coins",
        "The price of the {key} is {value} coins",
        "You can buy the {key} for {value} coins",
    ),
}
_UPDATES: dict[Relation, tuple[str, ...]] = {
    "location": ("{key} left and went to the {value}", "{key} is now in the {value}"),
    "owner": ("The {key} was given to {value}", "Now the {key} belongs to {value}"),
    "price": ("Now the {key} costs {value} coins", "The price of the {key} went to {value} coins"),
}
_QUESTIONS: dict[Relation, str] = {
    "location": "Where is {key}?",
    "owner": "Who has the {key}?",
    "price": "How much does the {key} cost?",
}
_ANSWERS: dict[Relation, str] = {"location": " {value}.", "owner": " {value}.", "price": " {value} coins."}
_DISTRACTORS = (
    "{name} likes {topic}",
    "{name} talked to {other} about {topic}",
    "{name} dreamed of {topic}",
    "{other} laughed with {name}",
    "Nobody asked {name} about {topic}",
)
_TOPICS = ("music", "the weather", "old films", "the sea", "football", "history", "poetry", "cooking")
_TAILS = (
    "early in the morning",
    "late in the evening",
    "after a long walk",
    "with a big smile",
    "while it was raining",
    "before the sun went down",
    "because of the holiday",
    "as everybody could see",
)


@dataclass(frozen=True)
class Difficulty:
    """Distribution of stories; the training curriculum walks from easy to `FULL`.

    Attributes:
        lexicon: Number of words of each list in use.
        bare_questions: Share of questions that are a bare "key?" instead of a sentence.
        bare_statements: Share of statements that are bare "key value" pairs instead of sentences.
        min_statements: Fewest statements in a story.
        max_statements: Most statements in a story.
        noise: Scale, in [0, 1], of updates, distractors and adverbial tails.
    """

    lexicon: int = len(_NAMES)
    bare_questions: float = 0.0
    bare_statements: float = 0.0
    min_statements: int = MIN_STATEMENTS
    max_statements: int = MAX_STATEMENTS
    noise: float = 1.0


FULL = Difficulty()


@dataclass(frozen=True)
class Question:
    """One question about a story."""

    text: str  # text between the story and the answer
    answer: str  # the right continuation, with its leading space
    choices: tuple[str, ...]  # four continuations of one kind, the right one among them
    distance: int  # number of statements after the one that holds the answer


@dataclass(frozen=True)
class Story:
    """Statements and questions about them; `prompt(question)` is what a model reads."""

    statements: tuple[str, ...]
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The story without a question."""
        return "Story: " + " ".join(self.statements)

    def prompt(self, question: Question) -> str:
        """The story and one question, ready for the answer to follow."""
        return f"{self.text} {question.text}"


@dataclass
class _Fact:
    relation: Relation
    key: str
    value: str
    position: int
    overridden: list[str]


def _new_fact(rng: random.Random, facts: dict[str, _Fact], lexicon: int, position: int) -> _Fact | None:
    relations: list[Relation] = ["location", "owner", "price"]
    rng.shuffle(relations)
    for relation in relations:
        free = [key for key in _KEYS[relation][:lexicon] if key not in facts]
        if free:
            return _Fact(relation, rng.choice(free), rng.choice(_VALUES[relation][:lexicon]), position, [])
    return None


def _question(rng: random.Random, fact: _Fact, facts: dict[str, _Fact], level: Difficulty, last: int) -> Question:
    bare = rng.random() < level.bare_questions
    others = [v for f in facts.values() if f.relation == fact.relation for v in (f.value, *f.overridden)]
    rng.shuffle(others)
    # The hardest wrong answers first: what this fact said before, then what the story says of others.
    pool = [*fact.overridden, *others, *rng.sample(_VALUES[fact.relation][:32], N_CHOICES)]
    wrong = list(dict.fromkeys(v for v in pool if v != fact.value))[: N_CHOICES - 1]
    values = [fact.value, *wrong]
    rng.shuffle(values)
    form = _ANSWERS[fact.relation]
    text = f"{fact.key}?" if bare else f"Question: {_QUESTIONS[fact.relation].format(key=fact.key)} Answer:"
    return Question(
        text=text,
        answer=form.format(value=fact.value),
        choices=tuple(form.format(value=v) for v in values),
        distance=last - fact.position,
    )


def _lengthen(rng: random.Random, statements: list[str]) -> None:
    """Gives statements tails until the story has `MIN_WORDS` words and marks, in place."""
    plain = [i for i, s in enumerate(statements) if not s[:-1].endswith(_TAILS)]
    rng.shuffle(plain)
    while plain and len(re.findall(r"\w+|[^\w\s]", " ".join(statements))) < MIN_WORDS:
        i = plain.pop()
        statements[i] = f"{statements[i][:-1]} {rng.choice(_TAILS)}."


def make_story(split: Split, seed: int, index: int, level: Difficulty = FULL, n_questions: int = 1) -> Story:
    """Draws story `index` of a split and a seed, with up to `n_questions` questions about different facts.

    The same arguments always give the same one; streams of different splits are disjoint.
    """
    rng = random.Random(f"{split}/{seed}/{index}")
    n_statements = rng.randint(level.min_statements, level.max_statements)
    verbosity = rng.random() ** 2 * level.noise
    facts: dict[str, _Fact] = {}
    statements: list[str] = []
    for position in range(n_statements):
        bare = rng.random() < level.bare_statements
        roll = rng.random()
        fact: _Fact | None = None
        if facts and roll < 0.22 * level.noise:
            name, other = rng.sample(_NAMES[: level.lexicon], 2)
            text = rng.choice(_DISTRACTORS).format(name=name, other=other, topic=rng.choice(_TOPICS))
        else:
            if not facts or roll > 0.45 * level.noise:
                fact = _new_fact(rng, facts, level.lexicon, position)
            if fact is not None:
                facts[fact.key] = fact
                text = rng.choice(_STATEMENTS[fact.relation]).format(key=fact.key, value=fact.value)
            else:
                fact = rng.choice(list(facts.values()))
                old = fact.value
                fact.value = rng.choice([v for v in _VALUES[fact.relation][: level.lexicon] if v != old])
                fact.position = position
                fact.overridden.append(old)
                text = rng.choice(_UPDATES[fact.relation]).format(key=fact.key, value=fact.value)
            if bare:
                text = f"{fact.key} {fact.value}"
        tail = f" {rng.choice(_TAILS)}" if not bare and rng.random() < verbosity else ""
        statements.append(f"{text}{tail}.")
    if level == FULL:
        _lengthen(rng, statements)
    if n_questions == 1:
        # Ask for a drawn distance rather than a drawn fact: overridden facts would crowd the questions near the end.
        wanted = rng.randrange(n_statements)
        asked = [min(facts.values(), key=lambda fact: abs(fact.position - wanted))]
    else:
        asked = rng.sample(list(facts.values()), min(n_questions, len(facts)))
    questions = tuple(_question(rng, fact, facts, level, n_statements - 1) for fact in asked)
    return Story(tuple(statements), questions)


def stories(split: Split, seed: int = 0, level: Difficulty = FULL, start: int = 0) -> Iterator[Story]:
    """Endless stream of one-question stories of a split."""
    return (make_story(split, seed, index, level) for index in count(start))


def corpus_words() -> list[str]:
    """Every word and word group that stories are made of, for training the tokenizer."""
    templates = [t for group in (_STATEMENTS, _UPDATES) for ts in group.values() for t in ts]
    texts = [*templates, *_QUESTIONS.values(), *_ANSWERS.values(), *_DISTRACTORS]
    words = ["Question", "Answer", *(w for t in texts for w in t.split() if "{" not in w)]
    return [*words, *_NAMES, *_PLACES, *_OBJECTS, *_GOODS, *_PRICES, *" ".join((*_TOPICS, *_TAILS)).split()]
