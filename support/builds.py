"""What a build reads besides the release, where it writes, and what it says."""

import hashlib
import os
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from configs import UserError
from support import archives, corpora, rrf, texts, tokenizers
from support.arrays import hash_uniform
from support.datasets import FILES, VERSION, read_manifest, read_run
from support.files import check_output, name_of, progress

MIN_DOCUMENT = 5  # tokens; a shorter document holds nothing to learn from


def start_log():
    """A function that prints a line with the seconds since now."""
    began = time.monotonic()
    return lambda text: print(f"[{time.monotonic() - began:6.1f} s] {text}", flush=True)


def print_replacement(s, out, before, log):
    """Says which settings of the data set in `out` a build changes, and which runs were trained on it, in time.

    Args: s: a configs.Data. before: the manifest of the data set that is there, or None.
    """
    old = {"relations": "paper"} | before["settings"] if before else {}  # data sets of before do not say
    settings = manifest_settings(s)
    changes = [key for key, value in settings.items() if old.get(key, value) != value]
    said = [f"{key} was {old[key]}, now {settings[key]}" for key in changes]
    said = [text if len(text) < 80 else f"{key} has changed" for text, key in zip(said, changes)]
    if said:
        log(f"{out} is replaced at the end of this build: {'; '.join(said)}")
    if said and (runs := runs_on(s, before)):
        log(f"{', '.join(runs)}: trained on the data set that is there now; to keep it, choose another --out")


def print_replaced(s, out, before, manifest, log):
    """Says which runs were trained on a data set (before: its manifest) that another has replaced (manifest)."""
    if before and before["sha256"] != manifest["sha256"] and (runs := runs_on(s, before)):
        log(f"{', '.join(runs)}: trained on what was in {out} before; cannot resume, and held-out pairs have changed")


def runs_on(s, manifest):
    """The folders under runs/, and the one that the config of a build names, of runs on a data set."""
    named, found = s.tables.get("train", {}).get("out"), {}
    for place in [*sorted(Path("runs").glob("*")), *([Path(named)] if named else [])]:
        with suppress(UserError):
            if read_run(place).get("sha256") == manifest["sha256"]:
                found[str(place)] = None
    return [*found]


WHAT_TO_GET = """
  UMLS: a release with META/MRCONSO.RRF, MRREL.RRF and MRSTY.RRF; free licence and download from the US National
        Library of Medicine, https://uts.nlm.nih.gov (the paper: 2022AB, "Metathesaurus Full Subset"); a folder, or
        the zip as it is.
  E3C:  clinical text, CC BY-NC; git clone https://github.com/hltfbk/E3C-Corpus (the paper: version 2.0.0).
  Put or link them at ./umls and ./E3C-Corpus, or give: make data LANG=fr UMLS=/path/2022AB E3C=/path/E3C-Corpus
  (E3C=none builds without documents, ARGS="--text FILE" with others).
  'make demo' needs neither: it shows all of it on synthetic data."""


def find_sources(s, new_tokens):
    """(folder or zip of UMLS, folder of E3C or None) from settings, environment or defaults.

    Raises: UserError, also if the tokenizer cannot be read, or cannot take new_tokens.
    """
    umls_folder = s.umls or os.environ.get("UMLS") or "umls"
    e3c_folder = s.e3c or os.environ.get("E3C") or "E3C-Corpus"
    only_text = s.text and e3c_folder == "E3C-Corpus" and not Path(e3c_folder).is_dir()  # nobody asked for E3C
    e3c_folder = None if e3c_folder == "none" or only_text else e3c_folder
    if not Path(umls_folder).exists():
        raise UserError(f"no UMLS release in {umls_folder}\n{WHAT_TO_GET}")
    if e3c_folder and not Path(e3c_folder).is_dir():
        raise UserError(f"no E3C corpus in {e3c_folder}\n{WHAT_TO_GET}")
    if s.tokenizer:
        tokenizers.load(s.tokenizer, new_tokens)
    return umls_folder, e3c_folder


