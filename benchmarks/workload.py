"""What both sides of a comparison are given: a model folder, and rows in the order of the steps.

Each side tokenises for itself. What would keep them from seeing the same tokens is taken out here
and in `models`, and docs/parity.md tells why. A pair with a row past the longest length is left
out, which TRL's reward model does.
"""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from trl_settings import step_rows

from alignflow.data_validation.canonical import SCHEMAS, read_split
from alignflow.data_validation.config import DataKind, DatasetConfig
from alignflow.data_validation.ingest import ingest
from alignflow.errors import DataError
from alignflow.training.chat import ChatTokenizer, TokenizedChat
from alignflow.training.config import PPOConfig, StageConfig
from alignflow.training.data import DEMONSTRATIONS, PREFERENCES, PROMPTS, RecordKind, load_rows
from alignflow.training.packing import DataOrder

StageName = Literal["sft", "reward_model", "dpo", "ppo"]

_KINDS: dict[str, tuple[RecordKind, DataKind]] = {
    "sft": (DEMONSTRATIONS, "sft"),
    "reward_model": (PREFERENCES, "preference"),
    "dpo": (PREFERENCES, "preference"),
    "ppo": (PROMPTS, "preference"),
}

EXAMPLES = Path(__file__).parents[1] / "examples"
SAMPLES = {
    "sft": "demonstrations.jsonl",
    "reward_model": "preferences.jsonl",
    "dpo": "preferences.jsonl",
    "ppo": "preferences.jsonl",
}
"""The sample data of each stage."""


@dataclass(frozen=True)
class Workload:
    """A model and the rows of so many steps."""

    model: Path
    """Hugging Face folder of `models.make_model`."""
    dataset: Path
    """Dataset artifact; its rows are those of the steps."""
    steps: list[list[dict[str, Any]]]
    """Of each step the records, longest first, as TRL takes them."""
    tokens: list[int]
    """Of each step the tokens of its rows, prompts included, padding never; in reinforcement
    learning those of the prompts."""


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
        has_cuts: Take rows past the longest length too, but not for reward models, and no prompts.

    Raises:
        SystemExit: There are too few rows for one step.
    """
    kind, name = _KINDS[config.stage]
    ingest(DatasetConfig(sources=list(sources), held_out_share=0.0), name, scratch / "all")
    chat = ChatTokenizer.load(model)
    usable: Iterator[dict[str, Any]] = (
        r
        for r in read_split(scratch / "all", "train")
        if _is_usable(r, kind, chat, config, has_cuts)
    )
    if config.stage == "ppo":
        usable = _distinct(usable)
    size = step_rows(config)
    records = list(islice(usable, num_steps * size))
    # A step of fewer rows, at the end of an epoch, would shift TRL's steps against ours.
    records = records[: len(records) // size * size]
    if not records:
        raise SystemExit(f"{' '.join(sources)}: too few rows for {size} a step")
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
        max_length=_max_row_tokens(config),
        cache=scratch / "tokens",
        is_writer=True,
    )
    order = DataOrder(len(records), size, num_steps, config.seed)
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
    length = _max_row_tokens(config)
    try:
        rows = chat.tokenize(kind.render(chat, record))
        kind.check([TokenizedChat(r.tokens_T[:length], r.is_learnt_T[:length]) for r in rows])
    except DataError:
        return False
    if config.stage in ("reward_model", "ppo") or not has_cuts:
        return all(len(row.tokens_T) <= length for row in rows)
    return all(row.is_learnt_T[1:length].any() for row in rows)


def _max_row_tokens(config: StageConfig) -> int:
    return config.max_prompt_tokens if isinstance(config, PPOConfig) else config.max_length


def _distinct(records: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield the first record of each prompt."""
    seen: set[str] = set()
    for record in records:
        prompt = json.dumps(record["prompt"])
        if prompt not in seen:
            seen.add(prompt)
            yield record
