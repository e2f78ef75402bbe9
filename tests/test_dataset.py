"""From samples to tokens on disk, and from there to masked batches and micro-batches."""

import hashlib
import json
import random
import shutil
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc
from tokenizers import Tokenizer

import configs
import data
from configs import UserError, tokenization
from data import EP, LP, MLM, RELATIONS, TASKS, TC
from tests.conftest import SMALL, build, command, graph_of


@pytest.fixture(scope="module", params=data.PARTS)
def examples(request, dataset):
    return data.Examples(dataset, request.param)


def tokens_of(examples, i):
    return examples.ids[examples.offsets[i] : examples.offsets[i + 1]].tolist()


def cuis_of(examples, i):
    return examples.cuis[examples.cui_offsets[i] : examples.cui_offsets[i + 1]].tolist()


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
    seen = np.zeros(4, int)
    for i in range(len(examples)):
        ids, task = tokens_of(examples, i), examples.task[i]
        seen[task] += 1
        if task == MLM:
            assert not set(ids) & {cls, sep, *rel} and len(ids) >= data.SHORTEST_DOCUMENT
            continue
        assert ids[0] == cls and ids[-1] == sep and len(ids) <= SMALL["seq_len"]
        at = [k for k, x in enumerate(ids) if x in rel]
        relations = [rel.index(ids[k]) for k in at]
        pieces = [ids[a + 1 : b] for a, b in zip([0, *at], [*at, len(ids) - 1])]
        concepts = [index[c] for c in cuis_of(examples, i)]
        assert len(pieces) == len(concepts) and all(pieces)
        for k, (piece, c) in enumerate(zip(pieces, concepts)):
            other = task != LP and k == 1 and (relations[0] == data.SY or concepts[0] == c)
            allowed = flat[c][1:] if other and len(flat[c]) > 1 else flat[c][:1]
            assert piece in allowed
        steps = list(zip(concepts, relations, concepts[1:]))
        assert all((s in triples) == (task != TC or examples.kind[i] == data.TRUE) for s in steps)
        assert task != LP or 2 <= len(relations) <= 10
    assert (seen > 0).all() and seen.tolist() == [
        examples.manifest["counts"]["en"][part_of(examples)][t] for t in TASKS
    ]


def part_of(examples):
    return "train" if len(examples) > 1000 else "valid"


def test_long_names_keep_the_relation_and_both_sides(release, tmp_path):
    """Cut to fit at seq_len 16: nothing longer, the relation there, and one token of each name."""
    out = build(release, tmp_path / "short", seq_len=16)
    for part in data.PARTS:
        e = data.Examples(out, part)
        lengths = np.diff(e.offsets)
        graph = e.task != MLM
        assert lengths[graph].max() == 16
        for i in np.flatnonzero(graph):
            ids = tokens_of(e, i)
            at = [k for k, x in enumerate(ids) if e.relation[x] >= 0]
            assert at and at[0] > 1 and at[-1] < len(ids) - 2 and ids[-1] == e.special["sep"]
            assert (len(at) >= 2) == (e.task[i] == LP) and len(cuis_of(e, i)) == len(at) + 1


def test_no_pair_stands_in_both_parts(dataset):
    check_split(dataset)


def check_split(folder):
    pairs, documents = [], []
    for part in data.PARTS:
        e = data.Examples(folder, part)
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


def test_a_real_data_set(real, tmp_path):
    """Two builds give the same bytes, and no pair or document is in both parts."""
    umls, e3c = real
    outs = []
    for name in ("a", "b"):
        s = configs.Data(
            lang="es", umls=str(umls), e3c=str(e3c), out=str(tmp_path / name), paths=5000, classification=20_000
        )
        data.build(s)
        outs.append(tmp_path / name)
    assert digests(outs[0]) == digests(outs[1])
    check_split(outs[0])


def digests(folder):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in folder.iterdir()}


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


def test_documents(release, tmp_path):
    """A text once (or as often as it stands there), odd files counted, windows as asked for."""
    few = {"classification": 40, "prediction": 20, "paths": 20}
    counts, tokens = {}, {}
    for name, more in {
        "once": {}, "all copies": {"keep_duplicates": True}, "first": {"windows": "first"}, "all": {"windows": "all"},
    }.items():  # fmt: skip
        out = build(release, tmp_path / name, **few, **more)
        parts = [data.Examples(out, p) for p in data.PARTS]
        counts[name] = sum((e.task == MLM).sum() for e in parts)
        lengths = np.concatenate([np.diff(e.offsets)[e.task == MLM] for e in parts])
        tokens[name] = lengths.sum(), lengths.max()
        odd = json.loads((out / "manifest.json").read_text())["counts"]["en"]["odd"]
        assert odd["files without text"] == 4 and odd["files named for another language"] == 2
    assert (counts["once"], counts["all copies"], counts["first"]) == (60, 62, 60)
    assert counts["all"] > 60 and tokens["all"][0] >= tokens["once"][0] and tokens["all"][1] == 62
    assert tokens["once"][1] > 62 == tokens["first"][1]


