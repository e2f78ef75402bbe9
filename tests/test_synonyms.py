"""Synonym alignment: its pairs and their split, its loss against a loop, layouts, ranks, resume, what it refuses."""

import hashlib
import json
import os
import shutil
import signal

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

import configs
import data
import kgi
from beyond import synonyms
from configs import UserError, command_line
from support import runs
from support.relations import triple_key
from tests import training
from tests.conftest import build, command, graph_of
from tests.training import TINY, args, free_ports, lines, one_step, same_end, same_weights, weights

PROGRAM = "beyond.synonyms"
SETTINGS = {"seed": 0, "valid_fraction": 0.05}
KEPT = {"train": (900, "0e16f5d24f50f579"), "valid": (270, "5f92999232467ba8")}  # pairs of the old commit


def build_pairs(folder, pairs=300):
    synonyms.build(synonyms.Build(dataset=str(folder), pairs=pairs))
    return folder


@pytest.fixture(scope="module")
def aligned(release, tmp_path_factory):
    return build_pairs(build(release, tmp_path_factory.mktemp("aligned") / "en"))


@pytest.fixture
def copied(aligned, tmp_path):
    """A copy of the data set, to be damaged, with the tables beside it."""
    shutil.copytree(aligned.parent, tmp_path / "copied")
    return tmp_path / "copied" / aligned.name


@pytest.fixture(autouse=True)
def known(known_machine):
    """Neither signals nor the speed of the machine matter here."""


def settings(dataset, out, **more):
    return synonyms.Train(**{"data": str(dataset), "out": str(out)} | TINY | more)


def set_up(dataset, out, **more):
    s = settings(dataset, out, **more)
    return kgi.set_up(s, [synonyms.Alignment(s)])


def train(dataset, out, **more):
    """Trains to the end, as the command does."""
    with pytest.raises(SystemExit) as end:
        synonyms.train(settings(dataset, out, **more))
    assert end.value.code == 0


def pairs_of(folder, split):
    """[(concepts of both names, token ids of both names, the concepts of each name)]."""
    p = synonyms.read_pairs(folder)[0][split]
    cuis = [p.cuis[a:b].tolist() for a, b in zip(p.cui_offsets, p.cui_offsets[1:])]
    ids = [p.ids[a:b].tolist() for a, b in zip(p.offsets, p.offsets[1:])]
    both = [(k, k + 1) for k in range(0, len(ids), 2)]
    return [(set(cuis[a]) & set(cuis[b]), (ids[a], ids[b]), (cuis[a], cuis[b])) for a, b in both]


# ---------------------------------------------------------------- pairs


def test_pairs_are_names_of_one_concept(aligned, release):
    """And all concepts that a name names stand with it."""
    g = graph_of(release, kept=configs.SEMANTIC_TYPES)
    tokenizer = Tokenizer.from_file(str(aligned / "tokenizer.json"))
    strings, named = g.terms.to_pylist(), {}
    for c, (a, b) in enumerate(zip(g.first_term, g.first_term[1:])):
        for string in strings[a:b]:
            named.setdefault(string.lower(), set()).add(int(g.cui[c]))
    found = [pair for split in data.SPLITS for pair in pairs_of(aligned, split)]
    assert len(found) > 200
    as_lower = {
        tuple(tokenizer.encode(" " + s, add_special_tokens=False).ids): s.lower() for s in strings
    }  # the tokenizer keeps upper case
    for shared, (one, two), (first, second) in found:
        assert shared and one != two
        for ids, concepts in ((one, first), (two, second)):
            assert set(concepts) == named[as_lower[tuple(ids)]]


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
    sample = synonyms.sample_pairs([g], "train", 60, SETTINGS)[0, 0]
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


