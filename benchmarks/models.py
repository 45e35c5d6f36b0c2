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
from shapes import SHAPES, make_random_model
from transformers import (
    AutoConfig,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from alignflow.model_source import resolve_model
from alignflow.training.import_gguf import import_gguf
from alignflow.training.reward_scale import REWARD_SCALE_FILE

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