def test_other_texts(release, tmp_path):
    """A document a line, JSON Lines and a folder of .txt give the same; alone or beside E3C, per language."""
    texts = [f"Le foie du patient n° {i} était normal." for i in range(80)]
    (tmp_path / "lines.txt").write_bytes("\ufeff".encode() + "\r\n".join([*texts, "", " ", texts[0]]).encode())
    rows = [json.dumps({"id": i, "text": t}, ensure_ascii=bool(i % 2)) for i, t in enumerate(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, '{"text": ""}']) + "\n", encoding="utf-8")
    (tmp_path / "fr" / "deep").mkdir(parents=True)
    for i, text in enumerate(texts):
        (tmp_path / "fr" / ("deep" if i % 3 else ".") / f"{i}.txt").write_text(text + "\n", encoding="utf-8")
    few = {"classification": 40, "prediction": 20, "paths": 20, "e3c": "none", "lang": "fr"}
    built = []
    for text in ("lines.txt", "rows.jsonl", "fr", "{lang}"):
        out = build(release, tmp_path / "out", **few, text=str(tmp_path / text))
        built.append(digests(out)["train.arrow"])
        odd = json.loads((out / "manifest.json").read_text())["counts"]["fr"]["odd"]
        n = sum((data.Examples(out, p).task == MLM).sum() for p in data.PARTS)
        repeated = text == "lines.txt"
        assert (
            n == 80 and odd["repeated texts"] == repeated and odd.get("empty texts", 0) == [2, 1, 0, 0][len(built) - 1]
        )
    assert len(set(built)) == 1
    both = build(release, tmp_path / "out", **few | {"e3c": str(release / "E3C")}, text=str(tmp_path / "fr"))
    assert sum((data.Examples(both, p).task == MLM).sum() for p in data.PARTS) == 140


@pytest.mark.parametrize("name, content, said, good", [
    ("a.jsonl", b'{"text": "x"}\n{"txt": 1}\n', 'a.jsonl, row 2: not a JSON object with a field "text"', 1),
    ("a.jsonl", b'{"text": "x"}\n\n{"text": 3}\n', "a.jsonl, row 3: not a JSON object", 1),
    ("a.jsonl", b'["text"]', "a.jsonl, row 1: not a JSON object", 0),
    ("a.JSONL", b"[" * 200_000, "a.JSONL, row 1: not a JSON object", 0),
    ("a.txt", b"x\ny\n\xe9\n", "a.txt, row 3: byte 0xe9 is not UTF-8", 2),
    ("folder/a.txt", b"x\ny\n\xe9\n", "a.txt, row 3: byte 0xe9 is not UTF-8", 0),
    ("folder/a.doc", b"", "folder: neither a file nor a folder with .txt files", None),
])  # fmt: skip
def test_bad_texts(tmp_path, name, content, said, good):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    path = path.parent if "/" in name else path
    with pytest.raises(UserError, match=said):
        data.read_text(path)
    if good is not None:
        skip = Counter()
        assert len(data.read_text(path, skip)[0]) == good and sum(skip.values()) == 1


