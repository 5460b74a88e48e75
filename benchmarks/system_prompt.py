"""What protecting the system turn of chats is worth: KL of equal schedules with and without it, static router.

The questions are those of a file in Alpaca's form without an input, rendered with the model's chat template behind one
system prompt; the completions are the file's answers. "first blocks dense" skips nothing in the first two blocks, and
as much more in the others.

python benchmarks/system_prompt.py --model DIR --data alpaca.jsonl
"""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from ftp_core.loading.models import load_model
from ftp_core.quality.quality import QualitySet
from ftp_core.routers import StaticRouter
from ftp_core.schedule import SparsitySchedule
from ftp_core.text.data import Example
from ftp_core.text.encoding import encode
from search.inputs.protection import n_protected_tokens

SYSTEM = (
    "You are the assistant of a public library. Answer in one or two plain sentences, name no prices, and begin every "
    "answer with the words: Dear reader."
)


def chats(path, tokenizer, n_items):
    """The first questions of a file that come without an input, as chats."""
    found = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if not row.get("input"):
            turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": row["instruction"]}]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            found.append(Example(prompt, row["output"]))
    return found[:n_items]


def schedules(n_blocks, sparsity):
    """Two schedules of an overall sparsity, by name."""
    share = sparsity * n_blocks / (n_blocks - 2)
    return {
        "uniform": SparsitySchedule.uniform(sparsity, n_blocks),
        "first blocks dense": SparsitySchedule([0.0, 0.0] + [share] * (n_blocks - 2)),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="with a chat template")
    parser.add_argument("--data", type=Path, required=True, help="in Alpaca's form")
    parser.add_argument("--items", type=int, default=32)
    parser.add_argument("--completion-tokens", type=int, default=64)
    parser.add_argument("--sparsities", default="0.1,0.3,0.5")
    parser.add_argument("--json", type=Path, default=Path("system_prompt.json"))
    options = parser.parse_args()
    loaded = load_model(options.model)
    examples = chats(options.data, loaded.tokenizer, options.items)
    n_first = n_protected_tokens("system", loaded.tokenizer, [example.prompt for example in examples])
    encoded = encode(loaded.tokenizer, examples, loaded.skipping.context, options.completion_tokens)
    lengths = sorted(len(example.prompt) for example in encoded)
    sets = {keep_first: QualitySet(loaded.skipping.protecting(keep_first), encoded, 8) for keep_first in (0, n_first)}
    table = Table(title=f"{len(encoded)} chats, prompts of {lengths[0]} to {lengths[-1]} tokens, system turn {n_first}")
    for heading in ("sparsity", "schedule", "protected", "KL [95 %]", "perplexity"):
        table.add_column(heading, justify="right")
    rows = []
    for sparsity in map(float, options.sparsities.split(",")):
        for name, schedule in schedules(loaded.skipping.n_blocks, sparsity).items():
            for keep_first, quality_set in sets.items():
                found = quality_set.evaluate(schedule, StaticRouter(), intervals=True)
                low, high = found.kl_interval
                rows.append({"sparsity": sparsity, "schedule": name, "keep_first": keep_first, **asdict(found)})
                table.add_row(
                    f"{sparsity:.0%}",
                    name,
                    str(keep_first),
                    f"{found.kl:.3f} [{low:.3f}, {high:.3f}]",
                    f"{found.perplexity:.2f}",
                )
    Console().print(table)
    facts = {"model": options.model, "system_tokens": n_first, "prompt_tokens": lengths, "rows": rows}
    options.json.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
