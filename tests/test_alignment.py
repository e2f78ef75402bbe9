"""Synonym alignment, the fifth task: its pairs and their split, its loss against a loop, layouts, ranks and resume."""

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F

import configs
import data
import kgi
import model as models
from support import umls
from tests.conftest import build, graph_of
from tests.training import args, lines, one_step, run_in_ranks, same_weights, set_up, train, weights

ALL = list(data.TASK_NAMES)


@pytest.fixture(scope="module")
def aligned(release, tmp_path_factory):
    return build(release, tmp_path_factory.mktemp("aligned") / "en", sa_pairs=300)


def pairs_of(folder, split):
    """[(concept of the pair, token ids of both names, the concepts of each name)]."""
    e = data.PretrainingDataset(folder, split, ["sa"])
    cuis = [e.cuis[a:b].tolist() for a, b in zip(e.cui_offsets, e.cui_offsets[1:])]
    ids = [e.ids[a:b].tolist() for a, b in zip(e.offsets, e.offsets[1:])]
    return [(set(cuis[i]) & set(cuis[i + 1]), (ids[i], ids[i + 1]), (cuis[i], cuis[i + 1])) for i in e.rows]


def test_pairs_are_names_of_one_concept(aligned, release):
    """And all concepts that a name names stand with it."""
    from tokenizers import Tokenizer

    g = graph_of(release, kept=configs.SEMANTIC_TYPES)
    tokenizer = Tokenizer.from_file(str(aligned / "tokenizer.json"))
    strings = g.terms.to_pylist()
    named, spelled = {}, {}
    for c, (a, b) in enumerate(zip(g.first_term, g.first_term[1:])):
        for string in strings[a:b]:
            named.setdefault(string.lower(), set()).add(int(g.cui[c]))
    for string, concepts in named.items():
        key = tuple(tokenizer.encode(" " + string, add_special_tokens=False).ids)
        spelled.setdefault(key, set()).update(concepts)
    found = [pair for split in data.SPLITS for pair in pairs_of(aligned, split)]
    assert len(found) > 200
    as_lower = {
        tuple(tokenizer.encode(" " + s, add_special_tokens=False).ids): s.lower() for s in strings
    }  # the tokenizer keeps upper case
    for shared, (one, two), (first, second) in found:
        assert shared and one != two
        for ids, concepts in ((one, first), (two, second)):
            assert set(concepts) == named[as_lower[tuple(ids[1:-1])]]


def test_no_name_of_a_held_out_concept_is_in_training(aligned, release):
    g = graph_of(release, kept=configs.SEMANTIC_TYPES)
    held_out = set(g.cui[data.in_validation(g.cui, g.cui, 0, 0.1)].tolist())
    for split in data.SPLITS:
        concepts = {c for _, _, names in pairs_of(aligned, split) for name in names for c in name}
        assert concepts <= held_out if split == "valid" else not concepts & held_out
    names = [{ids for _, pair, _ in pairs_of(aligned, s) for ids in map(tuple, pair)} for s in data.SPLITS]
    assert names[0] and names[1] and not names[0] & names[1]


def test_pairs_are_stratified_by_semantic_group(release):
    """Where there are enough of them, in the shares that the relations have."""
    g = graph_of(release, kept=configs.SEMANTIC_TYPES)
    sample = data.sample_synonym_alignment([g], "train", 60, configs.Data())[0, 0]
    assert len({tuple(pair) for pair in sample.names.tolist()}) == len(sample.concept) == 60
    assert all(
        g.first_term[c] <= t < g.first_term[c + 1] for c, pair in zip(sample.concept, sample.names) for t in pair
    )
    n = len(g.groups)
    share = np.bincount(g.group[g.h], minlength=n) + np.bincount(g.group[g.t], minlength=n)
    share = share * np.isin(np.arange(n), g.group[np.diff(g.first_term) > 1])  # a group without synonyms has no pair
    share = share / share.sum()
    found = np.bincount(g.group[sample.concept], minlength=n) / 60
    assert np.abs(found - share).max() <= 1 / 60


