"""The forms in which rows come, brought into one: what only the raw row can tell is refused here.

Keys are matched exactly. A value that can stand in a typed frame (null, empty, out of range) is
left to the checks of the frame; a value of another type, or a key that is not there, is not.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import chain, repeat
from operator import itemgetter
from typing import Any

from alignflow.data_validation.config import DataKind
from alignflow.data_validation.drafts import (
    ASSISTANT,
    USER,
    Draft,
    Turn,
    id_of,
    number_of,
    require,
    text_of,
    turns_of,
)
from alignflow.data_validation.parsing import LONE_SURROGATE
from alignflow.data_validation.reasons import RowRefused
from alignflow.data_validation.records import Pair
from alignflow.data_validation.transcripts import (
    TRANSCRIPT_START,
    is_transcript,
    prompt_turns,
    transcript_turns,
)

Row = Mapping[str, Any]

_THREE_TEXTS = itemgetter("prompt", "chosen", "rejected")

_TREE_KEYS = ("tree", "message_tree_id", "conversation_id")
"""Under which rows name the conversation that they are a part of; the first one counts."""


def draft_row(row: Row, kind: DataKind) -> Draft:
    """Return the row in the canonical form of its kind.

    Raises:
        RowRefused: `missing_key`, `null_value`, `wrong_type`, `bad_message`, `mixed_form` or
            `prefix_mismatch`.
    """
    draft = _DRAFTERS[kind](row)
    draft.has_lone_surrogate = LONE_SURROGATE in row
    draft.tree = next((str(row[key]) for key in _TREE_KEYS if row.get(key) is not None), None)
    return draft


def pairs_of(rows: Sequence[Row]) -> list[str] | None:
    """Return the texts of preferences that are three texts each and nothing else.

    None says that a row has another form, which `pair_of` or `draft_row` has to tell.
    """
    if {*map(len, rows)} != {3}:
        return None
    try:
        texts = [*chain.from_iterable(map(_THREE_TEXTS, rows))]
    except KeyError:
        return None
    if {*map(type, texts)} != {str} or any(
        map(str.startswith, texts[::3], repeat(TRANSCRIPT_START))
    ):
        return None
    return texts


def pair_of(row: Row) -> Pair | None:
    """Return a preference of three texts as what `draft_row` would make of it, only faster.

    None says that the row has another form, which `draft_row` has to tell.

    Raises:
        RowRefused: `wrong_type`.
    """
    prompt, chosen, rejected = row.get("prompt"), row.get("chosen"), row.get("rejected")
    if not (isinstance(prompt, str) and isinstance(chosen, str) and isinstance(rejected, str)):
        return None
    if is_transcript(prompt):
        return None
    if len(row) == 3:
        return Pair(prompt, chosen, rejected)
    if "chosen_response" in row or LONE_SURROGATE in row:
        return None
    scores = _scores(row)
    return Pair(prompt, chosen, rejected, id_of(row), scores)


def _preference(row: Row) -> Draft:
    suffix = "_response" if "chosen_response" in row else ""
    chosen_key, rejected_key = f"chosen{suffix}", f"rejected{suffix}"
    require(row, chosen_key, rejected_key)
    chosen, rejected = row[chosen_key], row[rejected_key]
    scores = _scores(row)
    if isinstance(chosen, list) or isinstance(rejected, list):
        draft = _from_messages(row, chosen_key, rejected_key)
    else:
        text_of(row, chosen_key)
        text_of(row, rejected_key)
        draft = _from_texts(row, chosen, rejected)
    draft.scores = scores
    return draft


def _unpaired(row: Row) -> Draft:
    response_key = "completion" if "completion" in row else "response"
    require(row, "prompt", response_key)
    turns = _question_and_answer(row, "prompt", response_key)
    # Of two lists each is a part; of two texts the response is the last turn.
    num_prompt = len(row["prompt"]) if isinstance(row["prompt"], list) else len(turns) - 1
    parts = {"prompt": turns[:num_prompt], "response": turns[num_prompt:]}
    return Draft(id_of(row), parts, label=_label(row))


def _label(row: Row) -> bool | None:
    """Return whether a response is desirable: a `label`, or a `preference` that says `chosen`."""
    if "label" in row or "preference" not in row:
        require(row, "label")
        label = row["label"]
        if label is None or isinstance(label, bool):
            return label
        raise RowRefused("wrong_type", "label")
    preference = text_of(row, "preference")
    if preference not in ("chosen", "rejected", None):
        raise RowRefused("wrong_type", "preference: write chosen or rejected")
    return None if preference is None else preference == "chosen"


def _scores(row: Row) -> tuple[float | None, float | None]:
    return (
        _score(row, "score_chosen", "chosen_reward"),
        _score(row, "score_rejected", "rejected_reward"),
    )


def _score(row: Row, *names: str) -> float | None:
    for name in names:
        if row.get(name) is not None:
            return number_of(row[name], name)
    return None


def _from_texts(row: Row, chosen: str | None, rejected: str | None) -> Draft:
    if "prompt" not in row and is_transcript(chosen) and is_transcript(rejected):
        return _split_at_shared_prefix(
            row, transcript_turns(chosen or ""), transcript_turns(rejected or "")
        )
    require(row, "prompt")
    prompt = row["prompt"]
    if isinstance(prompt, list):
        turns_of(prompt, "prompt")
        raise RowRefused("mixed_form", "prompt")
    text = text_of(row, "prompt")
    if text is not None and is_transcript(text):
        # The white space between the last "Assistant:" and its answer belongs to the transcript.
        chosen, rejected = _stripped(chosen), _stripped(rejected)
    return _pair(row, _prompt_turns(text), [Turn(ASSISTANT, chosen)], [Turn(ASSISTANT, rejected)])


def _from_messages(row: Row, chosen_key: str, rejected_key: str) -> Draft:
    chosen = _turns(row, chosen_key)
    rejected = _turns(row, rejected_key)
    prompt = row.get("prompt")
    if isinstance(prompt, str):
        # Both responses as whole conversations, with the prompt once more as text beside them.
        if chosen[-2:-1] != [Turn(USER, prompt)] or rejected[-2:-1] != [Turn(USER, prompt)]:
            raise RowRefused("mixed_form", "prompt")
        return _split_at_shared_prefix(row, chosen, rejected)
    if "prompt" not in row:
        return _split_at_shared_prefix(row, chosen, rejected)
    return _pair(row, _turns(row, "prompt"), chosen, rejected)


def _turns(row: Row, key: str) -> list[Turn]:
    """Return the turns under a key; null is a turn without content, which the checks refuse."""
    value = row[key]
    if isinstance(value, str):
        raise RowRefused("mixed_form", key)
    return [Turn(ASSISTANT, None)] if value is None else turns_of(value, key)


def _split_at_shared_prefix(row: Row, chosen: list[Turn], rejected: list[Turn]) -> Draft:
    if chosen and rejected and chosen[:-1] != rejected[:-1]:
        raise RowRefused("prefix_mismatch")
    draft = _pair(row, chosen[:-1], chosen[-1:], rejected[-1:])
    draft.is_prompt_implicit = True
    return draft


def _pair(row: Row, prompt: list[Turn], chosen: list[Turn], rejected: list[Turn]) -> Draft:
    return Draft(id_of(row), {"prompt": prompt, "chosen": chosen, "rejected": rejected})


def _prompt_turns(text: str | None) -> list[Turn]:
    if text is not None and is_transcript(text):
        return prompt_turns(text)
    return [Turn(USER, text)]


def _stripped(text: str | None) -> str | None:
    return None if text is None else text.strip()


def _sft(row: Row) -> Draft:
    return Draft(id_of(row), {"messages": _conversation(row)})


def _conversation(row: Row) -> list[Turn]:
    if "messages" in row:
        return _messages(row)
    for question, answer in (("prompt", "response"), ("prompt", "completion")):
        if question in row and answer in row:
            return _question_and_answer(row, question, answer)
    if "instruction" in row:
        return _instruction(row)
    if "question" in row and "prompt" not in row:
        require(row, "answer")
        return _question_and_answer(row, "question", "answer")
    if "prompt" in row:
        raise RowRefused("missing_key", "response or completion")
    raise RowRefused("missing_key", "messages")


def _messages(row: Row) -> list[Turn]:
    if row["messages"] is None:
        return [Turn(USER, None)]
    return turns_of(row["messages"], "messages")


def _question_and_answer(row: Row, question_key: str, answer_key: str) -> list[Turn]:
    question, answer = row[question_key], row[answer_key]
    if isinstance(question, list) and isinstance(answer, list):
        return [*turns_of(question, question_key), *turns_of(answer, answer_key)]
    if isinstance(question, list) or isinstance(answer, list):
        for key in (question_key, answer_key):
            if isinstance(row[key], list):
                turns_of(row[key], key)
        raise RowRefused("mixed_form", question_key)
    text, reply = text_of(row, question_key), text_of(row, answer_key)
    return [*_prompt_turns(text), Turn(ASSISTANT, reply)]


def _instruction(row: Row) -> list[Turn]:
    instruction = text_of(row, "instruction")
    inner = row
    if "instances" in row:
        inner = _only_instance(row["instances"])
    require(inner, "output")
    context = text_of(inner, "input") if "input" in inner else None
    if instruction is not None and context and context.strip():
        instruction = f"{instruction}\n\n{context}"
    return [Turn(USER, instruction), Turn(ASSISTANT, text_of(inner, "output"))]


def _only_instance(instances: Any) -> Row:
    """Return the one instance of a self-instruct task; a row with more would be several records."""
    if not isinstance(instances, list) or not all(isinstance(item, dict) for item in instances):
        raise RowRefused("wrong_type", "instances")
    if not instances:
        raise RowRefused("empty_value", "instances")
    if len(instances) > 1:
        raise RowRefused("wrong_type", "instances: write a row for each")
    instance: Row = instances[0]
    return instance


def _steerlm(row: Row) -> Draft:
    require(row, "messages", "attributes")
    attributes = row["attributes"]
    if attributes is None:
        raise RowRefused("null_value", "attributes")
    if not isinstance(attributes, dict):
        raise RowRefused("wrong_type", "attributes")
    return Draft(
        id_of(row),
        {"messages": _messages(row)},
        attributes={name: number_of(value, name) for name, value in attributes.items()},
    )


_DRAFTERS: dict[DataKind, Callable[[Row], Draft]] = {
    "preference": _preference,
    "unpaired": _unpaired,
    "sft": _sft,
    "steerlm": _steerlm,
}
