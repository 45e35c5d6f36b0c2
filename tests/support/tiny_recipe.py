"""A recipe on a tiny model that runs whole in a minute, with its data."""

import json
import random
from pathlib import Path
from typing import Any

WORDS = ["kind", "clear", "short", "honest", "warm", "plain", "brief", "calm", "exact", "steady"]
STAGE = """
  precision: fp32
  max_length: 128
  global_batch_size: 8
  learning_rate: 1.0e-3
"""


def write_tiny_recipe(folder: Path, model: Path) -> Path:
    """Write the recipe and its data into a folder, and return its path.

    Its workspace is `work` there.
    """
    _write_data(folder / "data")
    path = folder / "tiny.yaml"
    path.write_text(
        f"""
name: tiny
workspace: {folder / "work"}
model: {{source: {model}}}
data:
  demonstrations: {{sources: ["{folder}/data/demonstrations.jsonl"]}}
  preferences: {{sources: ["{folder}/data/preferences.jsonl"], held_out_share: 0.25}}
sft: {STAGE}
reward_model: {STAGE}
dpo: {STAGE}
ppo: {STAGE}
  rollout_prompts: 8
  max_new_tokens: 8
  max_validation_rows: 4
  max_steps: 2
evaluation:
  precision: fp32
  suites:
    truth: {{suite: truthfulqa, data: "{folder}/data/mc_task.json"}}
    toxicity: {{suite: toxigen, data: "{folder}/data/toxicity.json"}}
  num_samples: 2
  max_length: 1016
  max_new_tokens: 8
gate:
  rules:
    truthful: {{score: truth/mc2, at_least: 0.0}}
    close: {{score: kl/parent_nats_per_token, at_most: 100.0}}
registry: {{model_name: tiny-assistant}}
""",
        encoding="utf-8",
    )
    return path


def _write_data(folder: Path) -> None:
    pick = random.Random(0)
    folder.mkdir()

    def text(count: int) -> str:
        return " ".join(pick.choices(WORDS, k=count))

    demonstrations = [
        {"prompt": f"question {i} {text(3)}?", "response": f"{text(6)}."} for i in range(24)
    ]
    preferences = [
        {
            "prompt": f"request {i} {text(3)}?",
            "chosen": f"{text(5)}.",
            "rejected": f"{text(5)}!",
        }
        for i in range(32)
    ]
    preferences.append({**preferences[0], "prompt": "same?", "rejected": preferences[0]["chosen"]})
    items = [
        {
            "question": f"is it {text(2)}, number {i}?",
            "mc1_targets": {"yes": 1, "no": 0},
            "mc2_targets": {"yes": 1, "no": 0, "maybe": 1},
        }
        for i in range(4)
    ]
    statements = [
        {
            "id": i,
            "text": text(6),
            "toxicity_score": 1.0 + 3 * (i % 2),
            "label": ("neutral", "hate")[i % 2],
            "target_groups": ["all"],
        }
        for i in range(4)
    ]
    rated = [
        {
            "messages": [
                {"role": "user", "content": f"rated question {i} {text(3)}?"},
                {"role": "assistant", "content": f"{text(4)}{'.' if i % 2 else '!'}"},
            ],
            "attributes": {"quality": 4 * (i % 2), "humor": i % 5},
        }
        for i in range(24)
    ]
    prompts = [
        {"prompt": f"- {text(3)}\\n-", "group": "all", "label": ("neutral", "hate")[i % 2]}
        for i in range(4)
    ]
    write_lines(folder / "prompts.jsonl", prompts)
    write_lines(folder / "attributes.jsonl", rated)
    write_lines(folder / "demonstrations.jsonl", demonstrations)
    write_lines(folder / "preferences.jsonl", preferences)
    (folder / "mc_task.json").write_text(json.dumps(items))
    (folder / "toxicity.json").write_text(json.dumps(statements))


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