def graph(lang, names):
    """A Graph of concepts with these numbers and names, all in one group."""
    first = np.cumsum([0] + [len(x) for x in names.values()])
    n = np.arange(1, len(names))
    strings = pa.array([string for x in names.values() for string in x])
    keys = umls.triple_key(0 * n, 0 * n, n)
    return data.Graph(lang, np.array([*names]), np.zeros(len(names), np.int8), ["DISO"], first, strings, keys)


ENGLISH = {
    0: ["Fever", "fever", "pyrexia"], 1: ["cold", "COMMON COLD"], 2: ["chill", "Cold", "rigor"], 3: ["flu", "grippe"],
}  # fmt: skip
FRENCH = {0: ["fièvre", "pyrexia"], 2: ["frisson"], 3: ["Grippe"], 5: ["rhume", "common cold"], 7: ["toux"]}


def pairs_in(graphs, held_out, split, monkeypatch):
    """{languages: (pairs of strings, the concepts of each name)} where these concepts are held out."""
    monkeypatch.setattr(data, "in_validation", lambda a, *_: np.isin(a, held_out))
    out = {}
    for (i, j), p in data.sample_synonym_alignment(graphs, split, 100, configs.Data()).items():
        strings = [(graphs[i].terms[a].as_py(), graphs[j].terms[b].as_py()) for a, b in p.names.tolist()]
        concepts = [sorted(x.tolist()) for x in np.split(p.cuis, np.cumsum(p.n_cuis)[:-1])]
        out[i, j] = sorted(strings), concepts
    return out


def test_names_that_are_ambiguous_or_equal(monkeypatch):
    """A string that also names a held-out concept is in no pair, and neither are names that differ by case alone."""
    g = [graph("en", ENGLISH)]
    everything = [
        ("Cold", "rigor"),
        ("Fever", "pyrexia"),
        ("chill", "Cold"),
        ("chill", "rigor"),
        ("cold", "COMMON COLD"),
    ]
    strings, named = pairs_in(g, [], "train", monkeypatch)[0, 0]
    assert strings == sorted([*everything, ("fever", "pyrexia"), ("flu", "grippe")])
    assert named.count([1, 2]) == 3  # "cold" and twice "Cold"
    strings, _ = pairs_in(g, [1], "train", monkeypatch)[0, 0]
    assert strings == sorted([("Fever", "pyrexia"), ("chill", "rigor"), ("fever", "pyrexia"), ("flu", "grippe")])
    assert pairs_in(g, [1], "valid", monkeypatch)[0, 0][0] == []
    assert pairs_in(g, [3], "valid", monkeypatch)[0, 0][0] == [("flu", "grippe")]


def test_pairs_of_two_languages(monkeypatch):
    """Names of one CUI; a string is held out with a concept that it names in another language."""
    graphs = [graph("en", ENGLISH), graph("fr", FRENCH)]
    found = pairs_in(graphs, [], "train", monkeypatch)
    expected = [(a, "fièvre") for a in ("Fever", "fever", "pyrexia")] + [("Fever", "pyrexia"), ("fever", "pyrexia")]
    expected += [(a, "frisson") for a in ("chill", "Cold", "rigor")] + [("flu", "Grippe")]
    assert found[0, 1][0] == sorted(expected)
    assert found[1, 1][0] == [("fièvre", "pyrexia"), ("rhume", "common cold")] and len(found) == 3
    held_out = pairs_in(graphs, [5], "train", monkeypatch)
    assert ("cold", "COMMON COLD") not in held_out[0, 0][0] and ("cold", "COMMON COLD") in found[0, 0][0]


def test_all_pairs_of_equals():
    values = np.array([3, 5, 5, 5, 7, 8, 8, *[9] * 12])
    a, b = data.pairs_of_equals(values)
    expected = {(i, j) for j in range(len(values)) for i in range(j) if values[i] == values[j]}
    assert set(zip(a.tolist(), b.tolist())) == expected and len(a) == len(expected)