def choose_output(s, langs):
    """(name of the data set, its folder, the manifest of one that it replaces or None).

    Raises: UserError if something else is in the folder, or nothing can be written there.
    """
    name = "multi" if s.lang.lower() == "multi" else "-".join(langs)
    name += f"-{s.relations}" * (s.relations != "paper")
    if s.tokenizer:  # not in the place of the data set whose tokenizer is trained
        name += f"-{name_of(s.tokenizer)}"
    out = Path(s.out or Path("datasets", name))
    if s.text and len(langs) > 1 and "{lang}" not in s.text:
        raise UserError(f"text = '{s.text}': with several languages, write {{lang}} in it, as in texts/{{lang}}.txt")
    if s.sources and s.exclude_sources:
        raise UserError("sources and exclude_sources: give one of them; sources already leaves out all others")
    if s.relations == "paper" and "n_rela" in s.given:
        raise UserError("n_rela is for finer relations; add --relations rela, or leave it out")
    check_output(out, FILES, *[s.tokenizer] * bool(s.tokenizer))
    before = None
    with suppress(UserError):  # there is none, or it is damaged
        before = read_manifest(out)
    if before and before["languages"] != langs:
        there = " ".join(before["languages"])
        raise UserError(f"{out} holds a data set of language {there}, not {s.lang}; choose another --out")
    if not os.access(next(p for p in Path(os.path.realpath(out)).parents if p.exists()), os.W_OK):
        raise UserError(f"{out}: the folder cannot be written to; choose another --out")
    return name, out, before


# ---------------------------------------------------------------- documents


def read_documents(s, langs, e3c_folder, skipped, log):
    """({language: {split: texts}}, {language: Counter of issues}): E3C's documents and those of --text, split.

    Texts that overlap with the evaluation corpora of --exclude are left out.
    """
    excluded = [text for place in s.exclude.split(":") if place for text in corpora.read_texts(place)]
    documents, issues = {}, {}
    for lang in langs:
        found, issues[lang] = texts.read_e3c(e3c_folder, lang, s.e3c_layers) if e3c_folder else ([], Counter())
        if s.text:
            more, more_issues = texts.read_text(s.text.replace("{lang}", lang), skipped)
            found, issues[lang] = found + more, issues[lang] + more_issues
        if excluded:
            overlaps = texts.find_overlaps(progress(f"{lang}: texts to exclude", found), excluded)
            kept = [text for text, same in zip(found, overlaps) if not len(same)]
            issues[lang]["excluded texts"], found = len(found) - len(kept), kept
        documents[lang] = split_documents(found, s.seed, s.valid_fraction, s.keep_duplicates)
        n = sum(map(len, documents[lang].values()))
        issues[lang]["repeated texts"] = len(found) - n
        shown = [f"{k:,} {what}" for what, k in sorted(issues[lang].items()) if k or what == "excluded texts"]
        log(f"{lang}: {n:,} documents" + (f" ({', '.join(shown)})" if shown else ""))
    return documents, issues


def split_documents(documents, seed, valid_fraction, keep_duplicates):
    """Texts of documents -> {split: texts}, in an order that depends on the texts alone.

    A text counts once unless keep_duplicates; its copies are in one split.
    """
    documents = documents if keep_duplicates else set(documents)
    digests = [(int.from_bytes(hashlib.blake2b(t.encode(), digest_size=8).digest(), "little"), t) for t in documents]
    digests.sort()
    valid = hash_uniform(seed, np.array([digest for digest, _ in digests], np.uint64)) < valid_fraction
    return {split: [t for (_, t), v in zip(digests, valid) if v == (split == "valid")] for split in ("train", "valid")}


def used_strings(graph, samples):
    """{term: string} of the terms that samples use; no other is decoded. samples: {split: {task: data.Sample}}."""
    used = np.zeros(len(graph.terms), bool)
    for sample in (x for split_samples in samples.values() for x in split_samples.values()):
        used[sample.terms[sample.terms >= 0]] = True
    terms = np.flatnonzero(used)
    return dict(zip(terms.tolist(), graph.terms.take(pa.array(terms)).to_pylist()))


# ---------------------------------------------------------------- what was built


def report_left_out(release, skipped, log):
    """What was left out of the files of a release and of --text, for the manifest; a line on each kind."""
    malformed = release.skipped | (skipped or {})
    for what, rows in (("malformed or missing", malformed), ("of NCI Metathesaurus concepts (CL...)", release.nci)):
        if rows:
            log(f"rows {what} left out: " + ", ".join(f"{file} {n:,}" for file, n in rows.items()))
    return {"malformed_rows_left_out": malformed, "nci_rows_left_out": release.nci}