def test_the_tables_at_the_end(release, dataset, capsys):
    """Shares against plain counting over the graph and over the written examples; show prints them and examples."""
    manifest = json.loads((dataset / "manifest.json").read_text())
    told = manifest["counts"]["en"]["shares"]
    g, e = graph_of(release, kept=configs.SEMANTIC_TYPES), data.Examples(dataset, "train")
    index = {int(c): i for i, c in enumerate(g.cui)}
    triples = {name: [] for name in told["columns"]}
    triples["graph"] = list(zip(g.h.tolist(), g.r.tolist(), g.t.tolist()))
    columns = {(EP, 0): "entity prediction", (LP, 0): "paths"}
    columns |= {(TC, k): name for k, name in enumerate(("true", "other pair", "other relation"))}
    for i in np.flatnonzero(e.task != MLM):
        c = [index[x] for x in cuis_of(e, i)]
        r = [int(e.relation[x]) for x in tokens_of(e, i) if e.relation[x] >= 0]
        triples[columns[int(e.task[i]), int(e.kind[i])]] += zip(c, r, c[1:])
    for k, name in enumerate(told["columns"]):
        found = triples[name]
        relations, ends = (
            Counter(r for _, r, _ in found),
            Counter(g.groups[g.group[x]] for h, _, t in found for x in (h, t)),
        )
        cut = 0.02 if name == "paths" else 1e-5  # paths are cut to fit
        assert all(abs(told["relations"][x][k] - relations[i] / len(found)) < cut for i, x in enumerate(RELATIONS))
        assert all(abs(p[k] - ends[x] / 2 / len(found)) < cut for x, p in told["groups"].items())
        pairs = Counter((g.group[h], g.group[t]) for h, _, t in found)
        frame = [(a, b) for a, r, b in triples["graph"] if not (name == "paths" and r == data.SY)]
        frame = Counter((g.group[a], g.group[b]) for a, b in frame)
        if name.startswith("other"):
            frame = Counter({p: n for p, n in frame.items() if (p[0] != p[1]) == (name == "other pair")})
        off = max(abs(pairs[p] / len(found) - frame[p] / frame.total()) for p in pairs | frame)
        assert abs(off - told["largest_deviation"][name][0]) < cut
        assert name == "paths" or off * len(found) < 1  # exact to rounding
    data.show(dataset)
    said = capsys.readouterr().out
    assert f"{manifest['counts']['en']['terms']:,}" in said and said.count("[MASK]") > 9 and "[HREL]" in said
    assert [said.count(f"-> {x}") for x in ("true", "false: other concepts", "false: another relation")] == [1, 1, 1]


def test_copies_of_a_text_are_in_one_part():
    texts = [f"text {i % 300}" for i in range(900)]
    parts = data.split_documents(texts, 0, 0.3, keep_duplicates=True)
    assert not set(parts["train"]) & set(parts["valid"]) and len(parts["train"]) + len(parts["valid"]) == 900
    once = data.split_documents(texts, 0, 0.3, keep_duplicates=False)
    assert {p: set(t) for p, t in parts.items()} == {p: set(t) for p, t in once.items()} and sum(
        map(len, once.values())
    ) == 300


def test_multi(release, tmp_path):
    out = build(release, tmp_path / "multi", lang="multi")
    e = data.Examples(out, "train")
    manifest = e.manifest
    assert manifest["languages"] == ["en", "fr", "es"] and manifest["name"] == "multi"
    for i, lang in enumerate(manifest["languages"]):
        n = np.bincount(e.task[e.lang == i], minlength=4)
        assert n.tolist() == [manifest["counts"][lang]["train"][t] for t in TASKS] and (n > 0).all()
    check_split(out)


def test_a_checkpoints_tokenizer(release, dataset, tmp_path):
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
    assert special == {
        "cls": 0,
        "sep": 1,
        "pad": 2,
        "unk": 3,
        "mask": 4,
        "relations": list(range(n, n + 7)),
        "hrel": n + 7,
    }
    assert np.diff(data.Examples(out, "train").offsets).max() > 30  # its own truncation is switched off
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="tokenizer.json: not a tokenizer"):
        build(release, tmp_path / "en2", tokenizer=str(tmp_path / "bad"))


def test_the_tokenizer(dataset):
    t = Tokenizer.from_file(str(dataset / "tokenizer.json"))
    wanted = [*data.SPECIALS, *(f"[{r}]" for r in RELATIONS), "[HREL]"]
    assert [t.token_to_id(w) for w in wanted] == list(range(13))
    assert t.encode("liver [PAR] kidney").tokens[2] == "[PAR]"
    ids, n = tokenization.encode(t, ["liver [SEP] [PAR]", ""], "x")
    assert not {t.token_to_id("[SEP]"), t.token_to_id("[PAR]")} & set(ids.tolist()) and n[1] == 0  # text, not marks


def test_accents_and_case():
    texts = [["Fièvre élevée de l'estomac"] * 5, ["fièvre Élevée"] * 5]
    for cased in (True, False):
        t = data.train_tokenizer(iter(texts), 200, cased)
        assert "è" in "".join(t.encode("fièvre").tokens)
        assert (t.encode("Fièvre").ids == t.encode("fièvre").ids) == (not cased)
        assert t.encode("e\u0301leve\u0301e").ids == t.encode("élevée").ids  # decomposed accents are the same


# ---------------------------------------------------------------- batches


