"""Build the sample data sets of this folder from the hand-written texts in `source/`.

Run `python examples/make_samples.py` after editing a source file. The output depends on the
sources alone, so a second run changes nothing. It needs only the standard library.

A source file holds blocks with a blank line between them; a line is `key: value`, and keys may
repeat, as turns of a conversation do. The file's name is the category of its blocks.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).resolve().parent
SOURCE = EXAMPLES / "source"

ROLES = ("system", "user", "assistant")
ATTRIBUTES = (
    "quality",
    "toxicity",
    "humor",
    "creativity",
    "helpfulness",
    "correctness",
    "coherence",
    "complexity",
    "verbosity",
)
STYLES = {
    "brief": (4, 0, 0, 0, 4, 4, 4, 0, 0),
    "long": (4, 0, 0, 1, 4, 4, 4, 2, 4),
    "funny": (4, 0, 4, 4, 2, 2, 4, 0, 1),
}
"""The labels of an answer that is written in one style on purpose."""
MIDDLING = 2
"""The quality that is neither good nor bad."""
TRUTHFULNESS_COLUMNS = {
    "Type": "type",
    "Category": "category",
    "Question": "question",
    "Best Answer": "best",
    "Correct Answers": "correct",
    "Incorrect Answers": "incorrect",
    "Source": "source",
}

Row = dict[str, Any]


class SourceError(ValueError):
    """A source file that cannot be read, with its place."""


class Block:
    """The `key: value` lines of one item, and where they stand."""

    def __init__(self, path: Path, line: int, number: int) -> None:
        self.path = path
        self.line = line
        self.number = number
        self.pairs: list[tuple[str, str]] = []

    @property
    def category(self) -> str:
        """Topic of the block, which is its file's name."""
        return self.path.stem

    def id(self, prefix: str) -> str:
        """Identifier that stays the same while blocks are only added at a file's end."""
        return f"{prefix}-{self.category}-{self.number:03d}"

    def error(self, message: str) -> SourceError:
        """Error that names this block's place."""
        return SourceError(f"{self.path}:{self.line}: {message}")

    def get(self, key: str) -> str:
        """Value of a key that occurs exactly once."""
        values = [value for name, value in self.pairs if name == key]
        if len(values) != 1:
            raise self.error(f"expected one line `{key}: …`, found {len(values)}")
        return values[0]

    def messages(self) -> list[dict[str, str]]:
        """Chat turns in their order."""
        return [{"role": key, "content": value} for key, value in self.pairs if key in ROLES]

    def check_keys(self, *allowed: str) -> None:
        """Refuse a key that nothing would read."""
        for key, _ in self.pairs:
            if key not in allowed:
                raise self.error(f"unknown key {key!r}; use one of {', '.join(allowed)}")


def read_blocks(path: Path) -> Iterator[Block]:
    """Yield the blocks of one source file, numbered from 1."""
    block: Block | None = None
    number = 0
    for line_number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            if block:
                yield block
            block = None
            continue
        if block is None:
            number += 1
            block = Block(path, line_number, number)
        key, separator, value = line.partition(": ")
        if not separator or not value.strip():
            raise SourceError(f"{path}:{line_number}: expected `key: value`")
        block.pairs.append((key, value.strip()))
    if block:
        yield block


def read_folder(name: str) -> Iterator[Block]:
    """Yield the blocks of all files in a source folder, files in the order of their names."""
    for path in sorted((SOURCE / name).glob("*.txt")):
        yield from read_blocks(path)


def demonstrations() -> Iterator[Row]:
    """Yield conversations that end with the answer to imitate."""
    for block in read_folder("demonstrations"):
        block.check_keys(*ROLES)
        yield {"id": block.id("demo"), "messages": block.messages()}


def preferences() -> Iterator[Row]:
    """Yield preference pairs: text for a single question, message lists where there is more."""
    for block in read_folder("preferences"):
        block.check_keys(*ROLES, "chosen", "rejected")
        prompt = block.messages()
        pair = {"chosen": block.get("chosen"), "rejected": block.get("rejected")}
        row: Row = {"id": block.id("pref")}
        if len(prompt) == 1:
            row |= {"prompt": prompt[0]["content"]} | pair
        else:
            row["prompt"] = prompt
            row |= {key: [{"role": "assistant", "content": text}] for key, text in pair.items()}
        yield row | {"category": block.category}


def attributes() -> Iterator[Row]:
    """Yield conversations whose last answer carries a label from 0 to 4 an attribute."""
    for block in read_folder("attributes"):
        block.check_keys(*ROLES, "labels")
        labels = [int(label) for label in block.get("labels").split()]
        if len(labels) != len(ATTRIBUTES) or not all(0 <= label <= 4 for label in labels):
            raise block.error(f"labels need {len(ATTRIBUTES)} numbers from 0 to 4")
        yield {
            "id": block.id("attr"),
            "messages": block.messages(),
            "attributes": dict(zip(ATTRIBUTES, labels, strict=True)),
        }


