"""The demo's closing table: what pre-training learnt, and what it is worth for NER.

python tests/closing.py demo
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402

NAMES = {
    "mlm": "masked language modelling", "ep": "entity prediction", "lp": "link prediction",
    "tc": "triple classification",
}  # fmt: skip


def guess(folder):
    """Accuracy in per cent of who knows only how often what occurs in training: link prediction by the most
    frequent relation, triple classification by the relation token alone."""
    parts = []
    for part in data.PARTS:
        e = data.Examples(Path(folder, "fr"), part)
        batch = e.batch(np.zeros(len(e), int), np.arange(len(e)), 0, 0.0)
        links = batch.label[batch.task == data.LP]
        rows = np.flatnonzero(e.task == data.TC)
        relation = [e.relation[e.ids[e.offsets[i] : e.offsets[i + 1]]].max() for i in rows]
        parts.append((links, np.array(relation), e.kind[rows] == data.TRUE))
    (links, r, true), (links_v, r_v, true_v) = parts
    answer = np.array([true[r == k].mean() > 0.5 if (r == k).any() else True for k in range(7)])
    return {
        "lp": f"{100 * (links_v == np.bincount(links).argmax()).mean():.1f}",
        "tc": f"{100 * (answer[r_v] == true_v).mean():.1f}",
    }


def main(folder):
    by_guess = guess(folder)
    lines = (Path(folder, "kgi-fr", "metrics.jsonl")).read_text().splitlines()
    valid = [r["valid"] for r in map(json.loads, lines) if "valid" in r]
    print(f"\n{'held-out pairs and documents':<32} {'guess':>8} {'before':>8} {'after':>8}")
    for task, name in NAMES.items():
        before, after = (100 * v[f"{task}_accuracy"] for v in (valid[0], valid[-1]))
        print(f"{name + ', accuracy':<36} {by_guess.get(task, ''):>4} {before:8.1f} {after:8.1f}")
    print(f"\n{'one-shot NER, F1':<32} {'all O':>8} {'untrained':>15} {'pre-trained':>15}")
    runs = {
        kind: json.loads(Path(folder, "results", kind, "scores.json").read_text())["runs"]
        for kind in ("untrained", "pretrained")
    }
    for kind, name, i in (("paper", "per-sequence macro (the paper's)", 2), ("entity", "entities, strict", 2)):
        values = [[r[kind][i] for r in runs[which]] for which in ("untrained", "pretrained")]
        cells = [f"{statistics.mean(v):.1f} ± {statistics.stdev(v):.1f}" for v in values]
        floor = runs["untrained"][0]["floor"] if kind == "paper" else 0.0
        print(f"{name:<32} {floor:8.1f} {cells[0]:>15} {cells[1]:>15}")


if __name__ == "__main__":
    main(sys.argv[1])
