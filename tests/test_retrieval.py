"""Synonym retrieval: ranks, ties, metrics, and which terms are compared."""

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from threadpoolctl import threadpool_limits

from beyond import retrieval
from configs import UserError


@pytest.mark.parametrize("seed", range(12))
def test_ranks_of_synonyms_are_those_of_sorting(seed):
    """Ranks by sorting, term by term; a term may name several concepts, a concept may have a single term."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 40))
    pairs = sorted({(int(rng.integers(n)), int(rng.integers(1 + n // 2))) for _ in range(n)})
    vectors = torch.from_numpy(rng.normal(size=(n, 3)).astype(np.float32))
    want = {}
    for term in range(n):
        mine = {c for t, c in pairs if t == term}
        others = {t for t, c in pairs if c in mine} - {term}
        if others:
            near = F.cosine_similarity(vectors[term][None], vectors).tolist()
            order = sorted((t for t in range(n) if t != term), key=lambda t: -near[t])
            want[term] = 1 + min(order.index(t) for t in others)
    term, concept = (torch.tensor(x) for x in zip(*pairs))
    queries, ranks = retrieval.synonym_ranks(vectors, term, concept)
    assert dict(zip(queries.tolist(), ranks.tolist())) == want


def test_terms_that_are_equally_near_share_the_mean_of_their_ranks():
    """An encoder for which all terms are one is not a good one."""
    term, concept = torch.arange(8), torch.arange(8) // 2
    assert retrieval.synonym_ranks(torch.ones(8, 3), term, concept)[1].tolist() == [4.0] * 8  # of 1 to 7
    assert retrieval.rank_metrics(torch.full((8,), 4.0))["at_1"] == 0


def test_retrieval_metrics():
    vectors = torch.eye(6)[[0, 0, 1, 2, 3, 4]] + 0.1 * torch.eye(6)  # terms 0 and 1 alike; 4 and 5 apart
    held_out = np.array([True, True, False, False])
    got, of_held_out = retrieval.retrieval_metrics(vectors, np.array([0, 1, 4, 5]), np.array([7, 7, 8, 8]), held_out)
    assert got["at_1"] >= 50 and got["at_5"] == 100 and got["queries"] == 4 and 50 < got["mrr"] < 100
    assert of_held_out == {"at_1": 100, "at_5": 100, "mrr": 100, "queries": 2}
    none = retrieval.retrieval_metrics(vectors, np.array([0, 1]), np.array([7, 8]), held_out[:2])
    assert none == ({}, {})  # no concept has two terms


def test_the_spelling_baseline_finds_terms_that_are_spelt_alike():
    vectors = retrieval.trigram_vectors(["hepatitis", "hepatitides", "fracture", "fractures", "x"])
    metrics, _ = retrieval.retrieval_metrics(vectors, np.arange(4), np.array([0, 0, 1, 1]), np.ones(4, bool))
    assert vectors.shape == (5, 4096) and metrics["at_1"] == 100


def test_sampled_terms_are_all_those_of_some_concepts(dataset, tmp_path):
    """The same concepts for every checkpoint; a homonym is one string; the tables must be of the data set's release."""
    tables, strings, term, concept = retrieval.sample_terms(dataset, "en", 0, 0)
    assert len(term) == len(tables.terms) and len(strings) == len({*tables.terms.to_pylist()}) == len({*strings})
    for t, c in list(zip(term, concept))[:200]:
        assert strings[t] in tables.terms[tables.first_term[c] : tables.first_term[c + 1]].to_pylist()
    few = retrieval.sample_terms(dataset, "en", 100, 0)
    assert 100 <= len(few[2]) < 120 and few[1] == retrieval.sample_terms(dataset, "en", 100, 0)[1]
    assert few[1] != retrieval.sample_terms(dataset, "en", 100, 1)[1]
    shutil.copytree(dataset, tmp_path / "en")
    with pytest.raises(UserError, match="tables/en: missing, damaged, or replaced by a build with other te.*; build"):
        retrieval.sample_terms(tmp_path / "en", "en", 0, 0)
    shutil.copytree(dataset.parent / "tables", tmp_path / "tables")
    manifest = json.loads((dataset / "manifest.json").read_text())
    manifest["counts"]["en"]["terms"] += 1  # the tables are of another release by now
    (tmp_path / "en" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="tables/en: missing, damaged, or replaced by"):
        retrieval.sample_terms(tmp_path / "en", "en", 0, 0)