def masked(examples, rows, epoch=0, seed=0, p=0.15):
    return examples.batch(np.full(len(rows), epoch), np.asarray(rows), seed, p)


def unpack(batch, i):
    """(ids of row i, {position: (task, label)})."""
    mine = batch.row == i
    ids = batch.ids[batch.start[i] : batch.start[i] + batch.length[i]].tolist()
    return ids, dict(zip(batch.col[mine].tolist(), zip(batch.task[mine].tolist(), batch.label[mine].tolist())))


def test_masks_of_each_task(examples):
    batch = masked(examples, range(len(examples)))
    mask, hrel, s = examples.special["mask"], examples.special["hrel"], examples.special
    for i in range(len(examples)):
        ids, targets = unpack(batch, i)
        task = examples.task[i]
        assert all(t == task for t, _ in targets.values())
        assert ids[0] == s["cls"] and ids[-1] == s["sep"] and len(ids) <= SMALL["seq_len"]
        if task == MLM:
            continue
        original = tokens_of(examples, i)
        at = [k for k, x in enumerate(original) if examples.relation[x] >= 0]
        if task == EP:  # 100 % of the tail, nothing else
            tail = range(at[0] + 1, len(ids) - 1)
            assert targets == {k: (EP, original[k]) for k in tail} and all(ids[k] == mask for k in tail)
        if task == LP:
            assert targets == {k: (LP, int(examples.relation[original[k]])) for k in at} and all(
                ids[k] == hrel for k in at
            )
            assert all(0 <= label < 6 for _, label in targets.values())
        if task == TC:
            assert targets == {0: (TC, int(examples.kind[i] == data.TRUE))}
        assert all(a == b for k, (a, b) in enumerate(zip(ids, original)) if k not in targets or task == TC)
    assert batch.counts.tolist() == np.bincount(batch.task, minlength=4).tolist()


def test_mlm_rates(dataset):
    """15 % of the tokens; of these 80 % [MASK], 10 % another ordinary token, 10 % kept."""
    e = data.Examples(dataset, "train")
    rows = np.flatnonzero(e.task == MLM)
    tokens, picked, kinds, random = 0, 0, np.zeros(3), []
    for epoch in range(60):
        whole, batch = masked(e, rows, epoch, p=0.0), masked(e, rows, epoch)
        assert len(whole.row) == 0 and len(whole.ids) == len(batch.ids)  # the same windows
        at = batch.start[batch.row] + batch.col
        assert (whole.ids[at] == batch.label).all()
        untouched = np.ones(len(batch.ids), bool)
        untouched[at] = False
        assert (whole.ids[untouched] == batch.ids[untouched]).all()
        tokens += len(batch.ids) - 2 * len(rows)
        picked += len(at)
        is_mask, kept = batch.ids[at] == e.special["mask"], batch.ids[at] == batch.label
        kinds += is_mask.sum(), (~is_mask & ~kept).sum(), kept.sum()
        random += batch.ids[at][~is_mask & ~kept].tolist()
    assert abs(picked / tokens - 0.15) < 0.005
    assert np.abs(kinds / picked - [0.8, 0.1, 0.1]).max() < 0.01
    assert set(random) <= set(e.ordinary.tolist()) and len(set(random)) > len(e.ordinary) / 2
    assert not set(e.ordinary.tolist()) & set(range(13))


def test_a_mask_depends_on_seed_epoch_and_example_alone(dataset):
    e = data.Examples(dataset, "train")
    rows = np.random.default_rng(0).permutation(len(e))[:200]
    batch = masked(e, rows)
    alone = [unpack(masked(e, [r]), 0) for r in rows]
    assert [unpack(batch, i) for i in range(len(rows))] == alone
    changed = np.flatnonzero(e.task[rows] == MLM)
    for other in (masked(e, rows, epoch=1), masked(e, rows, seed=1)):
        different = [unpack(other, i) != alone[i] for i in changed]
        assert np.mean(different) > 0.9