def test_the_pairs_are_those_of_before(release, tmp_path):
    """In two languages and across them: strings, concepts and order as of `--sa_pairs 300`, before the tower."""
    folder = build_pairs(build(release, tmp_path / "two", lang="en,fr", seed=3, valid_fraction=0.3))
    tokenizer, kept = Tokenizer.from_file(str(folder / "tokenizer.json")), KEPT
    for split in data.SPLITS:
        pairs = pairs_of(folder, split)
        found = [[cuis, tokenizer.decode(ids)] for _, names, named in pairs for ids, cuis in zip(names, named)]
        assert (len(pairs), hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]) == kept[split]


def graph(lang, names):
    """A Graph of concepts with these numbers and names, all in one group."""
    first = np.cumsum([0] + [len(x) for x in names.values()])
    n = np.arange(1, len(names))
    strings = pa.array([string for x in names.values() for string in x])
    keys = triple_key(0 * n, 0 * n, n)
    return data.Graph(lang, np.array([*names]), np.zeros(len(names), np.int8), ["DISO"], first, strings, keys)


ENGLISH = {
    0: ["Fever", "fever", "pyrexia"], 1: ["cold", "COMMON COLD"], 2: ["chill", "Cold", "rigor"], 3: ["flu", "grippe"],
}  # fmt: skip
FRENCH = {0: ["fièvre", "pyrexia"], 2: ["frisson"], 3: ["Grippe"], 5: ["rhume", "common cold"], 7: ["toux"]}


def pairs_in(graphs, held_out, split, monkeypatch):
    """{languages: (pairs of strings, the concepts of each name)} where these concepts are held out."""
    monkeypatch.setattr(data, "in_validation", lambda a, *_: np.isin(a, held_out))
    out = {}
    for (i, j), p in synonyms.sample_pairs(graphs, split, 100, SETTINGS).items():
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
    a, b = synonyms.pairs_of_equals(values)
    expected = {(i, j) for j in range(len(values)) for i in range(j) if values[i] == values[j]}
    assert set(zip(a.tolist(), b.tolist())) == expected and len(a) == len(expected)


def test_pairs_change_nothing_of_the_data_set(dataset, aligned):
    """The files of the tasks are the same bytes, with pairs beside them or not."""
    files = {path.name for path in dataset.iterdir()}
    assert {path.name for path in aligned.iterdir()} == files | {"pairs.arrow", "pairs.json"}
    assert all((dataset / name).read_bytes() == (aligned / name).read_bytes() for name in files)


def test_pairs_are_the_same_bytes_each_time_and_are_replaced(copied, aligned, capsys):
    before = (copied / "pairs.arrow").read_bytes()
    build_pairs(copied)
    assert (copied / "pairs.arrow").read_bytes() == before
    train, valid = (len(pairs_of(aligned, split)) for split in data.SPLITS)
    shown = capsys.readouterr().out
    assert f"en, train: {train:,} pairs\nen, valid: {valid:,} pairs\nwrote {copied / 'pairs.arrow'}\n" in shown
    assert shown.endswith(f"next:  python -m beyond.synonyms --data {copied}\n")
    build_pairs(copied, pairs=20)
    assert [len(pairs_of(copied, split)) for split in data.SPLITS] == [20, 2]


