"""Rows of exactly so many tokens, of random words, half of each row the answer."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignflow.training.chat import ChatTokenizer
from alignflow.training.data import DEMONSTRATIONS

WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will "
    "no more if out so up said what its about than into them can only other time new some could "
    "these two may first then do any like my now over such our man me even most made after also "
    "well many must before back years where much way down should because long each just people "
    "own still take good both here "
)
"""Each is a token of its own behind a space, in every tokenizer of these models."""


def write_demonstrations(path: Path, model: Path, *, length: int, count: int) -> None:
    """Write demonstrations for SFT as JSON lines.

    Args:
        path: The file.
        model: Folder whose tokenizer and chat template count.
        length: Tokens of each row.
        count: Number of rows.

    Raises:
        SystemExit: The tokenizer doesn't take the words for one token each, or the length is less
            than what the template adds.
    """
    with path.open("w", encoding="utf-8") as file:
        for question, answer in _exchanges(ChatTokenizer.load(model), length, count):
            print(json.dumps({"messages": _messages(question, answer)}), file=file)


def write_pairs(path: Path, model: Path, *, length: int, count: int) -> None:
    """Write preference pairs, whose two rows have the same prompt; see `write_demonstrations`."""
    with path.open("w", encoding="utf-8") as file:
        for question, chosen in _exchanges(ChatTokenizer.load(model), length, count):
            words = chosen.split()
            record = {
                "prompt": question,
                "chosen": chosen,
                # The same words the other way round, as many tokens.
                "rejected": " ".join(reversed(words)),
            }
            print(json.dumps(record), file=file)


def _exchanges(chat: ChatTokenizer, length: int, count: int) -> Iterator[tuple[str, str]]:
    """Yield questions with answers that make rows of so many tokens."""
    added = _num_tokens(chat, "the", "the") - 2
    num_words = length - added
    if num_words < 4:
        raise SystemExit(f"{length} tokens: the chat template alone has {added}.")
    draw = random.Random(length)
    for _ in range(count):
        words = draw.choices(WORDS.split(), k=num_words)
        half = num_words // 2
        question, answer = " ".join(words[:half]), " ".join(words[half:])
        if (found := _num_tokens(chat, question, answer)) != length:
            raise SystemExit(f"The tokenizer makes {found} tokens of what should be {length}.")
        yield question, answer


def _num_tokens(chat: ChatTokenizer, question: str, answer: str) -> int:
    record = {"messages": _messages(question, answer)}
    (row,) = chat.tokenize(DEMONSTRATIONS.render(chat, record))
    return len(row.tokens_T)


def _messages(question: str, answer: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
