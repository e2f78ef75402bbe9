"""The tasks, the samplers of section 3.1, sequences, masks, batches and the build.

The samplers run over many random graphs and are compared with sets and plain loops.
"""

import hashlib
import json
import os
import random
import re
import shutil
import subprocess
import sys
from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from pyarrow import ipc
from tokenizers import Tokenizer

import configs
import data
from configs import UserError
from data import CORRUPTED_ENTITIES, CORRUPTED_RELATION, EP, LP, MLM, RELATIONS, TASK_NAMES, TASKS, TC, TRUE
from model import Config, KGIBert
from support import builds, datasets, layouts, tokenizers
from support.relations import INVERSE, triple_key
from tests.conftest import FEW, ROOT, SMALL, build, command, graph_of, run_command
from tests.small_releases import BASE, TYPES, conso, rel, write, write_texts

SEEDS = range(12)
SY = RELATIONS.index("SY")


@pytest.fixture(scope="module", params=data.SPLITS)
def examples(request, dataset):
    return data.PretrainingDataset(dataset, request.param)


def tokens_of(examples, i):
    return examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tolist()


def cuis_of(examples, i):
    return examples.cuis[examples.cui_offsets[i] : examples.cui_offsets[i + 1]].tolist()


def split_of(examples):
    return "train" if len(examples) > 1000 else "valid"


def masked(examples, rows, epoch=0, seed=0, p=0.15):
    return examples.masked_batch(np.asarray(rows), np.full(len(rows), epoch), seed, p)


def unpack(batch, i):
    """(ids of example i, {position: label})."""
    ids, labels = (x[batch.offset[i] : batch.offset[i] + batch.length[i]].tolist() for x in (batch.ids, batch.labels))
    return ids, {k: label for k, label in enumerate(labels) if label != layouts.IGNORE}


def all_examples(batch):
    """(task, ids, {position: label}) of each example, as tuples in order."""
    examples = ((task, *unpack(batch, i)) for i, task in enumerate(batch.task.tolist()))
    return sorted((task, tuple(ids), tuple(labels.items())) for task, ids, labels in examples)


# ---------------------------------------------------------------- the four tasks


def test_the_table_of_tasks_is_complete():
    """Each task has its number, and its head has as many classes as its mask has labels."""
    model = KGIBert(Config(vocab_size=50, max_positions=8, dim=8, layers=1, heads=1, ffn=8))
    n_classes = {"mlm": 50, "ep": 50, "lp": len(RELATIONS) - 1, "tc": 2}
    for index, task in enumerate(TASKS):
        assert getattr(data, task.name.upper()) == index and TASK_NAMES.index(task.name) == index and task.title
        assert getattr(model, task.head)(torch.zeros(3, 8)).shape == (3, n_classes[task.name])
    assert len(set(TASK_NAMES)) == len(TASKS) and sorted([MLM, *data.GRAPH_TASKS]) == list(range(len(TASKS)))
    assert all(type(getattr(configs.Data(), task.setting)) is int for task in TASKS if task.name != "mlm")


