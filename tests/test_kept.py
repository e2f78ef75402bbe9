"""Examples, masks, labels and losses are those of the commit before the tower: kept.json holds their digests.

`python -m tests.test_kept` writes kept.json again. Do so only where examples are meant to change.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

import data
import kgi
from support.layouts import IGNORE
from tests.conftest import build
from tests.training import lines, train

KEPT = Path(__file__).with_name("kept.json")
EPOCHS = (0, 1, 7, kgi.VALID_EPOCH)
SEEDS = (0, 3)


def digest(*arrays):
    found = hashlib.sha256()
    for x in arrays:
        found.update(np.ascontiguousarray(x, np.int64).tobytes())
    return found.hexdigest()[:16]


def describe_examples(dataset):
    """{task name: (how many examples, a digest)} of a split: language, kind and concepts of each."""
    out = {}
    for index, name in enumerate(data.TASK_NAMES):
        rows = np.flatnonzero(dataset.task == index)
        cuis = [dataset.cuis[dataset.cui_offsets[row] : dataset.cui_offsets[row + 1]] for row in rows.tolist()]
        of_examples = [len(x) for x in cuis], np.concatenate(cuis)
        out[name] = len(rows), digest(dataset.lang[rows], dataset.kind[rows], *of_examples)
    return out


def describe_batch(dataset, epoch, seed):
    """{task name: (how many targets, a digest)} of all examples, masked: inputs, positions and labels."""
    rows = dataset.rows
    batch = dataset.masked_batch(rows, np.full(len(rows), epoch), seed, 0.15)
    example = np.repeat(np.arange(len(rows)), batch.length)
    out = {}
    for index, name in enumerate(data.TASK_NAMES):
        of_task = dataset.task[rows] == index
        token = np.flatnonzero(of_task[example] & (batch.labels != IGNORE))
        targets = example[token], token - batch.offset[example[token]], batch.labels[token]
        digests = digest(batch.ids[of_task[example]], batch.length[of_task], *targets)
        out[name] = len(token), digests
    return out


def describe(release, folder):
    """What kept.json holds, of a data set that is built from a synthetic release."""
    build(release, folder / "two", lang="en,fr")
    out = {}
    for split in data.SPLITS:
        dataset = data.PretrainingDataset(folder / "two", split)
        out[f"{split}, examples"] = describe_examples(dataset)
        for epoch in EPOCHS:
            for seed in SEEDS:
                out[f"{split}, epoch {epoch}, seed {seed}"] = describe_batch(dataset, epoch, seed)
    for layout in ("padded", "packed"):
        train(folder / "two", folder / layout, layout=layout, steps=12, valid_every=6)
        found = [record | record.get("valid", {}) for record in lines(folder / layout)]
        names = ("loss", *(f"{name}_loss" for name in data.TASK_NAMES))
        out[f"losses, {layout}"] = [[record["step"], *(record.get(name, 0.0) for name in names)] for record in found]
    return json.loads(json.dumps(out))


@pytest.fixture(scope="module")
def found(release, tmp_path_factory, request):
    with pytest.MonkeyPatch.context() as m:
        m.setattr("support.hardware.measure_matmul_flops", lambda *_: 1e11)
        return describe(release, tmp_path_factory.mktemp("kept"))


def test_examples_masks_and_labels_are_the_kept_ones(found):
    kept = json.loads(KEPT.read_text())
    assert found.keys() == kept.keys()
    for what in kept:
        if not what.startswith("losses"):
            assert found[what] == kept[what], what


def test_losses_are_the_kept_ones(found):
    kept = json.loads(KEPT.read_text())
    for what in (name for name in kept if name.startswith("losses")):
        assert np.allclose(found[what], kept[what], rtol=1e-4), what  # other processors round otherwise


if __name__ == "__main__":
    import tempfile

    from tests import synthetic_umls

    with tempfile.TemporaryDirectory() as place:
        sample = Path(place, "sample")
        sample.mkdir()
        terms = synthetic_umls.write_release(sample, 700)
        synthetic_umls.write_documents(sample, terms, 60)
        KEPT.write_text(json.dumps(describe(sample, Path(place)), indent=1) + "\n")
