"""The three samplers of section 3.1, over many random graphs, against sets and plain loops."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import configs
import data
from data import OTHER_PAIR, OTHER_RELATION, SY, TRUE

SEEDS = range(12)


def random_graph(seed, concepts=40, groups=3, density=0.02, inverses=True):
    """A Graph of random triples; `truth` is the set of what is true, inverses included."""
    rng = np.random.default_rng(seed)
    h, r, t = np.nonzero(rng.random((concepts, 7, concepts)) < density)
    terms = rng.integers(1, 5, concepts)
    keep = (h != t) | ((r == SY) & (terms[h] > 1))
    found = set(zip(h[keep].tolist(), r[keep].tolist(), t[keep].tolist()))
    inverse = {(t, int(data.INVERSE[r]), h) for h, r, t in found}
    found |= inverse if inverses else set()
    h, r, t = (np.array(x) for x in zip(*sorted(found, key=lambda x: (x[0], x[2], x[1]))))
    first = np.concatenate([[0], np.cumsum(terms)])
    strings = pa.array([f"{c}.{k}" for c in range(concepts) for k in range(terms[c])])
    graph = data.Graph(
        "en", np.sort(rng.choice(10**6, concepts, replace=False)), rng.integers(0, groups, concepts).astype(np.int8),
        [f"G{i}" for i in range(groups)], first, strings, data.Graph.key(h, r, t),
    )  # fmt: skip
    return graph, found | inverse


def sizes(n):
    return {data.EP: n, data.LP: n, data.TC: n}


def settings(**more):
    return configs.Data(valid=0.3, **more)


def test_deal_is_largest_remainder():
    rng = np.random.default_rng(0)
    for _ in range(200):
        shares = rng.integers(0, 50, rng.integers(1, 8))
        if shares.sum() == 0:
            continue
        n = int(rng.integers(0, 200))
        quota = data.deal(shares, n, np.full(len(shares), n))
        exact = shares / shares.sum() * n
        assert quota.sum() == n and (np.abs(quota - exact) < 1).all() and (quota[shares == 0] == 0).all()
        left = exact - np.floor(exact)
        up = quota > np.floor(exact)
        if up.any() and not up.all():
            assert left[up].min() >= left[~up].max() - 1e-9


def test_deal_fills_small_strata_and_deals_the_rest_on():
    assert data.deal(np.array([1, 1, 2]), 40, np.array([3, 100, 100])).tolist() == [3, 12, 25]
    assert data.deal(np.array([5, 5]), 40, np.array([3, 4])).tolist() == [3, 4]
    assert data.deal(np.array([1, 0]), 6, np.array([2, 9])).tolist() == [2, 4]
    for seed in range(100):
        rng = np.random.default_rng(seed)
        shares, room = rng.integers(0, 9, 6), rng.integers(0, 30, 6)
        n = int(rng.integers(0, 120))
        quota = data.deal(shares, n, room)
        assert quota.sum() == min(n, room.sum()) and (quota <= room).all()


@pytest.mark.parametrize("seed", SEEDS)
def test_entity_prediction(seed):
    graph, truth = random_graph(seed)
    for part in data.PARTS:
        (h, r, t, term), _, _ = data.sample(graph, part, sizes(150), settings(seed=seed))
        drawn = set(zip(h.tolist(), r.tolist(), t.tolist()))
        assert drawn <= truth and len(drawn) == len(h)  # true, and none twice
        owner = np.searchsorted(graph.first_term, term, side="right") - 1
        assert (owner == t).all()
        is_preferred, alone = term == graph.first_term[t], np.diff(graph.first_term)[t] == 1
        assert (is_preferred == ((r != SY) | alone)).all()


def test_strata_are_exact_to_rounding():
    graph, _ = random_graph(0, concepts=120, density=0.01)
    stratum = graph.stratum(graph.h, graph.t)
    shares = np.bincount(stratum, minlength=9)
    everything = np.arange(len(graph.h))
    pool = data.Pool(everything, stratum, 9)
    drawn = data.stratified(np.random.default_rng(1), pool, shares, 100)
    got = np.bincount(stratum[drawn], minlength=9)
    assert len(np.unique(drawn)) == 100 and (np.abs(got - shares / shares.sum() * 100) < 1).all()
    again = data.stratified(np.random.default_rng(1), pool, shares, 5000, repeat=True)
    got, uses = np.bincount(stratum[again], minlength=9), np.bincount(again, minlength=len(everything))
    assert (np.abs(got - shares / shares.sum() * 5000) < 1).all()
    assert all(np.ptp(uses[stratum == s]) <= 1 for s in np.unique(stratum))  # used in turn


def test_the_synonym_is_drawn_uniformly():
    graph, _ = random_graph(3)
    c = int(np.flatnonzero(np.diff(graph.first_term) == 4)[0])
    t = np.full(9000, c)
    term = data.tail_terms(np.random.default_rng(0), graph, t, np.full(9000, SY), t) - graph.first_term[c]
    assert set(term.tolist()) == {1, 2, 3} and (np.abs(np.bincount(term)[1:] - 3000) < 5 * 45).all()


@pytest.mark.parametrize("inverses", [True, False])
@pytest.mark.parametrize("density", [0.005, 0.1, 0.4])
@pytest.mark.parametrize("seed", SEEDS)
def test_classification(seed, density, inverses):
    graph, truth = random_graph(seed, density=density, inverses=inverses)
    s = settings(seed=seed)
    for part in data.PARTS:
        _, (kind, h, r, t, _), _ = data.sample(graph, part, sizes(400), s)
        drawn = list(zip(h.tolist(), r.tolist(), t.tolist()))
        n = np.bincount(kind, minlength=3)
        assert n[TRUE] == n[OTHER_PAIR] + n[OTHER_RELATION] and len(set(drawn)) == len(drawn)
        assert all((x in truth) == (k == TRUE) for x, k in zip(drawn, kind))  # no negative is true
        side = data.held_out(graph.cui[h], graph.cui[t], seed, s.valid)
        assert (side == (part == "valid")).all()
        groups = {(graph.group[a], b, graph.group[c]) for a, b, c in truth}
        pairs = {(a, c) for a, _, c in truth}
        for a, b, c, k in zip(h.tolist(), r.tolist(), t.tolist(), kind):
            if k == OTHER_PAIR:
                assert graph.group[a] != graph.group[c] and (graph.group[a], b, graph.group[c]) in groups
            if k == OTHER_RELATION:
                assert graph.group[a] == graph.group[c] and (a, c) in pairs
        if part == "train" and density == 0.1:  # enough of everything
            assert n.tolist() == [200, 100, 100]


def test_classification_strata():
    """Each of the three kinds has the shares of the graph within its frame."""
    graph, _ = random_graph(5, concepts=200, density=0.01)
    s = configs.Data(valid=0.01, seed=0)
    _, (kind, h, r, t, _), _ = data.sample(graph, "train", sizes(1200), s)
    stratum = graph.stratum(graph.h, graph.t)
    everywhere = np.bincount(stratum, minlength=9)
    across = np.arange(9) // 3 != np.arange(9) % 3
    for k, frame, n in (
        (TRUE, everywhere, 600),
        (OTHER_PAIR, everywhere * across, 300),
        (OTHER_RELATION, everywhere * ~across, 300),
    ):
        got = np.bincount(graph.stratum(h, t)[kind == k], minlength=9)
        assert got.sum() == n and (np.abs(got - frame / frame.sum() * n) < 1).all()


def test_negatives_in_hopeless_graphs_end():
    """Almost every pair related, one concept a group, one group only: fewer or none, never an endless loop."""
    for density, concepts, groups in ((0.97, 12, 2), (1.0, 8, 2), (0.3, 3, 3), (0.3, 20, 1)):
        graph, truth = random_graph(1, concepts=concepts, groups=groups, density=density)
        graph = replace(graph, group=(np.arange(concepts) % groups).astype(np.int8))
        _, (kind, h, r, t, _), _ = data.sample(graph, "train", sizes(100), settings())
        assert all((x in truth) == (k == TRUE) for x, k in zip(zip(h.tolist(), r.tolist(), t.tolist()), kind))
        assert (kind == TRUE).sum() * 2 == len(kind)
        assert (kind == TRUE).sum() > 0 or density == 1.0
        if groups == 1:  # no pair of different groups: the other kind makes up for it
            assert (kind == OTHER_RELATION).sum() == 50


def test_a_graph_of_synonyms_alone_has_no_paths():
    graph, _ = random_graph(1)
    graph = replace(graph, keys=graph.keys[graph.r == SY])
    (h, *_), (kind, *_), (concepts, relations) = data.sample(graph, "train", sizes(20), settings())
    assert len(h) == 20 and len(kind) == 20 and len(concepts) == len(relations) == 0


def test_other_relation_changes_only_the_relation():
    """Exhaustively, on one pair: each relation that the graph has and that is false here comes, no other."""
    seen = set()
    for seed in range(60):
        graph, truth = pair_graph()
        _, (kind, h, r, t, _), _ = data.sample(graph, "train", sizes(2), configs.Data(valid=1e-9, seed=seed))
        seen |= {x for x, k in zip(zip(h.tolist(), r.tolist(), t.tolist()), kind) if k == OTHER_RELATION}
    assert seen == {(a, r, b) for r in (0, 1, 4, 5) for a, b in ((0, 1), (1, 0))} - truth


def test_the_relation_alone_says_little():
    """Relations come as often in false triples made by changing them as in the true ones."""
    graph, _ = random_graph(4, concepts=300, groups=1, density=0.004)
    rare = (graph.r >= 2) & (graph.r != SY) & (np.arange(len(graph.r)) % 9 > 0)  # PAR, CHD and SY prevail; no RN
    keep = ~rare & (graph.r != 5)
    graph = replace(graph, keys=graph.keys[keep])
    _, (kind, _, r, _, _), _ = data.sample(graph, "train", sizes(1500), settings())
    true, false = (np.bincount(r[kind == k], minlength=7) / (kind == k).sum() for k in (TRUE, OTHER_RELATION))
    assert true[5] == false[5] == 0 and np.abs(true - false).max() < 0.08


def pair_graph():
    truth = {(0, 0, 1), (1, 1, 0), (0, 4, 1), (1, 5, 0)}
    h, r, t = (np.array(x) for x in zip(*sorted(truth)))
    names, keys = pa.array(["a", "b"]), np.sort(data.Graph.key(h, r, t))
    return data.Graph("en", np.array([5, 9]), np.zeros(2, np.int8), ["G"], np.arange(3), names, keys), truth


@pytest.mark.parametrize("most", [2, 10])
@pytest.mark.parametrize("seed", SEEDS)
def test_paths(seed, most):
    graph, _ = random_graph(seed, density=0.02)
    s = settings(seed=seed, max_relations=most)
    triples = set(zip(graph.h.tolist(), graph.r.tolist(), graph.t.tolist()))
    for part in data.PARTS:
        _, _, (concepts, relations) = data.sample(graph, part, sizes(300), s)
        assert len(np.unique(np.concatenate([concepts, relations], axis=1), axis=0)) == len(concepts)
        lengths = []
        for c, r in zip(concepts.tolist(), relations.tolist()):
            c, r = [x for x in c if x >= 0], [x for x in r if x >= 0]
            assert len(c) == len(r) + 1 and 2 <= len(r) <= most and len(set(c)) == len(c) and SY not in r
            for step in zip(c, r, c[1:]):
                assert step in triples
                side = data.held_out(graph.cui[[step[0]]], graph.cui[[step[2]]], seed, s.valid)
                assert side == (part == "valid")
            lengths.append(len(r))
        if part == "train":
            assert len(concepts) == 300 and set(lengths) == set(range(2, most + 1))


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
    s = configs.Data(valid=1e-9, max_relations=3)
    _, _, (concepts, relations) = data.sample(graph, "train", sizes(50 * len(every)), s)
    drawn = {
        (tuple(x for x in c if x >= 0), tuple(x for x in r if x >= 0))
        for c, r in zip(concepts.tolist(), relations.tolist())
    }
    assert len(every) > 20 and drawn == every


def test_the_split_is_by_unordered_pair():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 10**7, 50_000), rng.integers(0, 10**7, 50_000)
    side = data.held_out(a, b, 7, 0.1)
    assert (side == data.held_out(b, a, 7, 0.1)).all() and abs(side.mean() - 0.1) < 0.01
    assert (side != data.held_out(a, b, 8, 0.1)).any()


def test_the_memory_of_walks_goes_with_what_there_is(monkeypatch):
    """A round draws no more walks than fit, however many paths are asked for, and rounds go on until they are found."""
    graph, _ = random_graph(3)
    pool, drawn, walk = data.Pool(np.arange(len(graph.h)), graph.strata, len(graph.counts)), [], data.random_walks
    monkeypatch.setattr(data, "random_walks", lambda *a: drawn.append(len(a[3])) or walk(*a))
    monkeypatch.setattr(data, "WALKS", 3000)
    for n in (20, 2000, 3000):
        drawn.clear()
        assert len(data.sample_paths(np.random.default_rng(0), graph, pool, n, 10)[0]) == n
        assert max(drawn) <= 2 * 300 + 1000 and len(drawn) >= n // 1600
    drawn.clear()
    assert 2000 < len(data.sample_paths(np.random.default_rng(0), graph, pool, 10**9, 2)[0]) < 10**4
    assert max(drawn) <= 2 * 1500 + 1000 and len(drawn) < 100  # all there are, or nearly