def test_windows_of_long_documents_cover_them(dataset):
    e = data.Examples(dataset, "train")
    long = [i for i in np.flatnonzero(e.task == MLM) if len(tokens_of(e, i)) > 2 * SMALL["seq_len"]]
    i, room = long[0], SMALL["seq_len"] - 2
    document, starts = tokens_of(e, i), set()
    for epoch in range(400):
        ids, _ = unpack(masked(e, [i], epoch, p=0.0), 0)
        found = [k for k in range(len(document) - room + 1) if document[k : k + room] == ids[1:-1]]
        assert found
        starts |= set(found)
    assert 0 in starts and len(document) - room in starts


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("budget", [1, 300, 5000, 10**6])
@pytest.mark.parametrize("padding", [0, 20, 10**6])
def test_micro_batches_are_the_batch(dataset, budget, padding, world):
    """Whatever the budget and the ranks: every row once, every target once, padded with [PAD] alone."""
    e = data.Examples(dataset, "train")
    batch = masked(e, np.random.default_rng(1).permutation(len(e))[:150])
    wanted = sorted((tuple(ids), tuple(sorted(t.items()))) for ids, t in (unpack(batch, i) for i in range(150)))
    got, padded = [], 0
    for rank in range(world):
        for m in data.micro_batches(batch, budget, padding, rank, world):
            n, width = m["ids"].shape
            assert (n * width <= budget and n * width - m["length"].sum() <= padding) or n == 1
            assert (np.diff(m["task"]) >= 0).all()
            padded += n * width
            rows = [{} for _ in range(n)]
            for p, t, label in zip(m["position"].tolist(), m["task"].tolist(), m["label"].tolist()):
                rows[p // width][p % width] = (t, label)
            for i in range(n):
                length = m["length"][i]
                assert (m["ids"][i, length:] == e.special["pad"]).all()
                got.append((tuple(m["ids"][i, :length].tolist()), tuple(sorted(rows[i].items()))))
    assert sorted(got) == wanted
    if budget == 300 and world == 1:
        assert padded < 1.25 * batch.length.sum()


def test_more_ranks_than_examples(dataset):
    e = data.Examples(dataset, "train")
    batch = masked(e, [0, 1])
    sizes = [[m["ids"].shape[0] for m in data.micro_batches(batch, 100, 100, rank, 4)] for rank in range(4)]
    assert sizes == [[1], [1], [0], [0]]  # an empty one keeps the others from waiting


def test_order():
    order = data.Order(10, 4, seed=3)
    steps = [order(s) for s in range(10)]
    for epoch in range(4):
        rows = [r for e, rs in steps for ee, r in zip(e.tolist(), rs.tolist()) if ee == epoch]
        assert sorted(rows) == list(range(10))
    assert all(len(r) == 4 for _, r in steps)
    again = data.Order(10, 4, seed=3)(7)  # without having seen the steps before
    assert (again[0] == steps[7][0]).all() and (again[1] == steps[7][1]).all()
    big = data.Order(3, 8, seed=0)(1)  # an effective batch larger than the data set
    assert big[0].tolist() == [2, 3, 3, 3, 4, 4, 4, 5]


def test_damaged_data_sets(dataset, tmp_path):
    with pytest.raises(UserError, match="is not a data set"):
        data.Examples(tmp_path, "train")
    whole = bytearray((dataset / "train.arrow").read_bytes())
    whole[len(whole) // 2] ^= 1
    for i, (name, content, said) in enumerate(
        [("train.arrow", b"ARROW1", "damaged"), ("train.arrow", whole, "damaged"), ("manifest.json", b"{", "damaged"),
         ("manifest.json", b"{}", "no counts, "), ("manifest.json", b"[]", "damaged")]
    ):  # fmt: skip
        copy = tmp_path / str(i)
        shutil.copytree(dataset, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{said}.*build the data set again"):
            data.Examples(copy, "train")
    (copy / "manifest.json").write_bytes((dataset / "manifest.json").read_bytes())
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not the tokenizer this data set was built with"):
        data.read_tokenizer(copy)


def nodes(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from nodes(part, (*path, key))


def test_changed_manifests(dataset, tmp_path, capsys):
    """Whatever stands in the place of a value: it does not matter, or one line says what is wrong."""
    shutil.copytree(dataset, tmp_path / "en")
    whole = (dataset / "manifest.json").read_text()
    manifest = json.loads(whole)
    paths = [path for path in nodes(manifest) if path and path[:2] != ("settings", "semantic_types")]
    random.Random(0).shuffle(paths)
    values = [None, True, -1, 10**9, 10**400, 1.5, float("nan"), "x", "", [], {}, [1], {"x": 1}, [[]], "DELETE"]
    random.Random(1).shuffle(values)
    refused = 0
    for i, (*before, last) in enumerate(paths[:250]):
        changed = json.loads(whole)
        place = changed
        for key in before:
            place = place[key]
        if (value := values[i % len(values)]) == "DELETE":
            del place[last]
        else:
            place[last] = value
        (tmp_path / "en" / "manifest.json").write_text(json.dumps(changed))
        try:
            data.show(tmp_path / "en")
            for e in (data.Examples(tmp_path / "en", part) for part in data.PARTS):
                e.batch(np.zeros(20, np.int64), e.rows[:20], 0, 0.15)
        except UserError as e:
            refused += 1
            assert "damaged" in str(e) and "\n" not in str(e), (before, last, value)
    assert refused > 100


@pytest.mark.parametrize("place, value, said", [
    (["special"], [1], "special is"), (["special", "mask"], 10**6, "special token is not in the vocabulary"),
    (["special", "relations"], [5, 6], "relations has 2 values"), (["special", "hrel"], None, "hrel is None"),
    (["settings"], {}, "no seq_len in settings"), (["settings", "seq_len"], 10**9, "seq_len is 1000000000"),
    (["nci_rows_left_out"], 3, "nci_rows_left_out is 3"),
    (["vocab_size"], 2**40, "vocab_size 1099511627776"), (["languages"], ["fr"], "counts of other languages"),
    (["counts", "en", "train"], {"mlm": 3}, "no ep, lp, tc in train"),
    (["counts", "en", "shares", "columns"], ["graph"], "shares of other columns"),
])  # fmt: skip
def test_what_a_changed_manifest_is_told(dataset, tmp_path, place, value, said):
    manifest = json.loads((dataset / "manifest.json").read_text())
    *before, last = place
    part = manifest
    for key in before:
        part = part[key]
    part[last] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest.json: damaged or of another version \(.*{said}"):
        data.read_manifest(tmp_path)


@pytest.mark.parametrize("change, said", [
    (lambda b: b.drop_columns(["cuis"]), "not the columns of a data set"),
    (lambda b: b.set_column(0, "task", b["task"].cast("int64")), "not the columns of a data set"),
    (lambda b: b.set_column(0, "task", pa.array([None, *b["task"].to_pylist()[1:]], pa.uint8())), "values are missing"),
    (lambda b: b.set_column(0, "task", pa.array([9] * len(b), pa.uint8())), "a task is out of range"),
    (lambda b: b.set_column(1, "lang", pa.array([9] * len(b), pa.uint8())), "a language is out of range"),
    (lambda b: b.set_column(2, "kind", pa.array([9] * len(b), pa.uint8())), "a kind of triple is out of range"),
    (lambda b: ids_of(b, [[2, 10**6, 3]]), "a token is out of range"),
    (lambda b: ids_of(b, [[2, -1, 3]]), "a token is out of range"),
    (lambda b: ids_of(b, [[2]]), "example 0 has 1 tokens"),
    (lambda b: ids_of(b, [[2] * 99]), "example 0 has 99 tokens"),
    (lambda b: None, ""),
])  # fmt: skip
def test_changed_files_with_their_sum(dataset, tmp_path, change, said):
    """A train.arrow that is not what a build writes, though its SHA-256 is in the manifest."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train.arrow"
    with open(path, "rb") as f:
        batch = change(ipc.open_file(f).get_batch(0))
    path.write_bytes(b"")
    if batch is not None:
        with ipc.new_file(path, batch.schema) as out:
            out.write_batch(batch)
    tell_the_sum(path)
    with pytest.raises(UserError, match=rf"train.arrow: damaged \(.*{said}.*\); build the data set again"):
        data.Examples(tmp_path, "train")


def ids_of(batch, rows):
    task = batch["task"].to_pylist()
    rows = rows * (1 if task[0] != MLM else 0) + batch["ids"].to_pylist()[len(rows) :]
    return batch.set_column(4, "ids", pa.array(rows, pa.large_list(pa.int32())))


def tell_the_sum(path):
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_changed_tokenizers_with_their_sum(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    for content in (b"{}", b"\xff", json.dumps(whole | {"added_tokens": [], "model": {"type": "BPE"}}).encode()):
        path.write_bytes(content)
        tell_the_sum(path)
        with pytest.raises(UserError, match="tokenizer.json: damaged .*; build the data set again"):
            data.read_tokenizer(tmp_path)


def test_files_that_cannot_be_read(dataset, tmp_path):
    """The cause is told: here a folder in the place of the file, as no permission stops the superuser."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    for name in ("train.arrow", "manifest.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"{name}: cannot be read: Is a directory$"):
            data.Examples(tmp_path, "train")
    (tmp_path / "manifest.json").rmdir()
    with pytest.raises(UserError, match="is not a data set"):
        data.Examples(tmp_path, "train")
