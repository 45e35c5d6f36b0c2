"""The tokenizer of a model folder, known to fit the model."""

from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignflow.errors import DataError
from alignflow.training.megatron.architecture import read_architecture

TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
)
"""Files of a Hugging Face folder that make up tokenizer and chat template; it has some of them."""


def load_tokenizer(model: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer of a Hugging Face folder.

    Raises:
        DataError: There is none that can be read, or it has a token that the model doesn't know.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{model}: the tokenizer can't be read ({error}).") from None
    _check_ids(tokenizer.get_vocab(), read_architecture(model).vocab_size, str(model))
    return tokenizer


def _check_ids(vocabulary: dict[str, int], vocab_size: int, name: str) -> None:
    """Refuse a tokenizer with a token that has no embedding, be it added or special.

    Nothing else would: spread over ranks, a model takes it for a token of another rank.

    Args:
        vocabulary: Tokens and their ids, added ones included.
        vocab_size: Embeddings of the model.
        name: What the message calls the model.

    Raises:
        DataError: Names the first token.
    """
    unknown = [(id_, token) for token, id_ in vocabulary.items() if id_ >= vocab_size]
    if unknown:
        id_, token = min(unknown)
        raise DataError(
            f"{name}: the tokenizer's token {token!r} has the id {id_}, but config.json gives the "
            f"model {vocab_size} tokens (vocab_size); resize its embeddings or drop the token."
        )
