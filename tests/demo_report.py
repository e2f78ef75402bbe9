"""The end of the demo: what pre-training learnt, what it is worth for NER, and the pictures to look at.

python tests/demo_report.py demo
"""

import json
import statistics
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import data  # noqa: E402
import kgi  # noqa: E402
import model as models  # noqa: E402
from beyond import evaluate  # noqa: E402
from configs import command_line  # noqa: E402
from support.layouts import IGNORE  # noqa: E402
from support.reports import of_tokens  # noqa: E402

KINDS = "untrained", "pretrained"  # folders of results
PICTURES = {
    "curves of the training": "kgi-fr/curves.png",
    "map of the terms": "results/kgi-fr/map-fr.png",
    "page of tagged text": "results/tagged.html",
}


def majority_baseline(folder):
    """Accuracy in per cent of the most frequent answer in training.

    For link prediction it is the most frequent relation, for triple classification the more frequent class of the
    triple's relation.
    """
    links, relations, true = zip(*(pairs_of(data.PretrainingDataset(folder, split)) for split in data.SPLITS))
    majority = np.bincount(links[0]).argmax()
    mostly_true = np.ones(len(data.RELATIONS), bool)
    for k in np.unique(relations[0]):
        mostly_true[k] = true[0][relations[0] == k].mean() > 0.5
    return {
        "lp": f"{100 * (links[1] == majority).mean():.1f}",
        "tc": f"{100 * (mostly_true[relations[1]] == true[1]).mean():.1f}",
    }


def pairs_of(dataset):
    """(labels of link prediction, relation of each triple to classify, whether it is true) of a split."""
    links = dataset.rows[dataset.task[dataset.rows] == data.LP]
    batch = dataset.masked_batch(links, np.zeros(len(links), int), 0, 0.0)
    triples = np.flatnonzero(dataset.task == data.TC)
    tokens = (dataset.ids[dataset.offsets[i] : dataset.offsets[i + 1]] for i in triples)
    relations = np.array([dataset.relation_of_token[ids].max() for ids in tokens])
    return batch.labels[batch.labels != IGNORE], relations, dataset.kind[triples] == data.TRUE


def whole_entities(folder, config):
    """Accuracy of entity prediction in per cent if all tokens of an entity must be right: before and after training."""
    run = kgi.set_up(command_line.parse([config], kgi.__doc__, kgi.COMMANDS, "train")[1])
    both = run.model, models.load(run.out, log=lambda _: None)
    return [evaluate.evaluate_tasks(m.eval(), Path(folder, "fr"), 0, None)["ep"]["entities"] for m in both]


def main(folder, config="configs/demo.toml"):
    baseline = majority_baseline(Path(folder, "fr"))
    lines = Path(folder, "kgi-fr", "metrics.jsonl").read_text().splitlines()
    valid = [r["valid"] for r in map(json.loads, lines) if "valid" in r]
    print(f"\n{'held-out, accuracy in per cent':<36} {'majority baseline':>17} {'before':>15} {'after':>15}")
    for task in data.TASKS:
        before, after = (100 * v[f"{task.name}_accuracy"] for v in (valid[0], valid[-1]))
        print(f"{task.title + of_tokens(task.name):<36} {baseline.get(task.name, ''):>17} {before:15.1f} {after:15.1f}")
        if task.name == "ep":
            before, after = whole_entities(folder, config)
            print(f"{'entity prediction, of entities':<36} {'':>17} {before:15.1f} {after:15.1f}")
    print(f"\n{'one-shot NER, F1 in per cent':<36} {'constant baseline':>17} {'untrained':>15} {'pre-trained':>15}")
    runs = [json.loads(Path(folder, "results", kind, "scores.json").read_text())["runs"] for kind in KINDS]
    for kind, title, key in (
        ("paper", "macro, averaged over sequences", "constant_baseline"),
        ("entity", "entities, strict", "constant_baseline_entity"),
    ):
        f1 = [[r[kind][2] for r in scores] for scores in runs]
        cells = [f"{statistics.mean(x):.1f} ± {statistics.stdev(x):.1f}" for x in f1]
        print(f"{title:<36} {runs[0][0][key]:17.1f} {cells[0]:>15} {cells[1]:>15}")
    print()
    for title, path in PICTURES.items():
        print(f"{title:<36} {Path(folder, path)}")


if __name__ == "__main__":
    main(sys.argv[1])