def count_language(lang, graph, writers, names, issues, log):
    """The counts of a language (lang: its index) for the manifest, and a line on each split. names: of the tasks."""
    counts = {split: writer.counts(lang, names) for split, writer in writers.items()}
    for split in writers:
        log(f"{graph.lang} {split}: {sum(counts[split].values()):,} examples")
    if issues["short texts"]:
        log(f"{graph.lang}: {issues['short texts']:,} documents of less than {MIN_DOCUMENT} tokens left out")
    counts |= {"terms": len(graph.terms), "cuis": len(graph.cui), "relations": len(graph.h), "issues": dict(issues)}
    counts["sources"] = graph.sources
    return counts | {"megabytes": round(writers["train"].n_bytes(lang) / 1e6, 1)}


def compare_shares(graph, samples, tasks):
    """Shares of semantic groups (heads and tails together) and relations in the graph and in each sample.

    The report also compares each sample with its frame, the triples that it is drawn from. It gives the pair (group of
    h, group of t) whose share differs most. Of more relations than the paper's seven, those without triples are left
    out.

    Args: graph: a data.Graph. samples: {task: data.Sample}. tasks: data.TASKS.
    """
    n, groups, columns = len(graph.groups), graph.groups, count_samples(graph, samples, tasks)
    share = {title: drawn / max(1, drawn.sum()) for title, (drawn, _) in columns.items()}
    by_pair = {title: x.sum(1).reshape(n, n) for title, x in share.items()}
    by_group = {title: (x.sum(0) + x.sum(1)) / 2 for title, x in by_pair.items()}
    out = {"columns": list(columns), "groups": {}, "relations": {}, "largest_deviation": {}}
    for k in np.flatnonzero(by_group["graph"]).tolist():
        out["groups"][groups[k]] = [round(float(x[k]), 6) for x in by_group.values()]
    for k, relation in enumerate(graph.relations):
        if len(graph.relations) <= 7 or any(x[:, k].any() for x in share.values()):
            out["relations"][relation] = [round(float(x[:, k].sum()), 6) for x in share.values()]
    for title, (drawn, frame) in columns.items():
        difference = np.abs(share[title].sum(1) - frame.sum(1) / max(1, frame.sum())) * bool(drawn.sum())
        k = int(difference.argmax())
        out["largest_deviation"][title] = [round(float(difference[k]), 6), f"{groups[k // n]} {groups[k % n]}"]
    return out


def count_samples(graph, samples, tasks):
    """{title: (counts of a sample, counts of its frame)}, each (pairs of groups, relations).

    Triple classification has a column for each kind of triple. Paths have no synonyms.
    """
    counts, columns = graph.counts, {"graph": (graph.counts, graph.counts)}
    is_mixed = graph.joins_groups[:, None]
    frames = {"corrupted entities": counts * is_mixed, "corrupted relation": counts * ~is_mixed}
    frames["paths"] = counts * (np.arange(len(graph.relations)) != graph.synonymy)
    for task, sample in samples.items():
        titles = {"tc": ("true", "corrupted entities", "corrupted relation"), "lp": ("paths",)}
        for kind, title in enumerate(titles.get(tasks[task].name, (tasks[task].title,))):
            h, r, t = (x[np.repeat(sample.kind, (sample.relations >= 0).sum(1)) == kind] for x in sample.triples())
            columns[title] = graph.count(h, r, t), frames.get(title, counts)
    return columns


def make_manifest(s, name, langs, umls_folder, tokenizer, special, counts):
    """What a data set was built from and holds: manifest.json, but for the hashes. Raises: UserError if it is empty."""
    for split in ("train", "valid"):
        if not any(n for c in counts.values() for n in c[split].values()):
            advice = "use a larger release, sizes above 0 or another --valid_fraction"
            raise UserError(f"the {split} split would be empty; {advice}")
    parts = [part for table in rrf.TABLE_FILES for part in rrf.find_rrf(umls_folder, table)]
    return {
        "name": name, "languages": langs, "version": VERSION, "settings": manifest_settings(s),
        "special": special, "vocab_size": tokenizers.vocab_size(tokenizer),
        "source_bytes": {part.name: part.n_bytes for part in parts}, "counts": counts,
    } | archives.describe_release(umls_folder)  # fmt: skip


def manifest_settings(s):
    """The settings of a build but for the places of files."""
    places = ("umls", "e3c", "text", "exclude", "out", "tokenizer", "semgroups")
    return {k: v for k, v in asdict(s).items() if k not in places}
