"""What a causal language model makes of statements: its hidden states over each, and at its end.

A judge keeps of the model what it reads, its first layers, as safetensors beside the tokenizer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, AutoTokenizer

from alignflow.errors import DataError
from alignflow.evaluation.choices import encode
from alignflow.evaluation.judges.calibration import Floats
from alignflow.evaluation.judges.statement import Statement

_BATCH = 32
_MAX_LENGTH = 256
"""Tokens of a statement with its question; of longer ones the end is cut."""


def keep_layers(source: Path, target: Path, *, share: float) -> int:
    """Write the first layers of a causal language model, and its tokenizer; return how many.

    Args:
        source: Hugging Face folder.
        target: Folder to write.
        share: How many of its layers, above 0 and at most 1.

    Raises:
        DataError: It can't be loaded, or its layers can't be told apart.
    """
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        num_layers: int = max(1, round(share * config.num_hidden_layers))
        config.num_hidden_layers = num_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:num_layers]
        # In bfloat16 the folder is half as large; what is read of it later is the same.
        model = AutoModel.from_pretrained(
            source,
            config=config,
            use_safetensors=True,
            trust_remote_code=False,
            dtype=torch.bfloat16,
        )
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        reason = str(error).splitlines()[0][:200]
        raise DataError(
            f"{source}: no language model whose layers a judge can read ({reason})."
        ) from None
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return num_layers


@dataclass(frozen=True)
class States:
    """The first layers of a language model."""

    model: Any
    tokenizer: Any

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read what `keep_layers` wrote, for the GPU if there is one; it computes in float32.

        Raises:
            DataError: It can't be loaded.
        """
        try:
            model = AutoModel.from_pretrained(
                folder, use_safetensors=True, trust_remote_code=False, dtype=torch.float32
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).splitlines()[0][:200]
            raise DataError(
                f"{folder}: holds no language model that can be loaded ({reason})."
            ) from None
        if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
            raise DataError(f"{folder}: the tokenizer has no token to begin a text with.")
        return cls(model.to("cuda" if torch.cuda.is_available() else "cpu").eval(), tokenizer)

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return 2 * int(self.model.config.hidden_size)

    @torch.inference_mode()
    def vectors(
        self, statements: Sequence[Statement], on_pass: Callable[[], None] = lambda: None
    ) -> Floats:
        """Return what the last layer says of each statement, [N, 2H].

        First the mean of its states over the tokens of the statement, then the state of the last
        token, which has seen all others. They are seen after the question, where there is one; its
        own tokens are not counted.

        Args:
            statements: What is read.
            on_pass: Called before each pass of the model; it may raise to stop the work.
        """
        prefixes = [self._prefix(statement.question) for statement in statements]
        texts = encode(self.tokenizer, [_continuation(statement) for statement in statements])
        rows = [
            [*prefix, *text][:_MAX_LENGTH] for prefix, text in zip(prefixes, texts, strict=True)
        ]
        vectors_NV = np.empty((len(rows), self.size))
        # Rows of a like length are padded the least.
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for start in range(0, len(order), _BATCH):
            on_pass()
            numbers = order[start : start + _BATCH]
            batch = [rows[number] for number in numbers]
            starts = [min(len(prefixes[number]), len(rows[number]) - 1) for number in numbers]
            vectors_NV[numbers] = self._read(batch, starts).double().cpu().numpy()
        return vectors_NV

    def _prefix(self, question: str | None) -> list[int]:
        """Return what a statement follows: a token that begins texts, and its question.

        Something has to stand before it, for the state of a first token tells little of it.
        """
        begins, ends = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        first = [token for token in (begins, ends) if token is not None][:1]
        asked = f"Q: {question}\nA:" if question is not None else ""
        return [*first, *encode(self.tokenizer, [asked])[0]]

    def _read(self, rows: Sequence[Sequence[int]], starts: Sequence[int]) -> Tensor:
        """Return the mean state of each row from its start on, and its last one, [B, 2H]."""
        lengths_B = torch.tensor([len(row) for row in rows])
        tokens_BT = torch.nn.utils.rnn.pad_sequence(
            [torch.tensor(row) for row in rows], batch_first=True
        )
        position_T = torch.arange(tokens_BT.size(1))
        is_row_BT = position_T < lengths_B[:, None]
        is_read_BT = (is_row_BT & (position_T >= torch.tensor(starts)[:, None])).float()
        device = self.model.device
        states_BTH = self.model(
            input_ids=tokens_BT.to(device), attention_mask=is_row_BT.long().to(device)
        ).last_hidden_state
        weights_BT = (is_read_BT / is_read_BT.sum(1, keepdim=True)).to(device)
        means_BH = torch.einsum("bt,bth->bh", weights_BT, states_BTH)
        last_BH = states_BTH[torch.arange(len(rows)), lengths_B - 1]
        return torch.cat([means_BH, last_BH], dim=1)


def _continuation(statement: Statement) -> str:
    return statement.text if statement.question is None else f" {statement.text}"
