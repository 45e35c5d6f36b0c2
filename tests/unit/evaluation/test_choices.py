"""Choices are tokenised with their context and cut where the context alone ends."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from alignflow.errors import DataError
from alignflow.evaluation.choices import encode_requests
from alignflow.evaluation.suites.base import ChoiceRequest

VOCAB = {"<s>": 0, "a": 1, "b": 2, "c": 3, " ": 4, " b": 5, "ab": 6}


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """Merges a space with the b after it, and a with b; begins every text with <s>."""
    core = Tokenizer(models.BPE(vocab=VOCAB, merges=[(" ", "b"), ("a", "b")]))
    core.pre_tokenizer = pre_tokenizers.Sequence([])
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")


def test_special_tokens_of_the_tokenizer_stand_before_the_context(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    encoded = encode_requests(tokenizer, [ChoiceRequest("ca", (" b", " ca"))], max_length=100)
    (tree,) = encoded.trees
    assert tree.prefix == [0, 3, 1]
    assert [branch.tokens for branch in tree.branches] == [[5], [4, 3, 1]]
    assert all(all(branch.is_scored) for branch in tree.branches)
    assert encoded.num_truncated == 0


def test_choice_that_merges_with_its_context_is_cut_by_the_length_of_the_context(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    # "cab" becomes c, ab: of its tokens after the two of <s>, c, only ab is left; the context
    # keeps its own a. This is what the harness does.
    (tree,) = encode_requests(tokenizer, [ChoiceRequest("ca", ("bc",))], max_length=9).trees
    assert tree.prefix == [0, 3, 1]
    assert tree.branches[0].tokens == [3]


def test_long_context_loses_its_beginning_and_is_counted(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    requests = [ChoiceRequest("cccc", (" b", " c")), ChoiceRequest("c", (" b",))]
    encoded = encode_requests(tokenizer, requests, max_length=5)
    assert [tree.prefix for tree in encoded.trees] == [[3, 3, 3], [0, 3]]
    assert encoded.num_truncated == 1


def test_long_choice_keeps_a_token_of_context(tokenizer: PreTrainedTokenizerFast) -> None:
    (tree,) = encode_requests(tokenizer, [ChoiceRequest("ca", (" cccc",))], max_length=4).trees
    assert tree.prefix == [1]
    assert tree.branches[0].tokens == [4, 3, 3]


def test_a_token_that_ends_every_text_stands_after_no_choice(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    request = ChoiceRequest("ca", (" b", " ca"))
    expected = encode_requests(tokenizer, [request], max_length=100)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A c", special_tokens=[("<s>", 0), ("c", 3)]
    )
    assert tokenizer("a")["input_ids"] == [0, 1, 3]
    assert encode_requests(tokenizer, [request], max_length=100) == expected


def test_choice_without_tokens_is_refused_by_item(tokenizer: PreTrainedTokenizerFast) -> None:
    requests = [ChoiceRequest("ca", (" b",)), ChoiceRequest("ca", ("c", ""))]
    with pytest.raises(DataError, match="item 2: the choice '' adds no token"):
        encode_requests(tokenizer, requests, max_length=9)


def test_space_at_the_end_of_a_context_goes_to_its_choices(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    (tree,) = encode_requests(tokenizer, [ChoiceRequest("ca ", ("b", "a"))], max_length=9).trees
    assert tree.prefix == [0, 3, 1]
    assert [branch.tokens for branch in tree.branches] == [[5], [4, 1]]


def test_an_empty_context_is_the_token_that_begins_texts() -> None:
    core = Tokenizer(models.BPE(vocab=VOCAB, merges=[]))
    core.pre_tokenizer = pre_tokenizers.Sequence([])
    begins = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>")
    (tree,) = encode_requests(begins, [ChoiceRequest("", ("ab",))], max_length=9).trees
    assert (tree.prefix, tree.branches[0].tokens) == ([0], [1, 2])
    nothing = PreTrainedTokenizerFast(tokenizer_object=core)
    with pytest.raises(DataError, match="no token to begin a text with"):
        encode_requests(nothing, [ChoiceRequest("", ("ab",))], max_length=9)
