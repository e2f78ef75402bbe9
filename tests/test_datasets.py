"""Data sets on disk: damaged files are refused, and a build replaces a data set as a whole or not at all."""

import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import ipc

import configs
import data
from configs import UserError, command_line
from data import MLM
from support import builds, cache, datasets
from tests.conftest import FEW, ROOT, build, command, run_command

# ---------------------------------------------------------------- what was changed or damaged since the build


def test_damaged_data_sets_are_refused(dataset, tmp_path):
    with pytest.raises(UserError, match="is not a data set"):
        data.PretrainingDataset(tmp_path, "train")
    whole = bytearray((dataset / "train.arrow").read_bytes())
    whole[len(whole) // 2] ^= 1
    for i, (name, content, message) in enumerate(
        [("train.arrow", b"ARROW1", "damaged"), ("train.arrow", whole, "damaged"), ("manifest.json", b"{", "damaged"),
         ("manifest.json", b'{"version": 2}', "no name in it"), ("manifest.json", b"[]", "damaged")]
    ):  # fmt: skip
        copy = tmp_path / str(i)
        shutil.copytree(dataset, copy)
        (copy / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}.*{message}.*build the data set again"):
            data.PretrainingDataset(copy, "train")
    (copy / "manifest.json").write_bytes((dataset / "manifest.json").read_bytes())
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match="not the tokenizer this data set was built with"):
        datasets.read_tokenizer(copy)


def test_a_data_set_of_another_form_is_refused(dataset, tmp_path):
    """That of an older version, whose manifest has no number; the build that the message asks for replaces it."""
    shutil.copytree(dataset, tmp_path / "en")
    path = tmp_path / "en" / "manifest.json"
    manifest = json.loads(path.read_text())
    for form, content in ((1, {k: v for k, v in manifest.items() if k != "version"}), (3, manifest | {"version": 3})):
        path.write_text(json.dumps(content))
        message = rf"en is a data set of form {form}, and this is a program for 2; build it again$"
        for read in (datasets.read_tokenizer, lambda folder: data.PretrainingDataset(folder, "train")):
            with pytest.raises(UserError, match=message):
                read(tmp_path / "en")
        builds.choose_output(configs.Data(lang="en", out=str(tmp_path / "en")), ["en"])


def nodes(value, path=()):
    """The path of every value in a JSON document."""
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from nodes(part, (*path, key))


def test_a_changed_value_of_the_manifest_is_harmless_or_reported(dataset, tmp_path, capsys):
    """Whatever replaces a value: the data set can still be read, or one line says what is wrong."""
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
            data.show(configs.Show(dataset=str(tmp_path / "en")))
            for e in (data.PretrainingDataset(tmp_path / "en", split) for split in data.SPLITS):
                e.masked_batch(e.rows[:20], np.zeros(20, np.int64), 0, 0.15)
        except UserError as e:
            refused += 1
            message = "build it again" if last == "version" else "damaged|not the tokenizer"
            assert re.search(f"damaged|{message}", str(e)) and "\n" not in str(e), (before, last, value)
    assert refused > 100


@pytest.mark.parametrize("path, value, message", [
    (["special"], [1], "special is"), (["special", "mask"], 10**6, "special token is not in the vocabulary"),
    (["special", "relations"], [5, 6], "2 relations"),
    (["special", "hrel"], None, "hrel in special is None"),
    (["counts", "en", "terms"], True, "terms in en in counts is True"), (["languages"], "en", "languages is no list"),
    (["settings"], {}, "no seq_len in settings"), (["settings", "seq_len"], 10**9, "seq_len is 1000000000"),
    (["nci_rows_left_out"], 3, "nci_rows_left_out is no object"),
    (["vocab_size"], 2**40, "vocab_size 1099511627776"), (["languages"], ["fr"], "counts of other languages"),
    (["counts", "en", "train"], {"mlm": 3}, "no ep, lp, tc in train"),
    (["counts", "en", "distribution", "columns"], ["graph"], "shares of other columns"),
])  # fmt: skip
def test_what_is_wrong_in_a_manifest_is_reported(dataset, tmp_path, path, value, message):
    manifest = json.loads((dataset / "manifest.json").read_text())
    *before, last = path
    place = manifest
    for key in before:
        place = place[key]
    place[last] = value
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match=rf"manifest.json: damaged or of another version \(.*{message}"):
        data.PretrainingDataset(tmp_path, "train")


