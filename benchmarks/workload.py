"""What both sides of a comparison are given: a model folder, and rows in the order of the steps.

Each side tokenises for itself. What would keep them from seeing the same tokens is taken out here,
and docs/parity.md tells why: the chat template ends a conversation with the end-of-turn token,
where others write a line end after it that TRL learns too, and marks what the assistant says, which
TRL needs; the padding token is not the end-of-turn token, which TRL's reward model would take for
padding; and a pair with a row past the longest length is left out, which TRL's reward model does.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from shapes import SHAPES, make_random_model
from transformers import AutoConfig, AutoTokenizer

from alignflow.data_validation.canonical import SCHEMAS, read_split
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.errors import DataError
from alignflow.model_source import resolve_model
from alignflow.training.chat import ChatTokenizer, TokenizedChat
from alignflow.training.config import StageConfig
from alignflow.training.data import DEMONSTRATIONS, PREFERENCES, RecordKind, load_rows
from alignflow.training.import_gguf import import_gguf
from alignflow.training.megatron.inference import REWARD_SCALE_FILE
from alignflow.training.packing import DataOrder

StageName = Literal["sft", "reward_model", "dpo"]

_KINDS: dict[str, tuple[RecordKind, DataKind]] = {
    "sft": (DEMONSTRATIONS, "sft"),
    "reward_model": (PREFERENCES, "preference"),
    "dpo": (PREFERENCES, "preference"),
}

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLES = {
    "sft": "demonstrations.jsonl",
    "reward_model": "preferences.jsonl",
    "dpo": "preferences.jsonl",
}
"""The sample data of each stage."""

# Ends with <|im_end|>, with the line ends between the turns.
_TEMPLATE = """\
{% for message in messages %}
{{ '' if loop.first else '\\n' }}<|im_start|>{{ message['role'] + '\\n' }}
{%- if message['role'] == 'assistant' %}
{%- generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}
{%- else %}{{ message['content'] }}<|im_end|>
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}
"""


@dataclass(frozen=True)
class Workload:
    """A model and the rows of so many steps."""

    model: Path
    """Hugging Face folder, a reward head beside the weights."""
    dataset: Path
    """Dataset artifact; its rows are those of the steps."""
    steps: list[list[dict[str, Any]]]
    """Of each step the records, longest first, as TRL takes them."""
    tokens: list[int]
    """Of each step the tokens of its rows, prompts included, padding never."""


def make_model(source: str, folder: Path) -> None:
    """Write the model folder, with a reward head of random weights and its scale.

    Args:
        source: A name in `SHAPES` for random weights, or what a recipe's `model.source` may be.
        folder: New folder.
    """
    if source in SHAPES:
        make_random_model(source, folder)
    else:
        found = resolve_model(source, cache=folder.parent / "downloads")
        if found.is_gguf:
            import_gguf(found.path, folder)
        else:
            shutil.copytree(found.path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = tokenizer.unk_token
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    hidden_size = AutoConfig.from_pretrained(folder).hidden_size
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(1, hidden_size, generator=generator) / hidden_size**0.5
    save_file({"weight": head}, folder / "reward_head.safetensors")
    scale = json.dumps({"mean": 0.0, "std": 1.0})
    (folder / REWARD_SCALE_FILE).write_text(scale, encoding="utf-8")


def make_workload(
    config: StageConfig,
    sources: Sequence[str],
    model: Path,
    scratch: Path,
    *,
    num_steps: int,
    has_cuts: bool = True,
) -> Workload:
    """Choose the rows of `num_steps` steps of the config, as its data order takes them.

    Args:
        config: Length, batch and seed. Its `max_steps` doesn't count.
        sources: Files, as in a recipe.
        model: Folder of `make_model`.
        scratch: Where the dataset goes.
        num_steps: Steps; rows come again where there are too few.
        has_cuts: Take rows past the longest length too, but not for reward models.

    Raises:
        SystemExit: There are too few rows for one step.
    """
    kind, name = _KINDS[config.stage]
    ingest(DatasetConfig(sources=list(sources), held_out_share=0.0), name, scratch / "all")
    chat = ChatTokenizer.load(model)
    usable = (
        r
        for r in read_split(scratch / "all", "train")
        if _is_usable(r, kind, chat, config, has_cuts)
    )
    records = list(islice(usable, num_steps * config.global_batch_size))
    # A step of fewer rows, at the end of an epoch, would shift TRL's steps against ours.
    records = records[: len(records) // config.global_batch_size * config.global_batch_size]
    if not records:
        raise SystemExit(f"{' '.join(sources)}: too few rows for {config.global_batch_size} a step")
    dataset = scratch / "dataset"
    (dataset / "train").mkdir(parents=True)
    shutil.copy(scratch / "all" / "card.json", dataset)
    table = pa.Table.from_pylist(records, schema=SCHEMAS[name])
    pq.write_table(table, dataset / "train" / "part-00000.parquet")
    rows = load_rows(
        dataset,
        "train",
        kind,
        model=model,
        max_length=config.max_length,
        cache=scratch / "tokens",
        is_writer=True,
    )
    order = DataOrder.of(config, len(records))
    items = [order.items(step) for step in range(num_steps)]
    return Workload(
        model,
        dataset,
        steps=[
            [records[item] for item in sorted(step, key=lambda item: -rows.item_lengths[item])]
            for step in items
        ],
        tokens=[int(rows.item_lengths[step].sum()) for step in items],
    )


def _is_usable(
    record: dict[str, Any],
    kind: RecordKind,
    chat: ChatTokenizer,
    config: StageConfig,
    has_cuts: bool,
) -> bool:
    """Whether both sides take the record."""
    length = config.max_length
    try:
        rows = chat.tokenize(kind.render(chat, record))
        kind.check([TokenizedChat(r.tokens_T[:length], r.is_learnt_T[:length]) for r in rows])
    except DataError:
        return False
    if config.stage == "reward_model" or not has_cuts:
        return all(len(row.tokens_T) <= length for row in rows)
    return all(row.is_learnt_T[1:length].any() for row in rows)
