"""Conversations to tokens, with the mask of what is learnt taken from the chat template.

A template is any Jinja program, so the mask is read off what it renders: a turn starts where the
rendering of the messages before it, generation prompt included, ends; it stops with the marker that
the template writes after an assistant's words. The whole text is tokenised once, and a token is
learnt where its characters lie inside such a turn. What a template does to a conversation that
would make the mask wrong is refused by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import jinja2
import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from alignflow.errors import DataError
from alignflow.training.tokenizer import load_tokenizer

Message: TypeAlias = dict[str, str]
"""A turn: `role` and `content`."""

_PROBE: list[Message] = [
    {"role": "user", "content": "first question"},
    {"role": "assistant", "content": "first answer"},
    {"role": "user", "content": "second question"},
    {"role": "assistant", "content": "second answer"},
]


@dataclass(frozen=True)
class RenderedChat:
    """A conversation as text, with the character ranges of the turns to learn."""

    text: str
    turns: tuple[range, ...]
    """Assistant turns, each with its end-of-turn marker, in order."""


@dataclass(frozen=True)
class TokenizedChat:
    """The tokens of a conversation, and which of them are learnt."""

    tokens_T: NDArray[np.int32]
    is_learnt_T: NDArray[np.bool_]
    has_own_starts: bool = True
    """Whether each turn begins with a token of its own, as an answer to its prompt does."""


class ChatTokenizer:
    """A tokenizer with its chat template, proven on a probe conversation.

    Raises:
        DataError: There is no chat template, or it drops or reorders turns, writes no end-of-turn
            token, doubles the token that begins a sequence, or lets the prompt end inside a token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        if not tokenizer.is_fast:
            raise DataError(f"{name}: the tokenizer has no tokenizer.json; convert it to one.")
        if not tokenizer.chat_template:
            raise DataError(
                f"{name}: there is no chat template; add chat_template.jinja to the model folder.",
                reason="no_chat_template",
            )
        self._tokenizer = tokenizer
        self._added_ids = np.array(sorted(tokenizer.added_tokens_decoder), dtype=np.int32)
        self._bos_id = tokenizer.bos_token_id
        try:
            self._closing = self._learn_closing()
            self._end_of_turn = self._closing.strip()
            probe = self.render(_PROBE)
            self.check(probe, *self.tokenize([probe]))
        except DataError as error:
            message = f"{name}: the chat template can't be trained on: {error}"
            raise DataError(message, reason=error.reason) from None

    @classmethod
    def load(cls, model: Path) -> "ChatTokenizer":
        """Read the tokenizer of a Hugging Face folder.

        Raises:
            DataError: The folder holds no tokenizer that fits its model, or see the class.
        """
        return cls(load_tokenizer(model), str(model))

    def render(
        self,
        messages: Sequence[Message],
        *,
        learn: Literal["every_turn", "last_turn"] = "every_turn",
    ) -> RenderedChat:
        """Render a conversation and find the assistant turns to learn in it.

        Args:
            messages: The turns; those with the role `assistant` can be learnt.
            learn: Every assistant turn, or only the last one.

        Raises:
            DataError: The template refuses the conversation, or would make its mask wrong.
        """
        text = self._render(messages)
        _check_order(messages, text)
        answers = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        starts = [self._turn_start(messages, index, text) for index in answers]
        turns = [
            self._turn(text, range(start, limit), messages[index]["content"].strip())
            for index, start, limit in zip(answers, starts, [*starts[1:], len(text)], strict=True)
        ]
        return RenderedChat(text, tuple(turns if learn == "every_turn" else turns[-1:]))

    def tokenize(self, chats: Sequence[RenderedChat]) -> list[TokenizedChat]:
        """Tokenise each text as a whole and mark the tokens that lie inside its turns."""
        if not chats:
            return []
        encoded = self._tokenizer(
            [chat.text for chat in chats],
            add_special_tokens=False,
            return_attention_mask=False,
            return_offsets_mapping=True,
            verbose=False,
        )
        return [
            TokenizedChat(np.array(ids, dtype=np.int32), *_inside(chat.turns, offsets))
            for chat, ids, offsets in zip(
                chats, encoded["input_ids"], encoded["offset_mapping"], strict=True
            )
        ]

    def render_prompt(self, messages: Sequence[Message]) -> RenderedChat:
        """Render what asks for an answer to a conversation; there is no turn to learn in it.

        Raises:
            DataError: The template refuses the conversation, or drops or reorders its turns.
        """
        text = self._render(messages, generation_prompt=True)
        _check_order(messages, text)
        return RenderedChat(text, ())

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return the tokens that ask for an answer to a conversation.

        Raises:
            DataError: The template refuses the conversation.
        """
        text = self._render(messages, generation_prompt=True)
        encoded = self._tokenizer(text, add_special_tokens=False, verbose=False)
        return list(encoded["input_ids"])

    def decode(self, tokens: Sequence[int]) -> str:
        """Return the words of an answer, without the tokens that end it."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    @property
    def end_of_turn_token(self) -> int:
        """The token that the template writes last in an assistant's turn."""
        ids = self._tokenizer(self._end_of_turn, add_special_tokens=False)["input_ids"]
        return int(ids[-1])

    @property
    def closing_tokens(self) -> list[int]:
        """The tokens that the template writes after an assistant's last words."""
        return list(self._tokenizer(self._closing, add_special_tokens=False)["input_ids"])

    @property
    def stop_tokens(self) -> frozenset[int]:
        """The tokens that end an answer: that of its turn and that of the sequence."""
        return frozenset((self.end_of_turn_token, self._tokenizer.eos_token_id)) - {None}

    def check(self, chat: RenderedChat, tokenized: TokenizedChat) -> None:
        """Refuse a tokenised conversation that would teach the wrong thing.

        Raises:
            DataError: A turn doesn't end with an end-of-turn token, its first characters share a
                token with the prompt, or the token that begins a sequence stands there twice.
        """
        tokens_T, is_learnt_T = tokenized.tokens_T, tokenized.is_learnt_T
        if len(tokens_T) > 1 and tokens_T[0] == tokens_T[1] == self._bos_id:
            raise DataError(
                f"the text begins with {self._tokenizer.bos_token!r} twice; take one out.",
                reason="doubled_bos",
            )
        if not tokenized.has_own_starts:
            raise DataError(
                "the end of a prompt and the first characters of its answer make one token, which "
                "a model that is asked for an answer never sees.",
                reason="prompt_not_apart",
            )
        # A turn ends where the mask falls from 1 to 0, or with the text.
        ends = np.flatnonzero(np.diff(is_learnt_T, append=False) & is_learnt_T)
        if len(ends) != len(chat.turns) or not np.isin(tokens_T[ends], self._added_ids).all():
            raise DataError(
                f"{self._end_of_turn!r}, which ends a turn, is no token of its own; a model "
                "trained so would never stop: add it to the tokenizer's special tokens.",
                reason="no_end_of_turn",
            )

    def _render(self, messages: Sequence[Message], *, generation_prompt: bool = False) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except jinja2.TemplateError as error:
            raise DataError(
                f"the template refuses these turns ({error}).", reason="template_refuses"
            ) from None

    def _learn_closing(self) -> str:
        """Return what the template writes after an assistant's last words."""
        _, found, after = self._render(_PROBE).rpartition(_PROBE[-1]["content"])
        if not found:
            raise _dropped(_PROBE[-1])
        if not after.strip():
            raise DataError(
                "it writes nothing after an assistant's turn, so a model trained with it would "
                "never stop; let it write the end-of-sequence token.",
                reason="no_end_of_turn",
            )
        return after

    def _turn_start(self, messages: Sequence[Message], index: int, text: str) -> int:
        """Return where the words of the message begin: after the prompt that asks for them."""
        prompt = self._render(messages[:index], generation_prompt=True)
        if not text.startswith(prompt):
            raise DataError(
                f"the prompt of turn {index + 1} is not how the whole conversation begins.",
                reason="template_reorders_turns",
            )
        return len(prompt)

    def _turn(self, text: str, within: range, content: str) -> range:
        """Return the range from where the turn starts to the end of its end-of-turn marker."""
        if not content:
            raise DataError("an assistant's turn is empty.", reason="empty_response")
        # A template may trim the words, pad them, or put an empty block of thoughts before them.
        closing = re.compile(re.escape(content) + r"\s*" + re.escape(self._end_of_turn))
        found = closing.search(text, within.start, within.stop)
        if found is None:
            raise DataError(
                f"{self._end_of_turn!r} doesn't follow an assistant's turn, or the template "
                "changed its words.",
                reason="no_end_of_turn",
            )
        return range(within.start, found.end())