def test_data_sets_without_pairs_are_those_of_before(dataset, aligned):
    """The other tasks have the same examples, and the manifest says nothing of the fifth."""
    one, two = (data.PretrainingDataset(x, "train") for x in (dataset, aligned))
    assert "sa" not in one.manifest["counts"]["en"]["train"] and two.manifest["counts"]["en"]["train"]["sa"] > 200
    assert len(one) == len(two)
    for a, b in zip(one.rows, two.rows):
        one_cuis, two_cuis = (e.cuis[e.cui_offsets[i] : e.cui_offsets[i + 1]].tolist() for e, i in ((one, a), (two, b)))
        assert one.task[a] == two.task[b] and one_cuis == two_cuis


def plain_loss(vectors, concepts_of_names, temperature):
    """A loop over names: cross-entropy of the partner among the partners of all pairs, without further synonyms."""
    concepts = [{c for i, c in concepts_of_names.tolist() if i == name} for name in range(len(vectors))]
    losses = []
    for i, v in enumerate(vectors):
        candidates = [j for j in range(1 - i % 2, len(vectors), 2) if j == i ^ 1 or not concepts[i] & concepts[j]]
        scores = torch.stack([v @ vectors[j] / temperature for j in candidates])
        losses.append(F.cross_entropy(scores, torch.tensor(candidates.index(i ^ 1))))
    return torch.stack(losses)


