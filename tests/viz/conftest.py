from __future__ import annotations

import json

import numpy as np
import pytest
from made_run import HOSTILE, evaluation, row
from PIL import Image as PIL


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "my run"
    rows = [row(i, lang="zh" if i % 2 else "en") for i in range(30)]
    rows[0] = row(0, prediction=HOSTILE, right=0.0)
    rows[1] = row(1, "grounding", "zh", "<|box_start|>(1,2),(3,4)<|box_end|>", 0.0)
    rows[1] |= {
        "values": {"acc@0.5": 0.0, "iou": 0.4, "readable": 1.0},
        "boxes_px": [{"label": HOSTILE, "xyxy": [1, 2, 30, 20]}],
        "answer_boxes_px": [[5, 5, 25, 25]],
    }
    for stage, accuracy in (("late", 0.5), ("early", 0.25), ("final", 0.6)):
        eval_folder = folder / "eval" / stage
        (eval_folder / "pictures").mkdir(parents=True)
        (eval_folder / "metrics.json").write_text(json.dumps(evaluation(accuracy)))
        (eval_folder / "predictions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    for i in range(30):
        picture = PIL.fromarray(np.full((40, 60, 3), 8 * i, dtype=np.uint8))
        picture.save(folder / "eval" / "final" / "pictures" / f"{i}.webp")
    log = [
        {
            "stage": stage,
            "step": i,
            "elapsed_s": 60.0 * (10 * s + i),
            "loss": 2.0 / (i + 1),
            "task_loss": {"count": 1.0},
        }
        for s, stage in enumerate(("early", "late"))
        for i in range(1, 9)
    ]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, log)) + "\n")
    (folder / "config.yaml").write_text(f"note: '{HOSTILE}'\n")
    summary = {
        "name": f"tiny {HOSTILE}",
        "model": "qwen2_vl",
        "parameters": {"text": 2_900_000, "vision": 1_300_000},
        "seconds": 905,
        "hardware": {"cpu": "EPYC", "cores": 2},
        "targets": {"vqa/accuracy": 0.5, "caption/cider": 6.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder
