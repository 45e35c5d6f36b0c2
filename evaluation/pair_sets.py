"""Sets of preference pairs made to judge reward models by, such as HHH alignment.

HHH alignment (arXiv:2112.00861, appendix C) holds pairs of an answer that is helpful, honest or
harmless and one that is less so. Pairs of other sets are read if they have the same fields.
"""

from pathlib import Path
from typing import Any

from alignflow.data_validation.transcripts import is_transcript, prompt_turns
from alignflow.evaluation.suites.files import Record, read_records


def read_pair_set(path: Path, limit: int | None) -> list[dict[str, Any]]:
    r"""Return the first records of a file whose items have `prompt`, `chosen` and `rejected`.

    The prompt is a text, in which `\n\nAssistant:` and `\n\nHuman:` begin further turns, or a list
    of messages; `subset` names a part of the set.

    Raises:
        DataError: Names file, item and field.
    """
    return [_pair(record) for record in read_records(path)[:limit]]


def _pair(record: Record) -> dict[str, Any]:
    return {
        "id": f"item {record.number}",
        "prompt": _messages(record),
        "chosen": record.text("chosen"),
        "rejected": record.text("rejected"),
        "subset": record.text_or_none("subset"),
    }


def _messages(record: Record) -> list[dict[str, str]]:
    prompt = record.values.get("prompt")
    if isinstance(prompt, list):
        if not all(isinstance(message, dict) and "role" in message for message in prompt):
            raise record.error("prompt", "must be a text or a list of messages")
        return prompt
    text = record.text("prompt")
    turns = prompt_turns(text if is_transcript(text) else f"\n\nHuman: {text}")
    return [{"role": turn.role, "content": turn.content or ""} for turn in turns]