def _check_order(messages: Sequence[Message], text: str) -> None:
    at = 0
    for message in messages:
        content = message["content"].strip()
        found = text.find(content, at)
        if found < 0:
            raise _dropped(message) if content not in text else _reordered(message)
        at = found + len(content)


def _dropped(message: Message) -> DataError:
    return DataError(
        f"it leaves out a turn of the role {message['role']!r}.", reason="template_drops_turns"
    )


def _reordered(message: Message) -> DataError:
    return DataError(
        f"it moves a turn of the role {message['role']!r}.", reason="template_reorders_turns"
    )


def _inside(
    turns: Sequence[range], offsets: Sequence[tuple[int, int]]
) -> tuple[NDArray[np.bool_], bool]:
    """Return for each token whether it lies in a turn, and whether each turn begins with a token.

    Args:
        turns: Character ranges.
        offsets: First character and end of each token. Byte-level tokenizers may leave a token's
            leading white space out, so a token is taken to begin where the one before it ended.
    """
    begins_T, ends_T = np.array(offsets, dtype=np.int64).reshape(-1, 2).T
    begins_T = np.minimum(begins_T, np.concatenate([[0], ends_T[:-1]]))
    inside_T = np.zeros(len(ends_T), dtype=np.bool_)
    for turn in turns:
        inside_T |= (begins_T >= turn.start) & (ends_T <= turn.stop) & (ends_T > turn.start)
    has_own_starts = all(bool((inside_T & (begins_T == turn.start)).any()) for turn in turns)
    return inside_T, has_own_starts
