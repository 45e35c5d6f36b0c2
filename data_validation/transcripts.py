"""Conversations written as one text, the form of HH-RLHF (arXiv:2204.05862)."""

import re

from alignflow.data_validation.drafts import ASSISTANT, USER, Turn

TRANSCRIPT_START = "\n\nHuman:"

_TURN = re.compile(r"\n\n(Human|Assistant):")
_ROLES = {"Human": USER, "Assistant": ASSISTANT}


def is_transcript(text: str | None) -> bool:
    """Say whether a text is a transcript: its first words are those of a human turn."""
    return text is not None and text.startswith(TRANSCRIPT_START)


def transcript_turns(text: str) -> list[Turn]:
    r"""Return the turns of `\n\nHuman: …\n\nAssistant: …`, without the white space around each."""
    pieces = _TURN.split(text)[1:]
    return [
        Turn(_ROLES[speaker], content.strip())
        for speaker, content in zip(pieces[::2], pieces[1::2], strict=True)
    ]


def prompt_turns(text: str) -> list[Turn]:
    """Return the turns of a transcript that ends where the assistant is to answer."""
    turns = transcript_turns(text)
    return turns[:-1] if turns[-1] == Turn(ASSISTANT, "") else turns