@pytest.mark.parametrize("change, message", [
    (lambda b: b.drop_columns(["cuis"]), "not the columns of a data set"),
    (lambda b: b.set_column(0, "task", b["task"].cast("int64")), "not the columns of a data set"),
    (lambda b: b.set_column(0, "task", pa.array([None, *b["task"].to_pylist()[1:]], pa.uint8())), "values are missing"),
    (lambda b: b.set_column(0, "task", pa.array([9] * len(b), pa.uint8())), "a task is out of range"),
    (lambda b: b.set_column(1, "lang", pa.array([9] * len(b), pa.uint8())), "a language is out of range"),
    (lambda b: b.set_column(2, "kind", pa.array([9] * len(b), pa.uint8())), "a kind of triple is out of range"),
    (lambda b: replace_ids(b, [[2, 10**6, 3]]), "a token is out of range"),
    (lambda b: replace_ids(b, [[2, -1, 3]]), "a token is out of range"),
    (lambda b: replace_ids(b, [[]]), "example 0 has 0 tokens"),
    (lambda b: replace_ids(b, [[2] * 63]), "example 0 has 63 tokens"),  # less than 64, but [CLS] and [SEP] are to come
    (lambda b: None, ""),
])  # fmt: skip
def test_a_changed_arrow_file_is_refused_though_its_hash_fits(dataset, tmp_path, change, message):
    """The train.arrow is not what a build writes, though its SHA-256 is in the manifest."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "train.arrow"
    with open(path, "rb") as f:
        batch = change(ipc.open_file(f).get_batch(0))
    path.write_bytes(b"")
    if batch is not None:
        with ipc.new_file(path, batch.schema) as out:
            out.write_batch(batch)
    update_hash(path)
    with pytest.raises(UserError, match=rf"train.arrow: damaged \(.*{message}.*\); build the data set again"):
        data.PretrainingDataset(tmp_path, "train")


def replace_ids(batch, rows):
    task = batch["task"].to_pylist()
    rows = rows * (1 if task[0] != MLM else 0) + batch["ids"].to_pylist()[len(rows) :]
    return batch.set_column(4, "ids", pa.array(rows, pa.large_list(pa.int32())))


def update_hash(path):
    manifest = json.loads((path.parent / "manifest.json").read_text())
    manifest["sha256"][path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    (path.parent / "manifest.json").write_text(json.dumps(manifest))


def test_a_changed_tokenizer_is_refused_though_its_hash_fits(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text())
    for content in (b"{}", b"\xff", json.dumps(whole | {"added_tokens": [], "model": {"type": "BPE"}}).encode()):
        path.write_bytes(content)
        update_hash(path)
        with pytest.raises(UserError, match="tokenizer.json: damaged .*; build the data set again"):
            datasets.read_tokenizer(tmp_path)


def test_why_a_file_cannot_be_read_is_reported(dataset, tmp_path):
    """The cause here is a folder in the place of the file, since no permission stops the superuser."""
    shutil.copytree(dataset, tmp_path, dirs_exist_ok=True)
    for name in ("train.arrow", "manifest.json"):
        (tmp_path / name).unlink()
        (tmp_path / name).mkdir()
        with pytest.raises(UserError, match=f"{name}: cannot be read: Is a directory$"):
            data.PretrainingDataset(tmp_path, "train")
    (tmp_path / "manifest.json").rmdir()
    with pytest.raises(UserError, match="is not a data set"):
        data.PretrainingDataset(tmp_path, "train")


# ---------------------------------------------------------------- builds that fail, are killed, or run at the same time


def test_a_failed_build_keeps_the_old_data_set(release, tmp_path, monkeypatch):
    out = build(release, tmp_path / "en", **FEW)
    before = {f.name: f.read_bytes() for f in out.iterdir()}

    def full(*_):
        names = {re.sub("[0-9a-f]{8}", "..", f.name) for f in tmp_path.iterdir()}
        assert names == {"en", ".en....tmp", "tables"}  # beside the old one
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(datasets.ExampleWriter, "write", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        build(release, tmp_path / "en", **FEW, seed=1)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"en", "tables"}


def test_a_killed_build_keeps_the_old_data_set(release, tmp_path):
    out = build(release, tmp_path / "en", **FEW)
    before = {f.name: f.read_bytes() for f in out.iterdir()}
    settings = {"lang": "en", "umls": str(release), "e3c": "none", "out": str(out), "vocab_size": 300, "seed": 1} | FEW
    die = "datasets.ExampleWriter.write = lambda *_: os.kill(os.getpid(), 9)"
    code = f"import os, configs, data; from support import datasets; {die}; data.build(configs.Data(**{settings}))"
    p = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True)
    assert p.returncode == -signal.SIGKILL and len([*tmp_path.glob(".en.*.tmp")]) == 1
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    build(release, out, **FEW)
    assert {f.name: f.read_bytes() for f in out.iterdir()} == before
    assert {f.name for f in tmp_path.iterdir()} == {"en", "tables"}


# ---------------------------------------------------------------- where a data set is


def test_another_language_does_not_replace_a_data_set(release, tmp_path):
    out = build(release, tmp_path / "en", **FEW)
    with pytest.raises(UserError, match="en holds a data set of language en, not fr; choose another --out"):
        build(release, out, lang="fr", **FEW)
    (out / "manifest.json").write_text('{"version": 2, "sha256": {}}')  # damaged
    with pytest.raises(UserError, match=r"damaged or of another version \(no name in it.*; build the data set again"):
        data.show(configs.Show(dataset=str(out)))
    build(release, out, **FEW)


@pytest.mark.parametrize("held, message", [
    ({"mine.txt": ""}, "en holds mine.txt, which this command did not write; move it away, or choose another place"),
    ({"train.arrow/mine.txt": ""}, "en holds train.arrow, which"),
    ({"manifest.json": '{"name": "my-app", "version": "1"}'}, "en holds manifest.json, which this command did not"),
    ({"manifest.json": '{"name": "my-app", "icons": []}', "train.arrow": "ARROW1 of another program"}, "en holds man"),
    ({"../tables/en/mine.parquet": ""}, "tables/en holds mine.parquet, which this command did not write"),
])  # fmt: skip
def test_a_build_replaces_only_what_builds_write(release, tmp_path, held, message, monkeypatch):
    """Each is told before the release is read, and stays."""
    monkeypatch.setattr(cache, "read_tables", None)
    for name, text in held.items():
        path = tmp_path / "en" / name
        (tmp_path / "en").mkdir(exist_ok=True)
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    with pytest.raises(UserError, match=message):
        build(release, tmp_path / "en", **FEW)
    assert {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")} == before


def test_a_damaged_data_set_is_built_again(dataset, release, tmp_path):
    """As its errors advise. One of the manifest and the examples shows that a build wrote it."""
    for name in ("manifest.json", "train.arrow", "tokenizer.json"):
        for content in (b"{", b"", None):
            shutil.copytree(dataset, tmp_path / "en", dirs_exist_ok=True)
            (tmp_path / "en" / name).unlink() if content is None else (tmp_path / "en" / name).write_bytes(content)
            builds.choose_output(configs.Data(lang="en", out=str(tmp_path / "en")), ["en"])
    with pytest.raises(UserError, match="en is the input, which would be replaced"):
        builds.choose_output(configs.Data(lang="en", out=str(dataset), tokenizer=str(dataset)), ["en"])


def test_a_symbolic_link_to_a_data_set_stays(release, tmp_path):
    """Also one to a folder that is not there yet."""
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "en"
    link.symlink_to(tmp_path / "disk" / "english")
    for seed in range(3):
        build(release, link, seed=seed, **FEW)
        assert link.is_symlink() and datasets.read_manifest(link)["settings"]["seed"] == seed
        assert [f.name for f in (tmp_path / "disk").iterdir()] == ["english"]


def test_a_folder_whose_name_is_not_utf_8(release, tmp_path):
    out = tmp_path / os.fsdecode(b"donn\xe9es") / os.fsdecode(b"fran\xe7ais")
    few = [f"--{k}={v}" for k, v in (FEW | {"vocab_size": 300}).items()]
    argv = ["build", "--lang=en", f"--umls={release}", "--e3c=none", f"--out={out}", *few]
    run_command(data, *argv)
    p = command("data.py", *argv)
    assert p.returncode == 0 and "made from the same files" in p.stdout, p.stderr  # tables beside it are read again
    p = command("data.py", "show", out)
    assert p.returncode == 0 and "link prediction" in p.stdout, p.stderr


def build_from(config, release, out, *more):
    """A small build as `data.py build` does it, with a TOML file."""
    few = [f"--{k}={v}" for k, v in (FEW | {"vocab_size": 300, "seq_len": 64, "lang": "en"}).items()]
    argv = ["build", config, *few, f"--umls={release}", f"--e3c={release / 'E3C'}", f"--out={out}", *more]
    function, s = command_line.parse([*map(str, argv)], data.__doc__, data.COMMANDS)
    function(s)


def test_a_build_says_what_comes_next_and_what_it_replaces(release, tmp_path, monkeypatch, capsys):
    """A warm-up that the data do not reach, before any training; and runs on a data set, before it is replaced."""
    monkeypatch.chdir(tmp_path)
    config, out = tmp_path / "x.toml", Path("datasets") / "e n"
    config.write_text("[train]\nepochs = 2\nbatch_size = 10\nwarmup = 40\nout = 'elsewhere/b'\n")
    build_from(config, release, out)
    shown = capsys.readouterr().out
    n = sum(datasets.read_manifest(out)["counts"]["en"]["train"].values())
    warning = f"warning: the training of {config} would be refused with this data set:\n  warmup = 40 steps, but"
    assert f"{warning} the run has only {round(2 * n / 10)} (2 epochs of {n} examples); give a share" in shown
    assert shown.endswith(f"next:  python kgi.py {config} --data 'datasets/e n'\n") and "replaced" not in shown
    before = datasets.read_manifest(out)
    for run, manifest in (
        ("runs/a", before),
        ("elsewhere/b", before),
        ("runs/c", {"sha256": {}}),
        ("elsewhere/d", before),
    ):
        Path(run).mkdir(parents=True)
        datasets.write_run(run, out, manifest, {})
    Path("runs/broken").mkdir()
    Path("runs/broken/kgi.json").write_text("[")
    build_from(config, release, out)
    assert "replaced" not in capsys.readouterr().out  # by the same
    config.write_text("[train]\ndata = 'datasets/e n'\nout = 'elsewhere/b'\n")
    build_from(config, release, out, "--seed=1", "--semantic_types", "DISO", "CONC", "PROC", "ANAT")
    shown = capsys.readouterr().out
    first = "datasets/e n is replaced at the end of this build: semantic_types has changed; seed was 0, now 1\n"
    assert first in shown.split("samples drawn")[0] and "warning" not in shown
    assert "runs/a, elsewhere/b: trained on the data set that is there now; to keep it, choose another --out" in shown
    assert "runs/a, elsewhere/b: trained on what was in datasets/e n before; cannot resume" in shown
    assert shown.endswith(f"next:  python kgi.py {config}\n") and "elsewhere/d" not in shown


def test_a_run_remembers_its_data_set_and_fine_tuning(dataset, tmp_path, capsys):
    """Only the settings of the training are kept; a data set that was built again is used, and said to be another."""
    run, manifest = tmp_path / "run", datasets.read_manifest(dataset)
    run.mkdir()
    finetune = {"lr": 5e-4, "epochs": 3, "runs": 4, "data": "x", "out": "y"}
    datasets.write_run(run, dataset, manifest, finetune)
    assert datasets.read_run(run)["finetune"] == {"lr": 5e-4, "epochs": 3}
    assert datasets.data_of_run(run) == str(dataset) and datasets.data_of_run(tmp_path) == ""
    s = configs.Finetune(str(run), lr=1.0)
    s.given = {"lr"}
    datasets.take_settings_of_run(s)
    assert (s.lr, s.epochs, s.runs) == (1.0, 3, 1)
    out, err = capsys.readouterr()
    assert out == f"epochs = 3: from [finetune] of the config of {run}\n" and err == ""
    datasets.write_run(run, dataset, {"sha256": manifest["sha256"] | {"train.arrow": "0"}}, {})
    assert datasets.data_of_run(run) == str(dataset)
    assert f"{dataset}, the data set of {run}, was built again: what is held out" in capsys.readouterr().err
    for place, other, message in (
        (dataset, {"sha256": {"tokenizer.json": "0"}}, "was built again with another tokenizer\n"),
        (dataset, {"sha256": {}}, "was built again with another tokenizer\n"),
        (tmp_path / "moved", manifest, "(no manifest.json); build one with make data\n"),
    ):
        datasets.write_run(run, place, other, {})
        assert datasets.data_of_run(run) == "" and capsys.readouterr().err.endswith(message)
    for said, message in (
        ({"data": 3}, "no sha256 in it"),
        ({"data": "", "sha256": {}, "finetune": {"l": 1}}, "unknown"),
    ):
        (run / "kgi.json").write_text(json.dumps(said))
        with pytest.raises(UserError, match=f"kgi.json.*{message}"):
            datasets.read_run(run)