def test_translations_against_a_loop():
    """Each string looks once for one that shares a concept with it; strings without one are left out."""
    torch.manual_seed(3)
    queries, names = torch.randn(30, 4), torch.randn(40, 4)
    names[7] = names[8]  # equally near
    rng = np.random.default_rng(0)
    query = [(int(i), int(c)) for i, c in zip(rng.integers(0, 30, 45), rng.integers(0, 25, 45))]
    name = [(int(i), int(c)) for i, c in zip(rng.integers(0, 40, 60), rng.integers(0, 20, 60))]
    similarity = torch.nn.functional.normalize(queries, dim=1) @ torch.nn.functional.normalize(names, dim=1).T
    ranks = []
    for i in sorted({i for i, _ in query}):
        concepts = {c for k, c in query if k == i}
        if right := sorted({k for k, c in name if c in concepts}):
            best = similarity[i, right].max()
            ranks.append(1 + (similarity[i] > best).sum().item() + ((similarity[i] == best).sum().item() - 1) / 2)
    got = retrieval.translation_metrics(queries, *np.array(query).T, names, *np.array(name).T)
    assert got == pytest.approx(retrieval.rank_metrics(torch.tensor(ranks)), rel=1e-5)
    assert 0 < got["queries"] == len(ranks) < 30
    none = np.array([[0, 99]])
    assert retrieval.translation_metrics(queries, *none.T, names, *np.array(name).T) == {}


def test_a_homonym_in_the_other_language_is_one_string():
    same = torch.eye(3)
    found = retrieval.translation_metrics(
        same, np.array([0]), np.array([7]), same, np.array([0, 0, 1]), np.array([7, 8, 9])
    )
    assert found["at_1"] == 100


@pytest.fixture
def one_thread():
    """For as few points as these, threads that wait for each other take longer than the work."""
    with threadpool_limits(1):
        yield


@pytest.mark.usefixtures("one_thread")
def test_a_map_shows_groups_that_principal_components_hide():
    """The groups differ on three of 40 axes, which have little variance; drawn terms have not told these axes."""
    rng = np.random.default_rng(0)
    group = rng.integers(0, 4, 320)
    scale = np.concatenate([np.full(37, 5.0), np.full(3, 0.1)])
    vectors = rng.normal(size=(320, 40)) * scale
    vectors[:, 37:] += np.eye(4)[group, :3]
    vectors = vectors @ np.linalg.qr(rng.normal(size=(40, 40)))[0]
    rows, points, axes = retrieval.map_of_groups(torch.from_numpy(vectors).float(), group, 0)
    shares, by_chance = retrieval.same_group_shares(points, group[rows])
    _, _, components = np.linalg.svd(vectors - vectors.mean(0))
    of_pca, _ = retrieval.same_group_shares(vectors[rows] @ components[:2].T, group[rows])
    assert shares.mean() > 95 and of_pca.mean() < by_chance + 10 < 45
    assert (
        points.shape == (160, 2) and len({*rows.tolist()}) == 160 and len(axes) == 3 and sum(axes) == pytest.approx(100)
    )


@pytest.mark.usefixtures("one_thread")
def test_a_map_shows_no_groups_where_there_are_none(monkeypatch):
    """Axes that are fitted on terms separate these in many dimensions, whatever their groups; so others are drawn."""
    rng = np.random.default_rng(0)
    vectors, group = torch.from_numpy(rng.normal(size=(200, 60))).float(), rng.integers(0, 3, 200)
    rows, points, _ = retrieval.map_of_groups(vectors, group, 1)
    shares, by_chance = retrieval.same_group_shares(points, group[rows])
    assert abs(shares.mean() - by_chance) < 8
    monkeypatch.setattr(retrieval, "MAP_TERMS", 20)
    assert len(retrieval.map_of_groups(vectors, group, 1)[0]) == 20


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("n, groups", [(6, 2), (40, 2), (7, 3)])
def test_small_maps(n, groups):
    vectors = torch.from_numpy(np.random.default_rng(0).normal(size=(n, 5))).float()
    rows, points, axes = retrieval.map_of_groups(vectors, np.arange(n) % groups, 2**32)
    again = retrieval.map_of_groups(vectors, np.arange(n) % groups, 2**32)
    assert np.array_equal(rows, again[0]) and np.array_equal(points, again[1])
    shares, _ = retrieval.same_group_shares(points, np.arange(n)[rows] % groups)
    assert np.isfinite(points).all() and points.shape == (n // 2, 2) and len(shares) == n // 2 and axes


def test_maps_of_nothing():
    for vectors, group in ((torch.ones(9, 2), np.zeros(9, int)), (torch.ones(3, 2), np.arange(3))):
        with pytest.raises(UserError, match="terms of two semantic groups or more"):
            retrieval.map_of_groups(vectors, group, 0)
    with pytest.raises(UserError, match="not finite numbers"):
        retrieval.map_of_groups(torch.full((9, 2), torch.nan), np.arange(9) % 2, 0)


def test_shares_of_the_same_group_against_sorting():
    rng = np.random.default_rng(0)
    points, group = rng.normal(size=(30, 2)), rng.integers(0, 3, 30)
    distance = ((points[:, None] - points) ** 2).sum(2) + 1e9 * np.eye(30)
    want = [100 * np.mean(group[np.argsort(row)[:4]] == g) for row, g in zip(distance, group)]
    shares, by_chance = retrieval.same_group_shares(points, group, k=4)
    pairs = [(i, j) for i in range(30) for j in range(30) if i != j]
    assert shares == pytest.approx(want)
    assert by_chance == pytest.approx(100 * np.mean([group[i] == group[j] for i, j in pairs]))
