"""make demo-links: its mentions are held out, its table is right, and neither demo breaks the other."""

import json
import shutil
import subprocess
import sys

import pytest
from tokenizers import Tokenizer

from beyond import synonyms
from support import datasets
from tests import demo_links
from tests.conftest import ROOT, build

PYTHON = f"""#!/bin/sh
# In the place of the one of .venv: prints what it is called with.
[ "$1" != -c ] || exec {sys.executable} "$@"
echo "called $*"
mkdir -p demo/fr demo/tables demo/kgi-fr demo/links/kgi-fr-sa
case "$*" in *"$FAILS"*) exit 1;; esac
"""
NAMES = {"C1": "tumeur du foie", "C2": "kyste du foie", "C3": "ulcère de la partie inférieure de l'estomac, chronique"}


@pytest.fixture
def make(tmp_path):
    """Calls make in a folder where a script stands for Python; returns (its status, what was called)."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "env" / "bin").mkdir(parents=True)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-plot.txt", "env/.ready"):
        (tmp_path / name).touch()
    (tmp_path / "env" / "bin" / "python").write_text(PYTHON)
    (tmp_path / "env" / "bin" / "python").chmod(0o755)

    def call(goal, fails="nothing"):
        argv = ["make", goal, "VENV=env", f"FAILS={fails}"]
        p = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        lines = [line.removeprefix("called ") for line in p.stdout.splitlines() if line.startswith("called ")]
        return p.returncode, lines

    return call


def test_the_links_follow_the_demo_and_go_on(make, tmp_path):
    status, called = make("demo-links")  # there is no demo yet
    assert status == 0 and called.index("tests/demo_report.py demo") < len(called) - 1
    assert called[-1] == "tests/demo_links.py report demo/links"
    alone = len(make("demo-links")[1])
    assert 0 < alone < len(called)
    mine, trained = tmp_path / "demo" / "links" / "mine", tmp_path / "demo" / "links" / "kgi-fr-sa" / "checkpoint.pt"
    status, called = make("demo-links", fails="tests/demo_links.py mentions")
    assert status != 0
    trained.touch()
    assert make("demo-links") == (0, [*called, *make("demo-links")[1][len(called) :]])
    mine.touch()
    assert make("demo-links")[0] == 0 and not mine.exists()  # the demo of links came to its end, and is made again
    trained.touch()
    assert make("demo")[0] == 0 and not trained.exists()  # the encoder that it was trained from is another one
    assert len(make("demo-links")[1]) == alone


def test_the_report_reads_the_links_that_are_written(make):
    """The three runs of beyond.link write the files that the report reads, of the mentions that were written."""
    links = [line.split() for line in make("demo-links")[1] if "beyond.link" in line]
    written = [argv[argv.index("--out") + 1] for argv in links]
    assert written == [f"demo/links/{name}.jsonl" for name in ("trigrams", "before", "after")]
    assert all("demo/links/mentions.jsonl" in argv and "demo/links/names.tsv" in argv for argv in links)


def test_mentions_are_names_of_concepts_without_a_pair_in_training(release, tmp_path):
    folder = build(release, tmp_path / "links" / "fr", lang="fr")
    synonyms.build(synonyms.Build(dataset=str(folder), pairs=10_000))
    demo_links.write_mentions(folder.parent)
    names = dict(line.split("\t") for line in (folder.parent / "names.tsv").read_text().splitlines())
    mentions = [*map(json.loads, (folder.parent / "mentions.jsonl").read_text().splitlines())]
    all_names = {*zip(*datasets.names_of_dataset(folder, ""))}
    assert {cui for cui, _ in all_names} == {*names} and {*names.items()} < all_names
    assert len(mentions) > 10 and len({m["text"] for m in mentions}) == len(mentions)
    assert not any(m["text"] in names.values() or names[m["concept"]] in m["text"] for m in mentions)
    assert all((m["concept"], m["text"]) in all_names and m["preferred"] == names[m["concept"]] for m in mentions)

    pairs, _ = synonyms.read_pairs(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    in_pairs = {s: {tokenizer.decode(ids.tolist()).strip() for ids in split_names(p)} for s, p in pairs.items()}
    spelling = {tokenizer.decode(tokenizer.encode(m["text"], add_special_tokens=False).ids).strip() for m in mentions}
    assert spelling <= in_pairs["valid"] and not spelling & in_pairs["train"]
    held_out = {f"C{cui:07d}" for cui in pairs["valid"].cuis.tolist()} - {f"C{c:07d}" for c in pairs["train"].cuis}
    assert {m["concept"] for m in mentions} <= held_out


def split_names(pairs):
    """The token ids of each name of some pairs."""
    return (pairs.ids[a:b] for a, b in zip(pairs.offsets, pairs.offsets[1:]))


def write_links(folder, **nearest):
    """Files of links as beyond.link writes them. nearest: of each file, the ids of the concepts of each mention."""
    mentions = {
        "une néoplasie": "C1", "masse kystique du foie": "C2", "masse": "C2", "ulcération": "C3",
        "d": "C1", "e": "C1", "f": "C1", "g": "C1",
    }  # fmt: skip
    for name, found in nearest.items():
        records = [
            {"text": text, "concept": gold, "preferred": NAMES[gold], "tied": 0}
            | {"concepts": [{"id": i, "name": NAMES[i], "similarity": 0.9 - 0.1 * k} for k, i in enumerate(ids)]}
            for (text, gold), ids in zip(mentions.items(), found)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))


def test_the_table_of_made_up_links(tmp_path, capsys):
    before = [("C3", "C1", "C2")] * 8
    after = [("C1", "C2", "C3"), ("C2", "C1", "C3"), ("C1", "C2", "C3"), ("C1", "C3", "C2"), *[("C1", "C2", "C3")] * 4]
    write_links(tmp_path, trigrams=[("C2", "C1", "C3")] * 8, before=before, after=after)
    demo_links.report(tmp_path)
    shown = capsys.readouterr().out.splitlines()
    heads = [line for line in shown if "(a name of: " in line]
    assert [line.split(" (")[0] for line in heads] == ["d", "e", "f", "g", "masse"]  # the shorter of two that begin so
    at = shown.index(heads[-1])
    assert shown[at : at + 4] == [
        "masse (a name of: kyste du foie)",
        "    0.90 ulcère de la partie inférieure de l'esto…    0.90 tumeur du foie",
        "    0.80 tumeur du foie                             ✓ 0.80 kyste du foie",
        "  ✓ 0.70 kyste du foie                                0.70 ulcère de la partie inférieure de l'esto…",
    ]
    assert shown[-1] == (  # 1, 6 and 2 of 8
        "accuracy at 1 in per cent, of all 8 mentions: before 12.5, after 75.0, by trigrams of letters 25.0"
    )
    assert max(map(len, shown)) <= 100
