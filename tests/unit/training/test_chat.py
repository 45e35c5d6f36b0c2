from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from transformers import LlamaConfig, PreTrainedTokenizerFast

from alignflow.errors import DataError
from alignflow.training.chat import ChatTokenizer, Message

MakeTokenizer = Callable[..., PreTrainedTokenizerFast]

CHATML_TOKENS = ["<|im_start|>", "<|im_end|>"]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3_TOKENS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
LLAMA_3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN_2 = (
    "{%- if messages[0]['role'] == 'system' %}"
    "{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}{{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}{%- endif %}"
    "{%- for message in messages %}"
    '{%- if (message.role == "user") or (message.role == "system" and not loop.first)'
    ' or (message.role == "assistant" and not message.tool_calls) %}'
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}"
    "{%- endif %}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}"
)
QWEN_3 = r"""
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "user" or message.role == "system" %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if '</think>' in content %}
            {%- set reasoning_content = content.split('</think>')[0].split('<think>')[-1] %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and (loop.last or reasoning_content) %}
            {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning_content.strip('\n') }}
            {{- '\n</think>\n\n' + content.lstrip('\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
MISTRAL_TOKENS = ["<s>", "</s>"]
MISTRAL = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/...') }}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% endif %}"
    "{% endfor %}"
)


def conversation(*contents: str) -> list[Message]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]


@dataclass(frozen=True)
class Subject:
    tokenizer: PreTrainedTokenizerFast
    chat: ChatTokenizer

    def learnt(self, messages: Sequence[Message]) -> list[str]:
        """The runs of learnt tokens as text, after checking that the tokens are the whole text."""
        rendered = self.chat.render(messages)
        (tokenized,) = self.chat.tokenize([rendered])
        self.chat.check(rendered, tokenized)
        tokens_T, is_learnt_T = tokenized.tokens_T, tokenized.is_learnt_T
        assert self.tokenizer.decode(tokens_T) == rendered.text
        edges = np.flatnonzero(np.diff(is_learnt_T)) + 1
        runs = zip(np.split(tokens_T, edges), np.split(is_learnt_T, edges), strict=True)
        return [self.tokenizer.decode(tokens) for tokens, is_learnt in runs if is_learnt[0]]


@pytest.fixture(scope="module")
def subjects(make_tokenizer: MakeTokenizer) -> dict[str, Subject]:
    tokenizers = {
        "smollm2": make_tokenizer(SMOLLM2, CHATML_TOKENS, bos="<|im_start|>", eos="<|im_end|>"),
        "llama 3": make_tokenizer(
            LLAMA_3, LLAMA_3_TOKENS, bos="<|begin_of_text|>", eos="<|eot_id|>"
        ),
        "qwen 2": make_tokenizer(QWEN_2, CHATML_TOKENS, eos="<|im_end|>"),
        "qwen 3": make_tokenizer(QWEN_3, CHATML_TOKENS, eos="<|im_end|>"),
        "mistral": make_tokenizer(MISTRAL, MISTRAL_TOKENS, bos="<s>", eos="</s>"),
    }
    return {
        name: Subject(tokenizer, ChatTokenizer(tokenizer, name))
        for name, tokenizer in tokenizers.items()
    }


NO_THOUGHTS = "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    ("name", "before_last", "end"),
    [
        ("smollm2", "", "<|im_end|>"),
        ("llama 3", "", "<|eot_id|>"),
        ("qwen 2", "", "<|im_end|>"),
        # Its template writes an empty block of thoughts in the last turn only, and without one in
        # the prompt it is the model that has to write it.
        ("qwen 3", NO_THOUGHTS, "<|im_end|>"),
        ("mistral", "", "</s>"),
    ],
)
class TestMaskOfKnownTemplates:
    def test_only_answers_with_their_end_are_learnt(
        self, subjects: dict[str, Subject], name: str, before_last: str, end: str
    ) -> None:
        messages = conversation("Red?", "Yes, red.", "And blue?", "No: yellow!")
        learnt = [f"Yes, red.{end}", f"{before_last}No: yellow!{end}"]
        assert subjects[name].learnt(messages) == learnt

    def test_characters_of_many_tokens_stay_whole(
        self, subjects: dict[str, Subject], name: str, before_last: str, end: str
    ) -> None:
        messages = conversation("👩‍🚀 über?", "naïve 👍🏽 ✓")
        assert subjects[name].learnt(messages) == [f"{before_last}naïve 👍🏽 ✓{end}"]

    def test_white_space_around_an_answer_is_what_the_template_makes_of_it(
        self, subjects: dict[str, Subject], name: str, before_last: str, end: str
    ) -> None:
        answer = " yes \n" if name != "llama 3" else "yes"  # Llama 3 trims
        messages = conversation("ok?", " yes \n")
        assert subjects[name].learnt(messages) == [f"{before_last}{answer}{end}"]

    def test_an_answer_that_repeats_the_question_is_found_in_its_own_turn(
        self, subjects: dict[str, Subject], name: str, before_last: str, end: str
    ) -> None:
        messages = conversation("yes", "yes", "yes", "yes")
        assert subjects[name].learnt(messages) == [f"yes{end}", f"{before_last}yes{end}"]

    def test_the_last_turn_alone_can_be_learnt(
        self, subjects: dict[str, Subject], name: str, before_last: str, end: str
    ) -> None:
        rendered = subjects[name].chat.render(
            conversation("Red?", "Yes.", "Blue?", "No."), learn="last_turn"
        )
        (turn,) = rendered.turns
        assert rendered.text[turn.start : turn.stop] == f"{before_last}No.{end}"


def test_an_answer_that_shares_a_token_with_its_prompt_is_refused(
    subjects: dict[str, Subject],
) -> None:
    # Two line ends are one token: the prompt's last and the answer's first.
    with pytest.raises(DataError) as caught:
        subjects["smollm2"].learnt(conversation("ok?", "\nyes"))
    assert caught.value.reason == "prompt_not_apart"


CHATML_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        pytest.param(
            "{% set m = messages[-1] %}" + CHATML_TURN, "template_drops_turns", id="last turn only"
        ),
        pytest.param(
            "{% for m in messages if m.role != 'user' %}" + CHATML_TURN + "{% endfor %}",
            "template_drops_turns",
            id="no users",
        ),
        pytest.param(
            "{% for m in messages|reverse %}" + CHATML_TURN + "{% endfor %}",
            "template_reorders_turns",
            id="newest first",
        ),
        pytest.param(
            "{% for m in messages|sort(attribute='role') %}" + CHATML_TURN + "{% endfor %}",
            "template_reorders_turns",
            id="sorted by role",
        ),
        pytest.param(
            "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}",
            "no_end_of_turn",
            id="no marker",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
            "{% if loop.last and m.role == 'assistant' %}<|im_end|>{% endif %}\n{% endfor %}",
            "no_end_of_turn",
            id="marker at the end only",
        ),
        pytest.param(
            "{% for m in messages %}### {{ m.role }}:\n{{ m.content }}\n### end\n{% endfor %}",
            "no_end_of_turn",
            id="marker is plain text",
        ),
        pytest.param(
            "<|im_start|>{% for m in messages %}" + CHATML_TURN + "{% endfor %}",
            "doubled_bos",
            id="doubled bos",
        ),
        pytest.param(
            "{% for m in messages %}<|im_start|>{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant: {% endif %}",
            "prompt_not_apart",
            id="prompt ends with a space",
        ),
        pytest.param("{{ raise_exception('never') }}", "template_refuses", id="always refuses"),
    ],
)
def test_a_template_that_would_spoil_the_mask_is_refused_by_name(
    make_tokenizer: MakeTokenizer, template: str, reason: str
) -> None:
    tokenizer = make_tokenizer(template, CHATML_TOKENS, bos="<|im_start|>")
    with pytest.raises(DataError, match="some/model: ") as caught:
        ChatTokenizer(tokenizer, "some/model")
    assert caught.value.reason == reason


def test_a_folder_without_template_is_refused(
    make_tokenizer: MakeTokenizer, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(SMOLLM2, CHATML_TOKENS)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    LlamaConfig(vocab_size=len(tokenizer)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"no chat template; add chat_template\.jinja"):
        ChatTokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (conversation("one", "two", "three") + conversation("four"), "template_refuses"),
        (conversation("one", " "), "empty_response"),
    ],
)
def test_a_conversation_that_the_template_cannot_hold_is_refused_by_name(
    subjects: dict[str, Subject], messages: list[Message], reason: str
) -> None:
    with pytest.raises(DataError) as caught:
        subjects["mistral"].chat.render(messages)
    assert caught.value.reason == reason


def test_text_that_brings_its_own_bos_is_refused(make_tokenizer: MakeTokenizer) -> None:
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}</s>{% endfor %}"
    chat = ChatTokenizer(make_tokenizer(template, MISTRAL_TOKENS, bos="<s>"), "some/model")
    rendered = chat.render(conversation("<s>hello", "hi"))
    with pytest.raises(DataError, match="twice"):
        chat.check(rendered, *chat.tokenize([rendered]))


@pytest.mark.parametrize("name", ["smollm2", "llama 3", "mistral"])
def test_an_answer_starts_after_the_prompt_and_ends_with_a_stop_token(
    subjects: dict[str, Subject], name: str
) -> None:
    chat = subjects[name].chat
    messages = conversation("one question", "two answers")
    (row,) = chat.tokenize([chat.render(messages)])
    prompt = chat.prompt(messages[:-1])
    answer = row.tokens_T[row.is_learnt_T].tolist()
    assert row.tokens_T[: len(prompt)].tolist() == prompt
    assert row.is_learnt_T.argmax() == len(prompt)
    assert answer[-1] in chat.stop_tokens
    assert not chat.stop_tokens.intersection(answer[:-1])
    assert chat.decode(answer).strip() == "two answers"


@pytest.mark.parametrize("name", ["smollm2", "llama 3", "mistral"])
def test_words_and_what_closes_a_turn_make_the_row_of_training(
    subjects: dict[str, Subject], name: str
) -> None:
    chat = subjects[name].chat
    messages = conversation("one question", "two answers")
    (row,) = chat.tokenize([chat.render(messages)])
    prompt, closing = chat.prompt(messages[:-1]), chat.closing_tokens
    whole = row.tokens_T.tolist()
    assert whole[-len(closing) :] == closing
    assert chat.decode(whole[len(prompt) : -len(closing)]).strip() == "two answers"
    # What closes a turn begins as a sampled answer ends.
    assert closing[0] == chat.end_of_turn_token
