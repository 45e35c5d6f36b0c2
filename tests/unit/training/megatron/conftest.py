"""A process group of one, tiny models of every family, and packed batches."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from alignflow.training.batch import PackedBatch
from alignflow.training.config import ParallelConfig
from alignflow.training.megatron.setup import initialize

VOCAB_SIZE = 97
SHAPE = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS: dict[str, PreTrainedConfig] = {
    "llama2": LlamaConfig(**SHAPE, rms_norm_eps=1e-5),
    "llama3": LlamaConfig(**SHAPE, rope_parameters=LLAMA3_ROPE),
    "llama3-tied": LlamaConfig(**SHAPE, tie_word_embeddings=True, rope_parameters=LLAMA3_ROPE),
    "llama-linear-rope": LlamaConfig(
        **SHAPE, rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
    ),
    "mistral": MistralConfig(**SHAPE, sliding_window=None, head_dim=16),
    "mistral-window": MistralConfig(**SHAPE, sliding_window=5),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen2-tied": Qwen2Config(**SHAPE, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SHAPE, head_dim=16),
}

ModelFolder = Callable[[str], tuple[Path, PreTrainedModel]]
MakeBatch = Callable[..., PackedBatch]


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """On tiny tensors threads only wait for one another."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(autouse=True)
def device() -> torch.device:
    return initialize(ParallelConfig(), seed=0)


@pytest.fixture(params=sorted(CONFIGS))
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> ModelFolder:
    """Return a function that gives a family's folder and its model in transformers."""
    made: dict[str, tuple[Path, PreTrainedModel]] = {}

    def make(name: str) -> tuple[Path, PreTrainedModel]:
        if name not in made:
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(CONFIGS[name]).eval()
            for parameter in model.parameters():
                # Norms and biases start as ones and zeros, which would hide a mix-up.
                if parameter.dim() == 1:
                    torch.nn.init.normal_(parameter, mean=1.0, std=0.3)
            made[name] = (tmp_path_factory.mktemp(name), model)
            model.save_pretrained(made[name][0])
        return made[name]

    return make


@pytest.fixture(scope="session")
def make_batch() -> MakeBatch:
    """Return a function that packs rows of random tokens; the later part of each is scored."""

    def make(lengths: Sequence[int], *, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> PackedBatch:
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(0, vocab_size, (sum(lengths),), generator=generator)
        starts = torch.tensor([0, *lengths]).cumsum(0)
        scored = [
            torch.arange(start + length // 3, start + length - 1)
            for start, length in zip(starts.tolist(), lengths, strict=False)
        ]
        index = torch.cat(scored)
        return PackedBatch(
            tokens_T=tokens,
            positions_T=torch.cat([torch.arange(length) for length in lengths]),
            row_tokens_S=torch.arange(len(tokens)),
            row_starts_R1=starts.int(),
            score_index_N=index,
            targets_N=tokens[index + 1],
            score_row_N=torch.cat([torch.full_like(s, row) for row, s in enumerate(scored)]),
            row_last_R=starts[1:] - 1,
        )

    return make