def test_names_are_cut_and_a_name_without_tokens_is_unknown(copied, monkeypatch):
    """As in the examples of the tasks: a name has room for seq_len - 2 tokens, and one at least."""
    special = data.PretrainingDataset(copied, "train").special
    monkeypatch.setattr(synonyms.tokenizers, "encode_lists", lambda _, texts, what: [[7] * 99, []] * (len(texts) // 2))
    build_pairs(copied)
    pairs = synonyms.read_pairs(copied)[0]["train"]
    assert np.diff(pairs.offsets).tolist() == [62, 1] * len(pairs) and pairs.ids[62] == special["unk"]


def test_a_data_set_without_synonyms_has_no_pairs(copied, monkeypatch):
    monkeypatch.setattr(synonyms, "MAX_NAMES", 1)
    with pytest.raises(UserError, match=f"{copied}: no concept has two names, so there is no pair"):
        build_pairs(copied)


@pytest.mark.parametrize("name", ["pairs.arrow", "pairs.json"])
def test_a_file_of_others_is_not_replaced(copied, name):
    (copied / name).write_text('{"mine": 1}')
    with pytest.raises(UserError, match=f"{name} is not an output of this command; move it away"):
        build_pairs(copied)
    assert (copied / name).read_text() == '{"mine": 1}'


def damage(folder, what):
    path, about = folder / "pairs.arrow", folder / "pairs.json"
    content = bytearray(path.read_bytes())
    if what == "bit":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    elif what == "cut":
        path.write_bytes(content[:100])
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "columns":  # of another version
        table = pa.table({"split": [0, 0]})
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table)
        said = json.loads(about.read_text()) | {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        about.write_text(json.dumps(said))
    elif what == "no arrow":
        path.unlink()
    elif what == "no json":
        about.unlink()
    elif what == "another build":
        about.write_text(json.dumps(json.loads(about.read_text()) | {"data": {"train.arrow": "0"}}))
    else:
        about.write_text(what)


@pytest.mark.parametrize(
    "what, message",
    [(what, "pairs.arrow: damaged \\(.*\\); choose them again") for what in ("bit", "cut", "empty", "columns")]
    + [(what, "has no pairs of names, or those of another build") for what in ("no arrow", "no json", "another build")]
    + [("[1]", "pairs.json: cannot be read as JSON"), ("{", "pairs.json: cannot be read as JSON")]
    + [("{}", "has no pairs of names, or those of another build")],
)
def test_pairs_that_are_damaged_or_of_others_are_one_line(copied, tmp_path, what, message):
    damage(copied, what)
    with pytest.raises(UserError, match=message) as error:
        set_up(copied, tmp_path / "run")
    assert "\n" not in str(error.value)
    assert what in ("[1]", "{") or f"python -m beyond.synonyms build {copied}" in str(error.value)


def test_a_data_set_built_again_has_no_pairs_of_before(copied, release, tmp_path):
    """They go with it; those of the old data set, put back, are refused."""
    kept = {name: (copied / name).read_bytes() for name in ("pairs.arrow", "pairs.json")}
    build(release, copied, seed=1)
    assert not any((copied / name).exists() for name in kept)
    with pytest.raises(UserError, match="has no pairs of names, or those of another build; choose some: python -m bey"):
        set_up(copied, tmp_path / "run")
    for name, content in kept.items():
        (copied / name).write_bytes(content)
    with pytest.raises(UserError, match="has no pairs of names, or those of another build"):
        set_up(copied, tmp_path / "run")
    set_up(build_pairs(copied), tmp_path / "run")


# ---------------------------------------------------------------- the loss


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
    loss, correct = synonyms.alignment_loss(vectors, concepts, 0.1)
    torch.testing.assert_close(loss, plain_loss(vectors, concepts, 0.1))
    every_name_its_own = np.array([[i, i // 2] for i in range(24)])
    assert not torch.allclose(loss, synonyms.alignment_loss(vectors, every_name_its_own, 0.1)[0])
    twins = vectors[::2].repeat_interleave(2, dim=0)
    assert synonyms.alignment_loss(twins, every_name_its_own, 0.01)[1].all() and not correct.all()


@pytest.mark.parametrize("layout, max_tokens", [("padded", 0), ("padded", 64), ("packed", 128)])
def test_a_step_is_that_of_the_whole_batch_at_once(aligned, tmp_path, layout, max_tokens):
    """Loss and gradients against one graph over all names; the tasks are beside it."""
    more = {"clip": 0.0, "layout": layout, "max_tokens": max_tokens}
    run = set_up(aligned, tmp_path, batch_size=120, **more)
    (alignment,) = run.objectives
    sums = kgi.forward_backward(run, *run.batches.get(0))
    found = [p.grad.clone() for p in run.model.parameters()]
    run.model.zero_grad()
    chosen = alignment.sampler(0)[0]
    names, concepts = alignment.pairs["train"].batch(chosen, run.train.special)
    cls, sep = run.train.special["cls"], run.train.special["sep"]
    stored = [ids for k in chosen for ids in pairs_of(aligned, "train")[k][1]]
    assert names.ids.tolist() == [i for ids in stored for i in (cls, *ids, sep)]
    vectors = torch.stack([run.model.encoder(torch.tensor([[cls, *ids, sep]]))[0, 0] for ids in stored])
    loss = plain_loss(F.normalize(vectors, dim=1), concepts, run.s.temperature)
    assert len(loss) == 2 * len(chosen) == sums[-1, 2] > 10
    assert sums[-1, 0].item() == pytest.approx(loss.sum().item(), rel=1e-5)
    plain = training.set_up(aligned, tmp_path, batch_size=120, alphas=run.coefficients[1:4].tolist(), **more)
    plain.model.load_state_dict(run.model.state_dict())
    tasks = kgi.forward_backward(plain, *plain.batches.get(0))
    torch.testing.assert_close(sums[:-1], tasks)
    (run.coefficients[-1] * loss.mean()).backward()
    for p, q, gradient in zip(run.model.parameters(), plain.model.parameters(), found):
        expected = q.grad + (0 if p.grad is None else p.grad)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-6)


def test_a_pair_that_comes_twice_in_a_step_is_no_negative(aligned, tmp_path):
    """As happens where an epoch of pairs ends, or a step has more pairs than there are."""
    run = set_up(aligned, tmp_path)
    (alignment,) = run.objectives
    loss, sums = alignment.loss(run, *alignment.pairs["train"].batch(np.zeros(3, np.int64), run.train.special))
    assert loss == 0 and sums[2] == 6


def test_pairs_of_a_step(aligned, tmp_path):
    """By default their share of all examples, as if pairs were examples of a fifth task."""
    share = len(pairs_of(aligned, "train")) / (
        len(pairs_of(aligned, "train")) + len(data.PretrainingDataset(aligned, "train"))
    )
    run = set_up(aligned, tmp_path, batch_size=200)
    assert run.objectives[0].sampler.batch_size == round(200 * share) > 10
    assert set_up(aligned, tmp_path, pairs_per_step=7).objectives[0].sampler.batch_size == 7
    sampler = run.objectives[0].sampler
    steps = np.concatenate([sampler(step)[0] for step in range(2 * sampler.n // sampler.batch_size)])
    assert np.bincount(steps[: sampler.n]).tolist() == [1] * sampler.n  # each pair once an epoch


def test_dropout_has_its_own_stream(aligned, tmp_path):
    """At a weight of 0 the run is bit for bit that of kgi.py, dropout and all; otherwise masks change each step."""
    three = [0.5, 0.3, 0.2]
    train(aligned, tmp_path / "aligned", dropout=0.3, alphas=[*three, 0.0])
    training.train(aligned, tmp_path / "plain", dropout=0.3, alphas=three)
    assert same_weights(tmp_path / "aligned", tmp_path / "plain")
    for x, y in zip(lines(tmp_path / "aligned"), lines(tmp_path / "plain"), strict=True):
        x, y = x.get("valid", x), y.get("valid", y)
        assert all(x[key] == y[key] for key in y if key.endswith(("loss", "_accuracy"))) and "sa_loss" in x
    run = set_up(aligned, tmp_path / "run", dropout=0.3)
    (alignment,) = run.objectives
    alignment.sampler = lambda step: (np.arange(20), None)
    losses = []
    for step in (0, 0, 1):
        run.state.step = step
        losses.append(alignment.backward(run, torch.tensor(1.0))[0].item())
    assert losses[0] == losses[1] != losses[2]
    kgi.seed_dropout(run, 0)
    names = alignment.pairs["train"].batch(np.arange(20), run.train.special)
    assert alignment.loss(run, *names)[1][0].item() not in losses


def test_out_of_memory_names_the_pairs(aligned, tmp_path, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kgi, "forward_backward", full)
    message = "retry with --max_tokens 1024; the run will resume; .* begin another with fewer examples of sa in a step"
    with pytest.raises(SystemExit, match=message):
        synonyms.train(settings(aligned, tmp_path / "run"))


def test_it_is_learnt(aligned, tmp_path):
    more = {"layers": 1, "batch_size": 10, "pairs_per_step": 30, "steps": 60, "lr": 4e-3, "valid_every": 60}
    train(aligned, tmp_path, tasks=["mlm"], **more)
    first, last = (r["valid"] for r in lines(tmp_path) if "valid" in r)
    assert set(first) == {"loss", "mlm_loss", "mlm_accuracy", "sa_loss", "sa_accuracy"}
    assert last["sa_accuracy"] > first["sa_accuracy"] + 0.1 and last["sa_loss"] < 0.8 * first["sa_loss"]


def test_validation_does_not_depend_on_batches_or_layout(aligned, tmp_path, monkeypatch):
    monkeypatch.setattr(synonyms, "VALID_PAIRS", 8)
    found = []
    for more in ({"batch_size": 40}, {"batch_size": 11, "max_tokens": 64}, {"layout": "packed", "pairs_per_step": 3}):
        found.append(kgi.validate(set_up(aligned, tmp_path, **more)))
    for other in found[1:]:
        assert other == pytest.approx(found[0], rel=1e-5)
    assert found[0]["sa_loss"] < np.log(8) * 2


def test_the_last_validation_has_all_pairs(aligned, tmp_path, monkeypatch):
    monkeypatch.setattr(synonyms, "VALID_PAIRS", 4)
    run = set_up(aligned, tmp_path, valid_examples=9)
    (alignment,) = run.objectives
    n = len(alignment.pairs["valid"])
    with torch.no_grad():
        assert alignment.validate(run)[2] == 2 * 8  # whole batches
        run.state.step = run.state.steps
        assert alignment.validate(run)[2] == 2 * (n // 4 * 4) > 2 * 9


# ---------------------------------------------------------------- ranks, and a run that is stopped


KILLED = """
import os, signal
from beyond import synonyms
from support import reports
from tests.training import call, exit_status, fork, train_in_ranks

def killed_after_step_5():
    write_metrics = reports.write_metrics
    def die_after_step_5(run, record):
        write_metrics(run, record)
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    reports.write_metrics = die_after_step_5

ports, p = {ports!r}, synonyms
for n, argv in {plain!r}:
    assert train_in_ranks(n, argv, ports.pop(), program=p) == [0] * n
for n, whole, stopped in {stopped!r}:
    assert train_in_ranks(n, whole, ports.pop(), program=p) == [0] * n
    assert train_in_ranks(n, stopped, ports.pop(), killed_after_step_5, p) != [0] * n
    assert train_in_ranks(n, stopped, ports.pop(), program=p) == [0] * n
"""
RANKS = {"two": (2, {}), "packed": (3, {"layout": "packed"}), "three": (3, {"max_tokens": 64})}


@pytest.fixture(scope="module")
def in_ranks(aligned, tmp_path_factory):
    """(a folder of the runs of several ranks, all started by one process, what was printed)."""
    folder = tmp_path_factory.mktemp("ranks")
    few = {"steps": 3, "pairs_per_step": 4}
    plain = [(n, args(aligned, folder / name, **few, **more)) for name, (n, more) in {"one": (1, {}), **RANKS}.items()]
    stopped = [
        (n, *(args(aligned, folder / f"{name} {n}", dropout=0.1) for name in ("whole", "stopped"))) for n in (1, 3)
    ]
    p = command("-c", KILLED.format(ports=free_ports(10), plain=plain, stopped=stopped))
    assert p.returncode == 0, p.stderr
    return folder, p.stdout


@pytest.mark.parametrize("name", RANKS)
def test_ranks_change_nothing(in_ranks, name):
    """Packed, all names of a step fit into one row: two of three ranks have none."""
    one, more = in_ranks[0] / "one", in_ranks[0] / name
    a, b = weights(one), weights(more)
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-3, atol=2e-5)
    for x, y in zip(lines(one), lines(more), strict=True):
        x, y = x.get("valid", x), y.get("valid", y)
        assert x["sa_loss"] == pytest.approx(y["sa_loss"], rel=1e-4) and 0 <= x["sa_accuracy"] <= 1


def test_resume_is_exact(aligned, tmp_path):
    more = {"dropout": 0.1, "steps": 4}
    train(aligned, tmp_path / "straight", **more)
    run = set_up(aligned, tmp_path / "stopped", **more)
    runs.resume(run)
    kgi.begin(run)
    one_step(run)
    train(aligned, tmp_path / "stopped", **more)
    assert same_weights(tmp_path / "straight", tmp_path / "stopped")


def test_killed_and_started_again(in_ranks):
    """Bit for bit the same end, with dropout, of one rank and of three.

    Each rank has made a pass, with alignment, before its first step: the order of sums over three ranks depends on it.
    """
    folder, shown = in_ranks
    assert shown.count("training steps 3 to 6, 40 examples each") == 2
    for n in (1, 3):
        same_end(folder / f"stopped {n}", folder / f"whole {n}")


def test_a_signal_in_the_pass_of_names_drops_the_step(aligned, tmp_path, monkeypatch):
    more = {"dropout": 0.1, "save_every": 6}
    train(aligned, tmp_path / "straight", **more)
    backward = synonyms.Alignment.backward

    def signalled(self, run, weight):
        if run.state.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return backward(self, run, weight)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as end:
        m.setattr(synonyms.Alignment, "backward", signalled)
        synonyms.train(settings(aligned, tmp_path / "run", **more))
    assert end.value.code == 75 and runs.read_checkpoint(tmp_path / "run" / "checkpoint.pt")["state"]["step"] == 2
    train(aligned, tmp_path / "run", **more)
    assert same_weights(tmp_path / "straight", tmp_path / "run")


def test_a_time_budget(aligned, tmp_path, monkeypatch, clock):
    """Steps are measured with alignment, and nothing is left of them: the run is that of as many --steps."""
    budget, backward, measured = tmp_path / "budget", synonyms.Alignment.backward, []

    def counted(self, run, weight):
        measured.append(run.state.steps == 0)
        return backward(self, run, weight)

    monkeypatch.setattr(synonyms.Alignment, "backward", clock.slow(counted, 1))
    more = {"dropout": 0.1, "valid_every": 10**6, "save_every": 10**6}
    train(aligned, budget, steps=0, time_budget="20s", **more)
    state = runs.read_checkpoint(budget / "checkpoint.pt")["state"]
    assert state["step"] == state["steps"] == len(measured) - sum(measured) > 4 and sum(measured) >= 2
    train(aligned, tmp_path / "steps", steps=state["steps"], **more)
    assert same_weights(budget, tmp_path / "steps")


def test_what_a_run_resumes_as(copied, tmp_path):
    """A run with alignment is none of kgi.py, nor the reverse; and its pairs and settings stay."""
    train(copied, tmp_path / "aligned", steps=1, warmup=1.0)
    training.train(copied, tmp_path / "plain", steps=1, warmup=1.0)
    more, again = {"steps": 1, "warmup": 1.0}, "use the same settings, another --out, or delete"
    with pytest.raises(UserError, match=f"aligned/checkpoint.pt: the losses .* were sa, now none; {again}"):
        kgi.train(training.settings(copied, tmp_path / "aligned", **more))
    with pytest.raises(UserError, match=f"plain/checkpoint.pt: the losses .* were none, now sa; {again}"):
        train(copied, tmp_path / "plain", **more)
    with pytest.raises(UserError, match=f"temperature was 0.05, now 0.1; {again}"):
        train(copied, tmp_path / "aligned", temperature=0.1, **more)
    build_pairs(copied, 100)
    with pytest.raises(UserError, match=f"the data of sa has changed; {again}"):
        train(copied, tmp_path / "aligned", **more)


# ---------------------------------------------------------------- settings, and what a run says


def test_a_run_names_it(aligned, tmp_path, capsys):
    """In its lines, its metrics, its model card and its config; its vectors are those at [CLS]."""
    train(aligned, tmp_path / "run", steps=2)
    shown, card = capsys.readouterr().out, (tmp_path / "run" / "README.md").read_text()
    assert " sa 0." in shown.split("weights", 1)[1].splitlines()[0]
    assert all({"sa_loss", "sa_accuracy"} <= (r.get("valid") or r).keys() for r in lines(tmp_path / "run"))
    assert ", SA 0." in card and "| synonym alignment | " in card
    assert json.loads((tmp_path / "run" / "config.json").read_text())["kgi_tasks"] == [*data.TASK_NAMES, "sa"]
    (tmp_path / "run" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    init = {"init": str(tmp_path / "run"), "steps": 2}
    assert training.set_up(aligned, tmp_path / "then", **init).pooling.mode == "mean"
    assert set_up(aligned, tmp_path / "then", **init).pooling.mode == "cls"
    plain = training.set_up(aligned, tmp_path / "then", **init | {"tasks": ["mlm"]})  # it keeps what the heads know
    assert plain.model.encoder.config.extra_config["kgi_tasks"] == [*data.TASK_NAMES, "sa"]


def test_settings_are_those_of_the_table_train(aligned, tmp_path):
    config = tmp_path / "a.toml"
    config.write_text("[train]\nlr = 0.25\ntasks = ['mlm']\n[data]\nlang = 'en'\n")
    argv = [str(config), "--temperature", "0.1", "--lr", "0.5"]
    function, s = command_line.parse(argv, synonyms.__doc__, synonyms.COMMANDS, "train")
    assert function is synonyms.train and (s.tasks, s.lr, s.temperature, s.pairs_per_step) == (["mlm"], 0.5, 0.1, 0)
    config.write_text("[train]\ntemperature = 0.1\n")  # of the command line alone
    with pytest.raises(UserError, match="unknown setting 'temperature'"):
        command_line.parse(argv, synonyms.__doc__, synonyms.COMMANDS, "train")
    argv = ["build", str(aligned), "--pairs", "20"]
    function, s = command_line.parse(argv, synonyms.__doc__, synonyms.COMMANDS, "train")
    assert function is synonyms.build and s == synonyms.Build(str(aligned), 20)


def test_what_is_refused(dataset, aligned, tmp_path):
    with pytest.raises(UserError, match="sa is always trained here: leave it out of --tasks, which names the tasks"):
        train(aligned, tmp_path, tasks=["sa"])
    with pytest.raises(UserError, match="tasks = mlm sa: choose some of mlm ep lp tc"):
        training.set_up(aligned, tmp_path, tasks=["mlm", "sa"])
    with pytest.raises(UserError, match="choose some of mlm ep lp tc$"):
        set_up(aligned, tmp_path, tasks=["mlms"])
    with pytest.raises(UserError, match="there must be 4, for EP, LP, TC, SA"):
        set_up(aligned, tmp_path, alphas=[1.0, 1.0, 1.0])
    with pytest.raises(UserError, match="has no pairs of names, .*: python -m beyond.synonyms build"):
        set_up(dataset, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_mistake_is_one_line(aligned, tmp_path):
    """Of the program by its name, from either command."""
    p = command("-m", PROGRAM, *args(aligned, tmp_path / "run"), "--tasks", "sa")
    assert p.returncode == 1 and p.stderr.startswith("python -m beyond.synonyms: error: sa is always trained here")
    p = command("-m", PROGRAM, "build", tmp_path)
    assert p.returncode == 1 and p.stderr.startswith(f"python -m beyond.synonyms: error: {tmp_path} is not a data set")
    assert p.stderr.count("\n") == 1
