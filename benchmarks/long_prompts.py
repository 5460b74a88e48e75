"""Writes long prompts for other benchmarks to read: tasks with examples before the question, and facts to be found.

`few_shot.jsonl` has items of ARC-easy and HellaSwag in turns, each behind as many solved ones of its task as bring it
to 300 words (400 tokens and more). `retrieval.jsonl` has passages of WikiText of that length into which a sentence
with a number is put, and asks for the number. With `router_kinds.py`, each is `--data`.

python benchmarks/long_prompts.py --data FOLDER --out FOLDER [--words 300] [--items 320] [--seed 0]
"""

import argparse
import json
import random
from pathlib import Path

TASKS = ("arc_easy", "hellaswag")
TEXT = "wikitext2-valid-300k.txt"
# Items of each task that only stand before others.
N_SOLVED = 60
THINGS = ("archive", "cellar", "harbour", "library", "museum", "observatory", "station", "tower", "vault", "workshop")


def few_shot(folder, words, n_items, rng):
    """Multiple-choice rows, as the task's own but for what stands before the question."""
    rows = {task: [json.loads(line) for line in (folder / f"{task}.jsonl").read_text().splitlines()] for task in TASKS}
    for number in range(n_items):
        own = rows[TASKS[number % len(TASKS)]]
        place = N_SOLVED + number // len(TASKS)
        if place >= len(own):
            return
        solved = rng.sample(own[:N_SOLVED], N_SOLVED)
        question = own[place]["question"]
        for one in solved:
            if len(question.split()) >= words:
                break
            question = f"{one['question']}\nAnswer: {one['choices'][one['answer']]}\n\nQuestion: {question}"
        yield own[place] | {"question": question}


def retrieval(path, words, n_items, rng):
    """Prompts with one number to find, and the number."""
    sentences = [one.strip() for one in path.read_text().replace("\n", " ").split(" . ") if len(one.split()) > 5]
    at = 0
    for _ in range(n_items):
        passage = []
        while sum(len(one.split()) for one in passage) < words:
            passage.append(sentences[at % len(sentences)])
            at += 1
        thing, number = rng.choice(THINGS), rng.randrange(1000, 10_000)
        passage.insert(rng.randrange(1, len(passage)), f"The number of the {thing} is {number}")
        prompt = (
            f"{'. '.join(passage)}.\nQuestion: What is the number of the {thing}?\nAnswer: The number of the {thing} is"
        )
        yield {"prompt": prompt, "completion": f" {number}."}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with TASK.jsonl and WikiText")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", type=int, default=300)
    parser.add_argument("--items", type=int, default=320)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    made = {
        "few_shot": few_shot(args.data, args.words, args.items, random.Random(args.seed)),
        "retrieval": retrieval(args.data / TEXT, args.words, args.items, random.Random(args.seed)),
    }
    for name, rows in made.items():
        lines = [json.dumps(row) + "\n" for row in rows]
        (args.out / f"{name}.jsonl").write_text("".join(lines))
        print(f"{args.out / name}.jsonl: {len(lines)} items")


if __name__ == "__main__":
    main()