def test_the_loss_against_a_loop():
    torch.manual_seed(0)
    vectors = F.normalize(torch.randn(24, 5), dim=1)
    # Pairs 0 and 3 are of concept 0; name 5 also names concept 4.
    concepts = np.array([[2 * k + side, 0 if k == 3 else k] for k in range(12) for side in (0, 1)] + [[5, 4]])
    loss, correct = models.alignment_loss(vectors, concepts, 0.1)
    torch.testing.assert_close(loss, plain_loss(vectors, concepts, 0.1))
    every_name_its_own = np.array([[i, i // 2] for i in range(24)])
    assert not torch.allclose(loss, models.alignment_loss(vectors, every_name_its_own, 0.1)[0])
    twins = vectors[::2].repeat_interleave(2, dim=0)
    assert models.alignment_loss(twins, every_name_its_own, 0.01)[1].all() and not correct.all()


@pytest.mark.parametrize("layout, max_tokens", [("padded", 0), ("padded", 64), ("packed", 128)])
def test_a_step_is_that_of_the_whole_batch_at_once(aligned, tmp_path, layout, max_tokens):
    """Loss and gradients against one graph over all names, without a second pass; other tasks are beside it."""
    run = set_up(
        aligned, tmp_path, tasks=ALL, batch_size=120, clip=0.0, layout=layout, max_tokens=max_tokens, alphas=[]
    )
    micro_batches, batch = run.batches.get(0)
    sums = kgi.forward_backward(run, micro_batches, batch)
    found = [p.grad.clone() for p in run.model.parameters()]
    run.model.zero_grad()
    names = np.flatnonzero(np.isin(np.arange(len(batch.length)), batch.target_example[batch.target_task == data.SA]))
    vectors = torch.stack(
        [
            run.model.encoder(torch.from_numpy(batch.ids[a : a + n])[None])[0, 0]
            for a, n in zip(batch.start[names], batch.length[names])
        ]
    )
    vectors = F.normalize(vectors, dim=1)
    loss = plain_loss(vectors, batch.concepts_of_names, run.s.temperature)
    assert len(loss) == batch.targets_per_task[data.SA] > 10
    assert sums[data.SA, 0].item() == pytest.approx(loss.sum().item(), rel=1e-5)
    others = set_up(aligned, tmp_path, tasks=ALL, batch_size=120, clip=0.0, alphas=[*run.coefficients[1:4].tolist(), 0])
    others.model.load_state_dict(run.model.state_dict())
    kgi.forward_backward(others, *others.batches.get(0))
    (run.coefficients[data.SA] * loss.mean()).backward()
    for p, q, gradient in zip(run.model.parameters(), others.model.parameters(), found):
        expected = q.grad + (0 if p.grad is None else p.grad)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_both_passes_have_the_same_dropout(aligned, tmp_path, monkeypatch):
    run, seen = set_up(aligned, tmp_path, tasks=["sa"], dropout=0.3, max_tokens=200), []
    logits = run.model.logits

    def record(*arguments):
        out = logits(*arguments)
        seen.append(out[data.SA].detach())
        return out

    monkeypatch.setattr(run.model, "logits", record)
    kgi.forward_backward(run, *run.batches.get(0))
    first, second = torch.cat(seen[: len(seen) // 2]), torch.cat(seen[len(seen) // 2 :])
    assert len(seen) > 2 and torch.equal(first, second)
    once = torch.cat([x for x in seen[:1]])
    kgi.forward_backward(run, *run.batches.get(1))
    assert not torch.equal(once, seen[-1][: len(once)])


def test_ranks_change_nothing(aligned, tmp_path):
    train(aligned, tmp_path / "one", tasks=ALL, steps=3)
    run_in_ranks(2, [*args(aligned, tmp_path / "two", steps=3), "--tasks", *ALL])
    a, b = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=2e-5)
    for x, y in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        x, y = x.get("valid", x), y.get("valid", y)
        assert x["sa_loss"] == pytest.approx(y["sa_loss"], rel=1e-4) and 0 <= x["sa_accuracy"] <= 1


def test_resume_is_exact(aligned, tmp_path):
    more = {"tasks": ALL, "dropout": 0.1, "steps": 4}
    train(aligned, tmp_path / "straight", **more)
    run = set_up(aligned, tmp_path / "stopped", **more)
    kgi.resume(run)
    kgi.begin(run)
    one_step(run)
    train(aligned, tmp_path / "stopped", **more)
    assert same_weights(tmp_path / "straight", tmp_path / "stopped")


def test_it_is_learnt_and_off_by_default(aligned, tmp_path):
    train(aligned, tmp_path / "sa", tasks=["sa"], steps=40, lr=3e-3, valid_every=40)
    first, last = (r["valid"] for r in lines(tmp_path / "sa") if "valid" in r)
    assert set(first) == {"loss", "sa_loss", "sa_accuracy"}
    assert last["sa_accuracy"] > first["sa_accuracy"] + 0.1 and last["sa_loss"] < 0.8 * first["sa_loss"]
    run = set_up(aligned, tmp_path / "default")
    assert run.s.tasks == list(data.PAPER_TASKS) and data.SA not in run.train.task[run.train.rows]
    with pytest.raises(configs.UserError, match="there must be 4, for EP, LP, TC, SA"):
        set_up(aligned, tmp_path, tasks=ALL, alphas=[1.0, 1.0, 1.0])


def test_validation_does_not_depend_on_how_pairs_fall_into_batches(aligned, tmp_path, monkeypatch):
    monkeypatch.setattr(kgi, "VALID_PAIRS", 8)
    found = []
    for batch_size in (40, 11):
        run = set_up(aligned, tmp_path, tasks=ALL, batch_size=batch_size)
        found.append(kgi.validate(run))
    assert found[0]["sa_loss"] == pytest.approx(found[1]["sa_loss"], rel=1e-5) and found[0]["sa_loss"] < np.log(8) * 2
    assert found[0]["mlm_loss"] == pytest.approx(found[1]["mlm_loss"], rel=1e-5)


def test_a_data_set_without_pairs_cannot_train_it(dataset, tmp_path):
    with pytest.raises(configs.UserError, match="has no examples of sa; build it with --sa_pairs"):
        set_up(dataset, tmp_path, tasks=["mlm", "sa"])
