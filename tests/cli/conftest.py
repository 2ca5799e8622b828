from __future__ import annotations

from pathlib import Path

import pytest

RECIPE = """\
run: {run}
model: tiny
eval_samples: 1
final_eval_samples: 1
threads: 1
log_every: 1
stages:
  - name: words
    trains: [text]
    share: 1
    steps: 2
    evaluate: false
    tokens_per_pack: 400
    world: {{tasks: {{text: 1}}}}
  - name: chat
    trains: [vision, merger, text]
    share: 1
    steps: 2
    tokens_per_pack: 800
    chat_format: chatml
    world: {{style: chat, tasks: {{caption: 1, what: 1}}}}
    optim: {{lr: 1e-3}}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A recipe of two stages with two steps each."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(run=tmp_path / "run"), encoding="utf-8")
    return path