def plain_hash(*keys):
    """SplitMix64 of whole numbers, one round a key, on Python's integers."""
    x = 0
    for key in keys:
        x = ((x ^ int(key)) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        x ^= x >> 31
    return x


def plain_uniform(*keys):
    return (plain_hash(*keys) >> 11) / 2**53


def plain_masking(e, row, epoch, seed, mlm_probability):
    """One example by a loop over its tokens: (ids that the model sees, {position: label})."""
    s, key, task = e.special, plain_hash(seed, epoch, row), TASK_NAMES[e.task[row]]
    ids, longest = tokens_of(e, row), e.seq_len - 2
    first = int(plain_uniform(key, 0) * (max(len(ids) - longest, 0) + 1))  # the window of a long document
    ids = [s["cls"], *ids[first : first + longest], s["sep"]]
    seen, labels, after_relation = list(ids), {}, False
    for k, token in enumerate(ids):
        is_relation, inside = token in s["relations"], 0 < k < len(ids) - 1
        token_key = plain_hash(key, 1, k)
        if task == "mlm" and inside and plain_uniform(token_key, 0) < mlm_probability:
            labels[k], draw = token, plain_uniform(token_key, 1)
            if draw < 0.8:
                seen[k] = s["mask"]
            elif draw < 0.9:
                seen[k] = int(e.ordinary[int(plain_uniform(token_key, 2) * len(e.ordinary))])
        if task == "ep" and inside and after_relation and not is_relation:
            seen[k], labels[k] = s["mask"], token
        if task == "lp" and is_relation:
            seen[k], labels[k] = s["hrel"], s["relations"].index(token)
        if task == "tc" and k == 0:
            labels[k] = 1 if e.kind[row] == TRUE else 0
        after_relation |= is_relation
    return seen, labels


def test_each_task_against_a_plain_loop_over_tokens(examples):
    """The masks of the table of tasks, and the batch that is made with them."""
    epoch, seed, p = 3, 7, 0.3
    rows = np.arange(len(examples))
    batch = masked(examples, rows, epoch, seed, p)
    for i, row in enumerate(rows):
        assert unpack(batch, i) == plain_masking(examples, row, epoch, seed, p)
    predicted = np.repeat(batch.task, batch.length)[batch.labels != layouts.IGNORE]
    assert batch.n_targets.tolist() == [(predicted == index).sum() for index in range(len(TASKS))]
    assert (batch.n_targets > 20).all() and batch.heads == tuple(task.head for task in TASKS)


NEW_TASK = (
    (
        "data.py",
        "# ---------------------------------------------------------------- the table of tasks\n",
        """def sample_head_prediction(rng, graph, split, n, s):
    i = stratified_sample(rng, split.index, graph.counts.sum(axis=1), n)
    return name_triples(rng, graph, graph.h[i], graph.r[i], graph.t[i], np.full(len(i), TRUE))


def mask_heads(tokens):
    is_relation = tokens.relation >= 0
    n_relations = np.cumsum(is_relation)
    n_relations -= n_relations[np.arange(len(n_relations)) - tokens.position]
    targets = np.flatnonzero(tokens.inside & (n_relations == 0))
    return targets, np.full(len(targets), tokens.special["mask"]), tokens.ids[targets]


""",
    ),
    (
        "data.py",
        ")\nTASK_NAMES = ",
        """    Task("hp", "head prediction", "mlm_head", sample_head_prediction, mask_heads, "hp_examples"),\n""",
    ),
    (
        "configs/__init__.py",
        "    valid_fraction: float = setting(",
        """    hp_examples: int = setting(0, "head-prediction examples a language", "sizes", most=10**9)\n""",
    ),
)
USE_OF_A_NEW_TASK = """
import numpy as np
import data
e = data.PretrainingDataset("data", "train")
rows = np.flatnonzero(e.task == data.TASK_NAMES.index("hp"))
batch = e.masked_batch(rows, np.zeros(len(rows), int), 0, 0.15)
for i, (offset, length) in enumerate(zip(batch.offset, batch.length)):
    stored, ids, labels = e.ids[e.offsets[rows[i]] :][: length - 2], *(x[offset : offset + length]
                                                                     for x in (batch.ids, batch.labels))
    n = next(k for k, x in enumerate(stored) if e.relation_of_token[x] >= 0)
    assert n and (ids[1 : n + 1] == e.special["mask"]).all() and (labels[1 : n + 1] == stored[:n]).all()
    assert (ids[n + 1 : -1] == stored[n:]).all() and (labels == -100).sum() == length - n
print(len(rows), "examples")
"""
COMMAND_IN_THIS_PROCESS = """
import runpy, sys
sys.argv = {!r}
runpy.run_path(sys.argv[0], run_name="__main__")
print("and then", flush=True)
"""


def test_a_task_is_one_entry_two_functions_and_one_setting(release, dataset, tmp_path):
    """Nothing else is changed; it is built, shown, masked, trained and validated, and the other examples stay."""
    for place in ("configs", "support"):
        shutil.copytree(ROOT / place, tmp_path / place, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    for name, before, added in NEW_TASK:
        code = (tmp_path / name).read_text()
        assert code.count(before) == 1
        (tmp_path / name).write_text(code.replace(before, added + before))
    settings = SMALL | {"lang": "en", "umls": release, "e3c": release / "E3C", "tokenizer": dataset, "out": "data"}
    build = ["data.py", "build", *(str(x) for k, v in settings.items() for x in (f"--{k}", v)), "--hp_examples", "300"]
    train = "kgi.py --data data --out run --layers 1 --heads 1 --dim 8 --ffn 8 --steps 1 --warmup 1 --device cpu"
    build, show, train = map(COMMAND_IN_THIS_PROCESS.format, (build, ["data.py", "show", "data"], train.split()))
    p = command("-c", build + show + USE_OF_A_NEW_TASK + train, cwd=tmp_path)
    assert p.returncode == 0, p.stderr
    _, shown, used = p.stdout.split("and then\n")
    assert "head prediction" in shown and used.startswith("300 examples\n")
    *_, validation = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    assert {f"{name}_loss" for name in (*TASK_NAMES, "hp")} < validation["valid"].keys()
    (step,) = (x for x in map(json.loads, open(tmp_path / "run" / "metrics.jsonl")) if "lr" in x)
    assert step["hp_loss"] > 1 and step["hp_loss"] != step["ep_loss"]
    old, new = (ipc.open_file(folder / "train.arrow").read_all() for folder in (dataset, tmp_path / "data"))
    assert len(new) == len(old) + 300
    assert new.filter(pc.not_equal(new["task"], len(TASKS))).to_pylist() == old.to_pylist()


# ---------------------------------------------------------------- the graph, and the split


def random_graph(seed, concepts=40, groups=3, density=0.02, inverses=True):
    """A Graph of random triples; `truth` is the set of what is true, inverses included."""
    rng = np.random.default_rng(seed)
    h, r, t = np.nonzero(rng.random((concepts, 7, concepts)) < density)
    terms = rng.integers(1, 5, concepts)
    keep = (h != t) | ((r == SY) & (terms[h] > 1))
    found = set(zip(h[keep].tolist(), r[keep].tolist(), t[keep].tolist()))
    inverse = {(t, INVERSE[r], h) for h, r, t in found}
    found |= inverse if inverses else set()
    h, r, t = (np.array(x) for x in zip(*sorted(found, key=lambda x: (x[0], x[2], x[1]))))
    first = np.concatenate([[0], np.cumsum(terms)])
    strings = pa.array([f"{c}.{k}" for c in range(concepts) for k in range(terms[c])])
    graph = data.Graph(
        "en", np.sort(rng.choice(10**6, concepts, replace=False)), rng.integers(0, groups, concepts).astype(np.int8),
        [f"G{i}" for i in range(groups)], first, strings, triple_key(h, r, t),
    )  # fmt: skip
    return graph, found | inverse


def sample(task, graph, split, n, s):
    """What the sampler of a task draws: a data.Sample."""
    return TASKS[task].sample(np.random.default_rng(s.seed), graph, data.SplitTriples(graph, split, s), n, s)


def triples_of(found):
    """[(h, r, t)] of a sample of triples, as numbers."""
    return list(zip(*(x.tolist() for x in found.triples())))


def paths_of(found):
    """[(concepts, relations)] of a sample, as tuples without the end."""
    rows = zip(found.concepts.tolist(), found.relations.tolist())
    return [tuple(tuple(x for x in ids if x >= 0) for ids in row) for row in rows]


def settings(**more):
    return configs.Data(valid_fraction=0.3, **more)


def pair_graph():
    truth = {(0, 0, 1), (1, 1, 0), (0, 4, 1), (1, 5, 0)}
    h, r, t = (np.array(x) for x in zip(*sorted(truth)))
    names, keys = pa.array(["a", "b"]), np.sort(triple_key(h, r, t))
    return data.Graph("en", np.array([5, 9]), np.zeros(2, np.int8), ["G"], np.arange(3), names, keys), truth


def test_contains_knows_every_triple_and_its_inverse(release):
    """contains() knows every triple and its inverse, and nothing else."""
    g = graph_of(release)
    rng = np.random.default_rng(0)
    truth = set(zip(g.h.tolist(), g.r.tolist(), g.t.tolist()))
    truth |= {(t, INVERSE[r], h) for h, r, t in truth}
    h, r, t = rng.integers(0, len(g.cui), 20_000), rng.integers(0, 7, 20_000), rng.integers(0, len(g.cui), 20_000)
    h, t = np.append(h, g.t), np.append(t, g.h)
    r = np.append(r, rng.integers(0, 7, len(g.h)))
    assert g.contains(h, r, t).tolist() == [x in truth for x in zip(h.tolist(), r.tolist(), t.tolist())]


def test_the_split_is_by_unordered_pair():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 10**7, 50_000), rng.integers(0, 10**7, 50_000)
    side = data.in_validation(a, b, 7, 0.1)
    assert (side == data.in_validation(b, a, 7, 0.1)).all() and abs(side.mean() - 0.1) < 0.01
    assert (side != data.in_validation(a, b, 8, 0.1)).any()


# ---------------------------------------------------------------- stratified sampling


def test_quotas_are_largest_remainder():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shares = rng.integers(0, 50, rng.integers(1, 8))
        if shares.sum() == 0:
            continue
        n = int(rng.integers(0, 200))
        quota = data.allocate_quotas(shares, n, np.full(len(shares), n))
        exact = shares / shares.sum() * n
        assert quota.sum() == n and (np.abs(quota - exact) < 1).all() and (quota[shares == 0] == 0).all()
        left = exact - np.floor(exact)
        up = quota > np.floor(exact)
        if up.any() and not up.all():
            assert left[up].min() >= left[~up].max() - 1e-9


def test_quotas_fill_small_strata_and_give_the_rest_to_others():
    assert data.allocate_quotas(np.array([1, 1, 2]), 40, np.array([3, 100, 100])).tolist() == [3, 12, 25]
    assert data.allocate_quotas(np.array([5, 5]), 40, np.array([3, 4])).tolist() == [3, 4]
    assert data.allocate_quotas(np.array([1, 0]), 6, np.array([2, 9])).tolist() == [2, 4]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shares, capacity = rng.integers(0, 9, 6), rng.integers(0, 30, 6)
        n = int(rng.integers(0, 120))
        quota = data.allocate_quotas(shares, n, capacity)
        assert quota.sum() == min(n, capacity.sum()) and (quota <= capacity).all()


def test_strata_are_exact_to_rounding():
    graph, _ = random_graph(0, concepts=120, density=0.01)
    stratum = graph.stratum(graph.h, graph.t)
    shares = np.bincount(stratum, minlength=9)
    everything = np.arange(len(graph.h))
    index = data.StratumIndex(everything, stratum, 9)
    drawn = data.stratified_sample(np.random.default_rng(1), index, shares, 100)
    got = np.bincount(stratum[drawn], minlength=9)
    assert len(np.unique(drawn)) == 100 and (np.abs(got - shares / shares.sum() * 100) < 1).all()
    again = data.stratified_sample(np.random.default_rng(1), index, shares, 5000, reuse=True)
    got, uses = np.bincount(stratum[again], minlength=9), np.bincount(again, minlength=len(everything))
    assert (np.abs(got - shares / shares.sum() * 5000) < 1).all()
    assert all(np.ptp(uses[stratum == s]) <= 1 for s in np.unique(stratum))  # used in turn


# ---------------------------------------------------------------- entity prediction and triple classification


@pytest.mark.parametrize("seed", SEEDS)
def test_entity_prediction_draws_true_triples_once(seed):
    graph, truth = random_graph(seed)
    for split in data.SPLITS:
        found = sample(EP, graph, split, 150, settings(seed=seed))
        drawn, (h, r, t), term = set(triples_of(found)), found.triples(), found.terms[:, 1]
        assert drawn <= truth and len(drawn) == len(h)  # true, and none twice
        owner = np.searchsorted(graph.first_term, found.terms, side="right") - 1
        assert (owner == found.concepts).all() and (found.terms[:, 0] == graph.first_term[h]).all()
        assert (found.kind == TRUE).all()
        is_preferred, alone = term == graph.first_term[t], np.diff(graph.first_term)[t] == 1
        assert (is_preferred == ((r != SY) | alone)).all()


def test_the_synonym_is_drawn_uniformly():
    graph, _ = random_graph(3)
    c = int(np.flatnonzero(np.diff(graph.first_term) == 4)[0])
    t = np.full(9000, c)
    term = data.choose_tail_terms(np.random.default_rng(0), graph, t, np.full(9000, SY), t) - graph.first_term[c]
    assert set(term.tolist()) == {1, 2, 3} and (np.abs(np.bincount(term)[1:] - 3000) < 5 * 45).all()


@pytest.mark.parametrize("inverses", [True, False])
@pytest.mark.parametrize("density", [0.005, 0.1, 0.4])
@pytest.mark.parametrize("seed", SEEDS)
def test_triple_classification_has_true_and_false_triples_in_halves(seed, density, inverses):
    graph, truth = random_graph(seed, density=density, inverses=inverses)
    s = settings(seed=seed)
    for split in data.SPLITS:
        found = sample(TC, graph, split, 400, s)
        (h, r, t), kind, drawn = found.triples(), found.kind, triples_of(found)
        n = np.bincount(kind, minlength=3)
        assert n[TRUE] == n[CORRUPTED_ENTITIES] + n[CORRUPTED_RELATION] and len(set(drawn)) == len(drawn)
        assert all((x in truth) == (k == TRUE) for x, k in zip(drawn, kind))  # no negative is true
        side = data.in_validation(graph.cui[h], graph.cui[t], seed, s.valid_fraction)
        assert (side == (split == "valid")).all()
        groups = {(graph.group[a], b, graph.group[c]) for a, b, c in truth}
        pairs = {(a, c) for a, _, c in truth}
        for a, b, c, k in zip(h.tolist(), r.tolist(), t.tolist(), kind):
            if k == CORRUPTED_ENTITIES:
                assert graph.group[a] != graph.group[c] and (graph.group[a], b, graph.group[c]) in groups
            if k == CORRUPTED_RELATION:
                assert graph.group[a] == graph.group[c] and (a, c) in pairs
        if split == "train" and density == 0.1:  # enough of everything
            assert n.tolist() == [200, 100, 100]


def test_each_kind_of_triple_keeps_the_strata_of_its_frame():
    """Each of the three kinds has the shares of the graph within its frame."""
    graph, _ = random_graph(5, concepts=200, density=0.01)
    s = configs.Data(valid_fraction=0.01, seed=0)
    found = sample(TC, graph, "train", 1200, s)
    (h, _, t), kind = found.triples(), found.kind
    stratum = graph.stratum(graph.h, graph.t)
    everywhere = np.bincount(stratum, minlength=9)
    across = np.arange(9) // 3 != np.arange(9) % 3
    for k, frame, n in (
        (TRUE, everywhere, 600),
        (CORRUPTED_ENTITIES, everywhere * across, 300),
        (CORRUPTED_RELATION, everywhere * ~across, 300),
    ):
        got = np.bincount(graph.stratum(h, t)[kind == k], minlength=9)
        assert got.sum() == n and (np.abs(got - frame / frame.sum() * n) < 1).all()


def test_negatives_end_in_graphs_that_allow_hardly_any():
    """Almost every pair related, one concept a group, one group only: fewer or none, never an endless loop."""
    for density, concepts, groups in ((0.97, 12, 2), (1.0, 8, 2), (0.3, 3, 3), (0.3, 20, 1)):
        graph, truth = random_graph(1, concepts=concepts, groups=groups, density=density)
        graph = replace(graph, group=(np.arange(concepts) % groups).astype(np.int8))
        found = sample(TC, graph, "train", 100, settings())
        kind = found.kind
        assert all((x in truth) == (k == TRUE) for x, k in zip(triples_of(found), kind))
        assert (kind == TRUE).sum() * 2 == len(kind)
        assert (kind == TRUE).sum() > 0 or density == 1.0
        if groups == 1:  # no pair of different groups: the other kind makes up for it
            assert (kind == CORRUPTED_RELATION).sum() == 50


def test_a_corrupted_relation_changes_only_the_relation():
    """Exhaustively, on one pair: each relation that the graph has and that is false here comes, no other."""
    seen = set()
    for seed in range(60):
        graph, truth = pair_graph()
        s = configs.Data(valid_fraction=1e-9, seed=seed)
        found = sample(TC, graph, "train", 2, s)
        seen |= {x for x, k in zip(triples_of(found), found.kind) if k == CORRUPTED_RELATION}
    assert seen == {(a, r, b) for r in (0, 1, 4, 5) for a, b in ((0, 1), (1, 0))} - truth


def test_the_relation_alone_gives_no_negative_away():
    """Relations come as often in false triples made by changing them as in the true ones."""
    graph, _ = random_graph(4, concepts=300, groups=1, density=0.004)
    rare = (graph.r >= 2) & (graph.r != SY) & (np.arange(len(graph.r)) % 9 > 0)  # PAR, CHD and SY prevail; no RN
    keep = ~rare & (graph.r != 5)
    graph = replace(graph, keys=graph.keys[keep])
    found = sample(TC, graph, "train", 1500, settings())
    r, kind = found.relations[:, 0], found.kind
    true, false = (np.bincount(r[kind == k], minlength=7) / (kind == k).sum() for k in (TRUE, CORRUPTED_RELATION))
    assert true[5] == false[5] == 0 and np.abs(true - false).max() < 0.08


# ---------------------------------------------------------------- link prediction


@pytest.mark.parametrize("most", [2, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_paths_are_distinct_walks_without_a_concept_twice(seed, most):
    graph, _ = random_graph(seed, density=0.02)
    s = settings(seed=seed, max_relations=most)
    triples = set(zip(graph.h.tolist(), graph.r.tolist(), graph.t.tolist()))
    for split in data.SPLITS:
        found = sample(LP, graph, split, 300, s)
        drawn, lengths = paths_of(found), []
        assert len(set(drawn)) == len(drawn) == len(found.kind) and (found.kind == TRUE).all()
        named = found.concepts >= 0
        assert (found.terms[named] == graph.first_term[found.concepts[named]]).all() and (found.terms[~named] < 0).all()
        for c, r in drawn:
            assert len(c) == len(r) + 1 and 2 <= len(r) <= most and len(set(c)) == len(c) and SY not in r
            for step in zip(c, r, c[1:]):
                assert step in triples
                side = data.in_validation(graph.cui[[step[0]]], graph.cui[[step[2]]], seed, s.valid_fraction)
                assert side == (split == "valid")
            lengths.append(len(r))
        if split == "train":
            assert len(drawn) == 300 and set(lengths) == set(range(2, most + 1))


def test_walks_against_all_paths():
    """On a small graph every path there is comes up, and nothing else."""
    graph, _ = random_graph(2, concepts=6, groups=1, density=0.05)
    edges = [(h, r, t) for h, r, t in zip(graph.h.tolist(), graph.r.tolist(), graph.t.tolist()) if r != SY]
    every, partial = set(), [((h, t), (r,)) for h, r, t in edges]
    while partial:
        c, r = partial.pop()
        for h, kind, t in edges:
            if h == c[-1] and t not in c and len(r) < 3:
                partial.append((c + (t,), r + (kind,)))
                every.add((c + (t,), r + (kind,)))
    s = configs.Data(valid_fraction=1e-9, max_relations=3)
    drawn = paths_of(sample(LP, graph, "train", 50 * len(every), s))
    assert len(every) > 20 and set(drawn) == every


def test_a_graph_of_synonyms_alone_has_no_paths():
    graph, _ = random_graph(1)
    graph = replace(graph, keys=graph.keys[graph.r == SY])
    n = {task: len(sample(task, graph, "train", 20, settings()).kind) for task in data.GRAPH_TASKS}
    assert n == {EP: 20, TC: 20, LP: 0}


def test_more_examples_asked_for_than_the_graph_has(tmp_path):
    """What a graph gives is all that takes memory; the wish alone takes none."""
    rows = [rel("C0000001", "PAR", "C0000002"), rel("C0000002", "PAR", "C0000003"), rel("C0000003", "SIB", "C0000001")]
    g = graph_of(write(tmp_path, BASE, rows, TYPES))
    settings = (TASKS[task].setting for task in (EP, TC))
    most = {name: configs.Data.__dataclass_fields__[name].metadata["most"] for name in settings}
    lines = []
    drawn = data.sample_tasks(g, "train", configs.Data(valid_fraction=1e-6, **most), lines.append)
    n = {task: len(found.kind) for task, found in drawn.items()}
    assert n[EP] == 2 and 2 <= n[TC] <= 4 and n[LP] == 1
    assert "en train: only 2 of the 1,000,000,000 requested entity prediction examples are available" in lines
    assert len(lines) == 3


# ---------------------------------------------------------------- sequences


def test_sequences_spell_the_triples(dataset, release, examples):
    """Equation (1): each sequence decodes to the names of its concepts and a relation of the graph."""
    g = graph_of(release, kept=configs.SEMANTIC_TYPES)
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    index = {int(c): i for i, c in enumerate(g.cui)}
    names = [g.terms[g.first_term[i] : g.first_term[i + 1]].to_pylist() for i in range(len(g.cui))]
    # what the tokenizer makes of a name alone, so that spaces and cut ends do not matter
    flat = [[tokenizer.encode(n, add_special_tokens=False).ids for n in ns] for ns in names]
    cls, sep, rel = examples.special["cls"], examples.special["sep"], examples.special["relations"]
    triples = set(zip(g.h.tolist(), g.r.tolist(), g.t.tolist()))
    seen = np.zeros(len(TASKS), int)
    for i in range(len(examples)):
        ids, task = tokens_of(examples, i), examples.task[i]
        seen[task] += 1
        if task == MLM:
            assert not set(ids) & {cls, sep, *rel} and len(ids) >= builds.MIN_DOCUMENT
            continue
        assert not set(ids) & {cls, sep} and len(ids) <= SMALL["seq_len"] - 2  # [CLS] and [SEP] are to come
        at = [k for k, x in enumerate(ids) if x in rel]
        relations = [rel.index(ids[k]) for k in at]
        pieces = [ids[a + 1 : b] for a, b in zip([-1, *at], [*at, len(ids)])]
        concepts = [index[c] for c in cuis_of(examples, i)]
        assert len(pieces) == len(concepts) and all(pieces)
        for k, (piece, c) in enumerate(zip(pieces, concepts)):
            other = task != LP and k == 1 and (relations[0] == SY or concepts[0] == c)
            allowed = flat[c][1:] if other and len(flat[c]) > 1 else flat[c][:1]
            assert piece in allowed
        steps = list(zip(concepts, relations, concepts[1:]))
        assert all((s in triples) == (task != TC or examples.kind[i] == data.TRUE) for s in steps)
        assert task != LP or 2 <= len(relations) <= 10
    assert (seen > 0).all() and seen.tolist() == [
        examples.manifest["counts"]["en"][split_of(examples)][t] for t in TASK_NAMES
    ]


def test_long_names_keep_the_relation_and_both_sides(release, tmp_path):
    """Cut to fit at seq_len 16: nothing longer, the relation there, and one token of each name."""
    out = build(release, tmp_path / "short", seq_len=16)
    for split in data.SPLITS:
        e = data.PretrainingDataset(out, split)
        lengths = np.diff(e.offsets)
        graph = e.task != MLM
        assert lengths[graph].max() == 16 - 2 and masked(e, e.rows).length.max() == 16
        for i in np.flatnonzero(graph):
            ids = tokens_of(e, i)
            at = [k for k, x in enumerate(ids) if e.relation_of_token[x] >= 0]
            assert at and at[0] > 0 and at[-1] < len(ids) - 1
            assert (len(at) >= 2) == (e.task[i] == LP) and len(cuis_of(e, i)) == len(at) + 1


# ---------------------------------------------------------------- documents and the tokenizer


def test_documents_are_counted_once_and_cut_into_windows(release, tmp_path):
    """A text counts once, or as often as it occurs; files with issues are counted; windows are cut as asked for."""
    few = {"tc_examples": 40, "ep_examples": 20, "lp_paths": 20}
    counts, longest = {}, {}
    for name, more in {"once": {}, "all copies": {"keep_duplicates": True}, "first": {"windows": "first"}}.items():
        out = build(release, tmp_path / name, **few, **more)
        splits = [data.PretrainingDataset(out, split) for split in data.SPLITS]
        counts[name] = sum((e.task == MLM).sum() for e in splits)
        lengths = np.concatenate([np.diff(e.offsets)[e.task == MLM] for e in splits])
        longest[name] = lengths.max()
        issues = json.loads((out / "manifest.json").read_text())["counts"]["en"]["issues"]
        assert issues["files without text"] == 4 and issues["files named for another language"] == 2
    assert (counts["once"], counts["all copies"], counts["first"]) == (60, 62, 60)
    assert longest["once"] > 62 == longest["first"]


def test_copies_of_a_text_are_in_one_split():
    texts = [f"text {i % 300}" for i in range(900)]
    copies = builds.split_documents(texts, 0, 0.3, keep_duplicates=True)
    assert not set(copies["train"]) & set(copies["valid"]) and len(copies["train"]) + len(copies["valid"]) == 900
    once = builds.split_documents(texts, 0, 0.3, keep_duplicates=False)
    assert all(set(copies[split]) == set(once[split]) for split in data.SPLITS)
    assert sum(map(len, once.values())) == 300


def test_the_special_tokens_come_first(dataset):
    t = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    wanted = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"[{r}]" for r in RELATIONS), "[HREL]"]
    assert [t.token_to_id(w) for w in wanted] == list(range(13))
    assert t.encode("liver [PAR] kidney").tokens[2] == "[PAR]"
    ids, n = tokenizers.encode(t, ["liver [SEP] [PAR]", ""], "x")
    assert not {t.token_to_id("[SEP]"), t.token_to_id("[PAR]")} & set(ids.tolist()) and n[1] == 0  # text, not marks


def test_a_checkpoints_tokenizer_keeps_its_ids(release, dataset, tmp_path):
    """Another tokenizer's ids stay, the relation tokens come behind them in their fixed order."""
    from tokenizers import models, pre_tokenizers

    words = ["<s>", "</s>", "<pad>", "<unk>", "<mask>", *"the of liver acute inflammation kidney".split()]
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    t.pre_tokenizer = pre_tokenizers.Whitespace()
    t.add_special_tokens(words[:5])
    t.enable_truncation(3)
    t.enable_padding(length=9)
    t.save(str(tmp_path / "tokenizer.json"))
    out = build(release, tmp_path / "en", tokenizer=str(tmp_path))
    special = json.loads((out / "manifest.json").read_text())["special"]
    n = len(words)
    roles = {"cls": 0, "sep": 1, "pad": 2, "unk": 3, "mask": 4}
    assert special == roles | {"relations": list(range(n, n + 7)), "hrel": n + 7}
    assert np.diff(data.PretrainingDataset(out, "train").offsets).max() > 30  # its own truncation is switched off
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer"):
        build(release, tmp_path / "en2", tokenizer=str(tmp_path / "bad"))


# ---------------------------------------------------------------- the build


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


def check_split(folder):
    pairs, documents = [], []
    for split in data.SPLITS:
        e = data.PretrainingDataset(folder, split)
        found, texts = set(), set()
        for i in range(len(e)):
            c = cuis_of(e, i)
            found |= {(min(p), max(p)) for p in zip(c, c[1:])}
            if e.task[i] == MLM:
                texts.add(tuple(tokens_of(e, i)))
        pairs.append(found)
        documents.append(texts)
    assert pairs[0] and pairs[1] and not pairs[0] & pairs[1]
    assert documents[0] and documents[1] and not documents[0] & documents[1]


def test_no_pair_or_document_is_in_both_splits(dataset):
    check_split(dataset)


def test_a_real_data_set_is_reproducible(real, tmp_path):
    """Two builds give the same bytes, and no pair or document is in both splits."""
    umls, e3c = real
    outs = []
    for name in ("a", "b"):
        s = configs.Data(
            lang="es", umls=str(umls), e3c=str(e3c), out=str(tmp_path / name), lp_paths=5000, tc_examples=20_000
        )
        data.build(s)
        outs.append(tmp_path / name)
    assert digests(outs[0]) == digests(outs[1])
    check_split(outs[0])


def test_same_input_same_bytes_whatever_the_order_of_rows(release, dataset, tmp_path):
    shuffled = tmp_path / "shuffled"
    shutil.copytree(release, shuffled)
    for i, path in enumerate(sorted((shuffled / "META").iterdir())):
        lines = path.read_bytes().splitlines(keepends=True)
        random.Random(i).shuffle(lines)
        path.write_bytes(b"".join(lines))
    assert digests(build(shuffled, tmp_path / "en")) == digests(dataset)
    other = digests(build(release, tmp_path / "seed", seed=1))
    assert other["train.arrow"] != digests(dataset)["train.arrow"]


def test_the_number_of_threads_changes_no_byte(release, dataset, tmp_path, monkeypatch):
    for threads in ("1", "3"):
        for name in ("RAYON_NUM_THREADS", "OMP_NUM_THREADS"):
            monkeypatch.setenv(name, threads)
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", str(threads != "1").lower())
        settings = {"lang": "en", "umls": release, "e3c": release / "E3C", "out": tmp_path / threads} | SMALL
        p = command("data.py", "build", *(x for k, v in settings.items() for x in (f"--{k}", v)))
        assert p.returncode == 0 and digests(tmp_path / threads) == digests(dataset), p.stderr


def test_a_data_set_of_several_languages(release, tmp_path):
    out = build(release, tmp_path / "multi", lang="multi")
    e = data.PretrainingDataset(out, "train")
    manifest = e.manifest
    assert manifest["languages"] == ["en", "fr", "es"] and manifest["name"] == "multi"
    by_list = digests(build(release, tmp_path / "list", lang="en,fr,es"))
    assert json.loads((tmp_path / "list" / "manifest.json").read_text())["name"] == "en-fr-es"
    assert [name for name, digest in digests(out).items() if by_list[name] != digest] == ["manifest.json"]  # its name
    for i, lang in enumerate(manifest["languages"]):
        n = np.bincount(e.task[e.lang == i], minlength=len(TASKS))
        assert n.tolist() == [manifest["counts"][lang]["train"][t] for t in TASK_NAMES]
        assert (n > 0).all()
    check_split(out)
    assert datasets.choose_languages(out, "es,en") == ["es", "en"] and len(datasets.choose_languages(out, "multi")) == 3


def test_a_release_that_holds_hardly_anything(tmp_path):
    """Names without tokens, tasks without examples, a language without documents: built, shown, masked, laid out."""
    names = [conso("C0000001", "\x01"), conso("C0000002", "\u200b"), conso("C0000003", "liver")]
    french = [conso(f"C000000{i}", "foie", lat="FRE", aui=f"A000001{i}") for i in (1, 2)]
    rows = [rel("C0000001", "PAR", "C0000002"), rel("C0000003", "CHD", "C0000002")]
    release = write(tmp_path / "release", names + french, rows, TYPES)
    shutil.copy(write_texts(tmp_path), tmp_path / "en.txt")
    (tmp_path / "fr.txt").write_text("")
    more = FEW | {"lang": "en,fr", "e3c": "none", "text": str(tmp_path / "{lang}.txt"), "valid_fraction": 0.3}
    out = build(release, tmp_path / "out", **more)
    data.show(configs.Show(dataset=str(out)))
    splits = [data.PretrainingDataset(out, split) for split in data.SPLITS]
    for e in splits:
        batch = masked(e, e.rows)
        assert all_examples(batch) and len([*layouts.padded(batch, 500, 64), *layouts.packed(batch, 500, 64)]) > 1
    unk = splits[0].special["unk"]
    assert any(tokens_of(e, i)[::2] == [unk, unk] for e in splits for i in np.flatnonzero(e.task == EP))
    assert not any(((e.lang == 1) & (e.task == MLM)).any() for e in splits)
    assert any((e.task == LP).sum() == 0 for e in splits)


def test_the_tables_agree_with_plain_counting(release, dataset, capsys):
    """Shares against plain counting over the graph and over the written examples; show prints them and examples."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    report = manifest["counts"]["en"]["distribution"]
    g, e = graph_of(release, kept=configs.SEMANTIC_TYPES), data.PretrainingDataset(dataset, "train")
    index = {int(c): i for i, c in enumerate(g.cui)}
    triples = {name: [] for name in report["columns"]}
    triples["graph"] = list(zip(g.h.tolist(), g.r.tolist(), g.t.tolist()))
    columns = {(EP, 0): "entity prediction", (LP, 0): "paths"}
    columns |= {(TC, k): name for k, name in enumerate(("true", "corrupted entities", "corrupted relation"))}
    for i in np.flatnonzero(e.task != MLM):
        c = [index[x] for x in cuis_of(e, i)]
        r = [int(e.relation_of_token[x]) for x in tokens_of(e, i) if e.relation_of_token[x] >= 0]
        triples[columns[int(e.task[i]), int(e.kind[i])]] += zip(c, r, c[1:])
    for k, name in enumerate(report["columns"]):
        found = triples[name]
        relations = Counter(r for _, r, _ in found)
        ends = Counter(g.groups[g.group[x]] for h, _, t in found for x in (h, t))
        cut = 0.02 if name == "paths" else 1e-5  # paths are cut to fit
        assert all(abs(report["relations"][x][k] - relations[i] / len(found)) < cut for i, x in enumerate(RELATIONS))
        assert all(abs(p[k] - ends[x] / 2 / len(found)) < cut for x, p in report["groups"].items())
        pairs = Counter((g.group[h], g.group[t]) for h, _, t in found)
        frame = [(a, b) for a, r, b in triples["graph"] if not (name == "paths" and r == SY)]
        frame = Counter((g.group[a], g.group[b]) for a, b in frame)
        if name.startswith("corrupted"):
            frame = Counter({p: n for p, n in frame.items() if (p[0] != p[1]) == (name == "corrupted entities")})
        off = max(abs(pairs[p] / len(found) - frame[p] / frame.total()) for p in pairs | frame)
        assert abs(off - report["largest_deviation"][name][0]) < cut
        assert name == "paths" or off * len(found) < 1  # exact to rounding
    data.show(configs.Show(dataset=str(dataset)))
    message = capsys.readouterr().out
    assert f"{manifest['counts']['en']['terms']:,}" in message and message.count("[MASK]") > 9 and "[HREL]" in message
    assert [message.count(f"-> {x}") for x in ("true", "false: other concepts", "false: another relation")] == [1, 1, 1]


@pytest.mark.parametrize("env", [{"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
                                 {"PYTHONIOENCODING": "latin-1"}, {"PYTHONIOENCODING": "ascii:strict"}])  # fmt: skip
def test_show_in_a_locale_without_the_letters(release, tmp_path, env):
    texts = write_texts(tmp_path)
    texts.write_text(texts.read_text(encoding="utf-8").replace("liver", "foie \u0153d\u00e9mateux \u80dd"), "utf-8")
    out = build(release, tmp_path / "fr", lang="fr", e3c="none", text=str(texts), **FEW)
    argv = [sys.executable, "data.py", "show", str(out)]
    p = subprocess.run(argv, cwd=ROOT, env=os.environ | env, capture_output=True)
    assert p.returncode == 0 and p.stdout.count(b"[CLS]") >= 9 and b"?" in p.stdout, p.stderr


@pytest.mark.parametrize("argv, message", [
    ([], "no language given"),
    (["--lang", "fr", "--umls", "nowhere"], "no UMLS release in nowhere"),
    (["--lang", "fr", "--umls", "none"], "no UMLS release in none"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--out", "."], "name a folder"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--valid_fraction", "1e-6"],
     "the valid split would be empty"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "nowhere"], "no E3C corpus in nowhere"),
    (["--lang", "xx", "--umls", "SAMPLE", "--e3c", "none"], "unknown language 'xx'"),
    (["--lang", "fr", "--umls", "EMPTY", "--e3c", "none"], "MRSTY.RRF is neither in"),
    (["--lang", "de", "--umls", "SAMPLE", "--e3c", "none"], "no row in language GER"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "NO_JSON"], "layer3 holds no .json file"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "EMPTY"], "data_collection/French/layer3 not found"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--tokenizer", "EMPTY"], "no tokenizer.json there"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--windows", "some"], "windows = 'some'"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--valid_fraction", "2"],
     "valid_fraction = 2.0 must be between"),
    (["--lang", "fr", "--umls", "SAMPLE", "--e3c", "none", "--out", "EMPTY/.."], "which this command did not write"),
])  # fmt: skip
def test_the_build_fails_in_one_line_and_leaves_nothing(release, tmp_path, monkeypatch, argv, message):
    monkeypatch.delenv("UMLS", False), monkeypatch.delenv("E3C", False)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "no-json" / "data_collection" / "French" / "layer3").mkdir(parents=True)
    names = {"SAMPLE": str(release), "EMPTY": str(tmp_path / "empty"), "EMPTY/..": str(tmp_path)}
    names["NO_JSON"] = str(tmp_path / "empty" / "no-json")
    argv = [names.get(a, a) for a in argv]
    out = tmp_path / "out"
    if "--out" not in argv:
        argv += ["--out", str(out)]
    sizes = ("--tc_examples", 50, "--ep_examples", 50, "--lp_paths", 50, "--vocab_size", 400)
    with pytest.raises(UserError, match=re.escape(message)):
        run_command(data, "build", *argv, *sizes)
    assert {f.name for f in tmp_path.iterdir()} <= {"empty", "tables"}  # what was read may stay


def test_the_command_fails_in_one_line(tmp_path):
    p = command("data.py", "build", "--lang", "fr", "--umls", "nowhere", "--out", tmp_path / "out")
    assert p.returncode == 1 and p.stderr.startswith("data.py: error: no UMLS release in nowhere\n")
    assert "Traceback" not in p.stderr and not [*tmp_path.iterdir()]


# ---------------------------------------------------------------- masks


def test_masks_of_each_task(examples):
    batch = masked(examples, range(len(examples)))
    mask, hrel, s = examples.special["mask"], examples.special["hrel"], examples.special
    for i in range(len(examples)):
        ids, targets = unpack(batch, i)
        task = examples.task[i]
        assert ids[0] == s["cls"] and ids[-1] == s["sep"] and len(ids) <= SMALL["seq_len"]
        if task == MLM:
            continue
        original = [s["cls"], *tokens_of(examples, i), s["sep"]]
        at = [k for k, x in enumerate(original) if examples.relation_of_token[x] >= 0]
        if task == EP:  # 100 % of the tail, nothing else
            tail = range(at[0] + 1, len(ids) - 1)
            assert targets == {k: original[k] for k in tail} and all(ids[k] == mask for k in tail)
        if task == LP:
            assert targets == {k: int(examples.relation_of_token[original[k]]) for k in at}
            assert all(ids[k] == hrel for k in at)
            assert all(0 <= label < 6 for label in targets.values())
        if task == TC:
            assert targets == {0: int(examples.kind[i] == data.TRUE)}
        assert all(a == b for k, (a, b) in enumerate(zip(ids, original)) if k not in targets or task == TC)


def test_mlm_rates(dataset):
    """15 % of the tokens; of these 80 % [MASK], 10 % another ordinary token, 10 % kept."""
    e = data.PretrainingDataset(dataset, "train")
    rows = np.flatnonzero(e.task == MLM)
    tokens, picked, kinds, random = 0, 0, np.zeros(3), []
    for epoch in range(60):
        whole, batch = masked(e, rows, epoch, p=0.0), masked(e, rows, epoch)
        assert not whole.n_targets.any() and len(whole.ids) == len(batch.ids)  # the same windows
        at = np.flatnonzero(batch.labels != layouts.IGNORE)
        labels = batch.labels[at]
        assert (whole.ids[at] == labels).all()
        untouched = np.ones(len(batch.ids), bool)
        untouched[at] = False
        assert (whole.ids[untouched] == batch.ids[untouched]).all()
        tokens += len(batch.ids) - 2 * len(rows)
        picked += len(at)
        is_mask, kept = batch.ids[at] == e.special["mask"], batch.ids[at] == labels
        kinds += is_mask.sum(), (~is_mask & ~kept).sum(), kept.sum()
        random += batch.ids[at][~is_mask & ~kept].tolist()
    assert abs(picked / tokens - 0.15) < 0.005
    assert np.abs(kinds / picked - [0.8, 0.1, 0.1]).max() < 0.01
    assert set(random) <= set(e.ordinary.tolist()) and len(set(random)) > len(e.ordinary) / 2
    assert not set(e.ordinary.tolist()) & set(range(13))


def test_a_mask_depends_on_seed_epoch_and_example_alone(dataset):
    e = data.PretrainingDataset(dataset, "train")
    rows = np.random.default_rng(0).permutation(len(e))[:200]
    batch = masked(e, rows)
    alone = [unpack(masked(e, [r]), 0) for r in rows]
    assert [unpack(batch, i) for i in range(len(rows))] == alone
    changed = np.flatnonzero(e.task[rows] == MLM)
    for other in (masked(e, rows, epoch=1), masked(e, rows, seed=1)):
        different = [unpack(other, i) != alone[i] for i in changed]
        assert np.mean(different) > 0.9


def test_windows_of_long_documents_cover_them(dataset):
    e = data.PretrainingDataset(dataset, "train")
    long = [i for i in np.flatnonzero(e.task == MLM) if len(tokens_of(e, i)) > 2 * SMALL["seq_len"]]
    i, window = long[0], SMALL["seq_len"] - 2
    document, starts = tokens_of(e, i), set()
    for epoch in range(400):
        ids, _ = unpack(masked(e, [i], epoch, p=0.0), 0)
        found = [k for k in range(len(document) - window + 1) if document[k : k + window] == ids[1:-1]]
        assert found
        starts |= set(found)
    assert 0 in starts and len(document) - window in starts


# ---------------------------------------------------------------- effective batches and micro-batches


def targets_of(m):
    """{position in the rows of a micro-batch: (task, label, example of the effective batch)}."""
    task = [index for index, n in enumerate(m.n_targets) for _ in range(n)]  # they are sorted by task
    at, *answers = m.target_index.tolist(), task, m.label.tolist(), m.example.tolist()
    assert len(set(at)) == len(at) == len(task)
    return dict(zip(at, zip(*answers)))


def as_example(batch, ids, answers):
    """An example of a micro-batch, as all_examples has it. answers: {position: (task, label, example)}."""
    ((task, example),) = {(task, example) for task, _, example in answers.values()} or {(MLM, None)}
    if example is not None:
        offset, length = batch.offset[example], batch.length[example]
        inputs = batch.ids[offset : offset + length]
        assert ids == inputs.tolist() and task == batch.task[example]
    return task, tuple(ids), tuple((k, label) for k, (_, label, _) in sorted(answers.items()))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("max_tokens", [1, 300, 5000, 10**6])
@pytest.mark.parametrize("max_padding", [0, 20, 10**6])
def test_padded_micro_batches_are_the_batch(dataset, max_tokens, max_padding, world_size):
    """Every row and every target comes once, padded with [PAD] alone, whatever the limits and the ranks."""
    e = data.PretrainingDataset(dataset, "train")
    batch = masked(e, np.random.default_rng(1).permutation(len(e))[:150])
    got, n_padded = [], 0
    for rank in range(world_size):
        for m in layouts.padded(batch, max_tokens, max_padding, rank, world_size):
            n, width = m.ids.shape
            lengths = torch.full((n,), width) if m.mask is None else m.mask.sum(dim=1)
            assert m.mask is None or torch.equal(m.mask, torch.arange(width) < lengths[:, None])
            assert (n * width <= max_tokens and n * width - lengths.sum() <= max_padding) or n == 1
            assert m.position is None and m.heads == batch.heads
            n_padded += n * width
            rows = [{} for _ in range(n)]
            for k, answer in targets_of(m).items():
                rows[k // width][k % width] = answer
            for ids, length, answers in zip(m.ids, lengths.tolist(), rows):
                assert (ids[length:] == e.special["pad"]).all()
                got.append(as_example(batch, ids[:length].tolist(), answers))
    assert sorted(got) == all_examples(batch)
    if max_tokens == 300 and world_size == 1:
        assert n_padded < 1.25 * batch.length.sum()


def test_a_rank_without_examples_gets_an_empty_micro_batch(dataset):
    e = data.PretrainingDataset(dataset, "train")
    batch = masked(e, [0, 1])
    sizes = [[m.ids.shape[0] for m in layouts.padded(batch, 100, 100, rank, 4)] for rank in range(4)]
    assert sizes == [[1], [1], [0], [0]]  # an empty one keeps the others from waiting


@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("max_tokens, row_multiple", [(1, 1), (1, 8), (640, 8), (10**6, 1)])
def test_packed_rows_are_the_batch(dataset, max_tokens, row_multiple, world_size):
    """Every example and every target comes once, in rows of one length, in micro-batches of one shape on all ranks."""
    e = data.PretrainingDataset(dataset, "train")
    batch = masked(e, np.random.default_rng(1).permutation(len(e))[:150])
    got, shapes = [], []
    for rank in range(world_size):
        found = list(layouts.packed(batch, max_tokens, SMALL["seq_len"], row_multiple, rank, world_size))
        shapes.append([m.ids.shape for m in found])
        assert world_size > 1 or all(m.mask.any() for m in found)  # none is empty
        for m in found:
            n_rows, row_length = m.ids.shape
            assert row_length == SMALL["seq_len"] and n_rows % row_multiple == 0 and n_rows > 1
            assert n_rows <= max(2, row_multiple, max_tokens // row_length)
            assert (m.ids[m.mask == 0] == e.special["pad"]).all() and m.heads == batch.heads
            targets = targets_of(m)
            for row in range(n_rows):
                for number in set(m.mask[row].tolist()) - {0}:
                    at = np.flatnonzero(m.mask[row] == number)
                    assert (m.position[row, at].numpy() == np.arange(len(at))).all() and np.ptp(at) == len(at) - 1
                    mine = {k: targets[i] for k, i in enumerate((row * row_length + at).tolist()) if i in targets}
                    got.append(as_example(batch, m.ids[row, at].tolist(), mine))
    assert sorted(got) == all_examples(batch)
    assert all(s == shapes[0] and len(set(s)) == 1 for s in shapes)


def test_first_fit_decreasing():
    """No row overflows, no two examples overlap, and each is in the first row that had room for it."""
    rng = np.random.default_rng(0)
    length = rng.integers(3, 65, 400)
    row, first = layouts.first_fit_decreasing(length, 64)
    used = np.zeros((row.max() + 1, 64), int)
    free = [64] * 400
    for i in np.argsort(-length, kind="stable"):
        assert row[i] == next(r for r, n in enumerate(free) if n >= length[i])
        free[row[i]] -= length[i]
        used[row[i], first[i] : first[i] + length[i]] += 1
    assert used.max() == 1 and used.sum() == length.sum() and used.mean() > 0.95


def test_each_epoch_is_a_permutation():
    order = data.EpochSampler(10, 4, seed=3)
    steps = [order(s) for s in range(10)]
    for epoch in range(4):
        rows = [r for positions, epochs in steps for r, e in zip(positions.tolist(), epochs.tolist()) if e == epoch]
        assert sorted(rows) == list(range(10))
    assert all(len(positions) == 4 for positions, _ in steps)
    again = data.EpochSampler(10, 4, seed=3)(7)  # without having seen the steps before
    assert (again[0] == steps[7][0]).all() and (again[1] == steps[7][1]).all()
    big = data.EpochSampler(3, 8, seed=0)(1)  # an effective batch larger than the data set
    assert big[1].tolist() == [2, 3, 3, 3, 4, 4, 4, 5]