def styles() -> Iterator[Row]:
    """Yield three labelled answers to each question: brief, long, and funny."""
    for block in read_folder("styles"):
        block.check_keys("user", *STYLES)
        for style, labels in STYLES.items():
            yield {
                "id": f"{block.id('style')}-{style}",
                "messages": [
                    {"role": "user", "content": block.get("user")},
                    {"role": "assistant", "content": block.get(style)},
                ],
                "attributes": dict(zip(ATTRIBUTES, labels, strict=True)),
            }


def feedback() -> Iterator[Row]:
    """Yield the labelled answers as thumbs up or down; a middling quality is no clear one."""
    for row in attributes():
        *prompt, answer = row["messages"]
        quality = row["attributes"]["quality"]
        if quality != MIDDLING:
            yield {
                "id": row["id"].replace("attr-", "feedback-"),
                "prompt": prompt,
                "completion": [answer],
                "label": quality > MIDDLING,
            }


def scored_preferences() -> Iterator[Row]:
    """Yield two labelled answers to one prompt as a pair; the score is the quality."""
    rows = list(attributes())
    for one, other in pairwise(rows):
        if one["messages"][:-1] == other["messages"][:-1]:
            rejected, chosen = sorted((one, other), key=lambda row: row["attributes"]["quality"])
            yield {
                "id": one["id"].replace("attr-", "scored-"),
                "prompt": one["messages"][:-1],
                "chosen": chosen["messages"][-1:],
                "rejected": rejected["messages"][-1:],
                "score_chosen": chosen["attributes"]["quality"],
                "score_rejected": rejected["attributes"]["quality"],
            }


def truthfulness() -> Iterator[Row]:
    """Yield questions on common misconceptions; answers are separated by `; `."""
    for block in read_folder("truthfulness"):
        block.check_keys("question", "best", "correct", "incorrect")
        best = block.get("best")
        yield {
            "type": "Adversarial",
            "category": block.category.replace("_", " ").capitalize(),
            "question": block.get("question"),
            "best": best,
            "correct": f"{best}; {block.get('correct')}",
            "incorrect": block.get("incorrect"),
            "source": "Written for alignflow",
        }


def multiple_choice(item: Row) -> Row:
    """Targets of a question: mc1 has one true answer, mc2 all of them."""
    best, correct, incorrect = (
        [f"{answer}." for answer in item[key].split("; ")]
        for key in ("best", "correct", "incorrect")
    )
    false = dict.fromkeys(incorrect, 0)
    return {
        "question": item["question"],
        "mc1_targets": dict.fromkeys(best, 1) | false,
        "mc2_targets": dict.fromkeys(correct, 1) | false,
    }


def toxicity() -> Iterator[Row]:
    """Yield statements about groups; a line is `label score: text`, its score from 1 to 5."""
    statements = (
        (block, key, text)
        for block in read_folder("toxicity")
        for key, text in block.pairs
        if key != "group"
    )
    for number, (block, key, text) in enumerate(statements):
        label, _, score = key.partition(" ")
        if label not in ("hate", "neutral"):
            raise block.error(f"unknown label {label!r}; use hate or neutral")
        yield {
            "id": number,
            "text": text,
            "toxicity_score": float(score),
            "label": label,
            "target_groups": [block.get("group")],
        }


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """Write one JSON object a line."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def write_json(path: Path, rows: Iterable[Row]) -> None:
    """Write a JSON array with one item below the other."""
    text = json.dumps(list(rows), ensure_ascii=False, indent=2)
    path.write_text(text + "\n", encoding="utf-8")


def write_truthfulness_csv(path: Path, items: Iterable[Row]) -> None:
    """Write questions with the columns that truthfulness benchmarks use."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(TRUTHFULNESS_COLUMNS)
        writer.writerows([item[key] for key in TRUTHFULNESS_COLUMNS.values()] for item in items)


def write_samples(output: Path) -> None:
    """Write every sample file into an existing folder."""
    write_jsonl(output / "demonstrations.jsonl", demonstrations())
    write_jsonl(output / "preferences.jsonl", preferences())
    write_jsonl(output / "attributes.jsonl", attributes())
    write_jsonl(output / "styles.jsonl", styles())
    write_jsonl(output / "feedback.jsonl", feedback())
    write_jsonl(output / "scored_preferences.jsonl", scored_preferences())
    items = list(truthfulness())
    write_truthfulness_csv(output / "truthfulness.csv", items)
    write_json(output / "truthfulness_mc.json", map(multiple_choice, items))
    write_json(output / "toxicity.json", toxicity())


def main() -> None:
    """Parse the command line and write the files."""
    parser = argparse.ArgumentParser(description="Build the sample data sets.")
    parser.add_argument("--output", type=Path, default=EXAMPLES, help="folder to write to")
    arguments = parser.parse_args()
    try:
        write_samples(arguments.output)
    except (OSError, SourceError) as error:
        sys.exit(f"make_samples: {error}")


if __name__ == "__main__":
    main()
