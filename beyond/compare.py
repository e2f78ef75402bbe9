"""Test whether one way of pre-training scores better than another on a test set, with intervals and p-values.

    python -m beyond.compare results/mlm-s*/e3c vs results/four-s*/e3c                         NER: folders
    python -m beyond.compare results/mlm-s*/linking-x.json vs results/four-s*/linking-x.json   linking: files

The word `vs` stands between the ways, which are compared with the first. Each has one result or several, such as those
of several seeds. Its score is the mean over its runs: seeds of fine-tuning, or linking results.

* Test documents are resampled, or sentences where the corpus does not mark its documents.
* The 95 % interval is of the difference: percentiles over 1,000 bootstrap samples. Each holds the same documents for
  both ways and all of their runs.
* The p-value is of a two-sided paired permutation test (approximate randomisation). Were two ways equally good, their
  outputs on a document could change places. The test swaps them on each document with probability 1/2, in all runs at
  once, 10,000 times. The p-value is the share of the swaps with a difference at least as large as without any. The
  latter counts as one of them, so no p-value is below 0.0001.
* Seeds are not resampled. A small p-value says that these runs would differ on other documents, too. It does not say
  that runs from other seeds of pre-training would.
* No p-value is corrected for the number of comparisons.

Random numbers are seeded. Links are scored over all mentions, also of concepts that the dictionary lacks. If
each result has one pooling, and these differ, each is compared at its own. Results of different test sets or
dictionaries are refused.
"""

from configs import POOLINGS, UserError, argument, setting  # isort: split

from dataclasses import dataclass
from itertools import groupby, zip_longest
from pathlib import Path

import numpy as np

from finetune import paper_scores
from support.arrays import bootstrap, sum_groups
from support.corpora import CORPORA, read_corpus
from support.files import read_utf8
from support.forms import find_misfit
from support.programs import run_command
from support.results import SCORES, differing_settings, read_record
from support.scores import entity_counts

RESAMPLES = 1000  # bootstrap samples of documents for a confidence interval
SWAPS, BLOCK = 10_000, 1000  # of the permutation test, and how many of them are in memory at once
DATA = (  # settings of a signature that say which test set it is, in NER or in linking
    "corpus", "labels", "split", "ids", "expand_abbreviations", "train_mentions", "dictionary", "data", "lang", "umls",
    "data sha256", "dictionary sha256",
)  # fmt: skip
DIGESTS = {  # what a difference of them says
    "data sha256": "the documents or labels of the training or test split",
    "dictionary sha256": "the mentions or the names of the dictionary",
}


@dataclass
class Compare:
    """Compare the results of two or more ways of pre-training, with intervals and a paired test over documents."""

    results: list[str] = argument(
        "RESULTS", "results folders of finetune.py, or linking-*.json files; 'vs' between the ways", many=True
    )
    data: str = setting("", "folder of the corpus of NER, if it has moved since")


def compare(s):
    """Prints each score of each way beside that of the first, the difference, its interval and its p-value."""
    ways = [[*group] for is_way, group in groupby(s.results, lambda path: path != "vs") if is_way]
    if len(ways) < 2 or len(ways) <= s.results.count("vs"):
        raise UserError("give two ways or more, with 'vs' between them: RESULTS ... vs RESULTS ...")
    paths = [path for way in ways for path in way]
    check_given_once(paths)
    records = {path: read_result(path) for path in paths}
    check_same_data(records)
    is_ner = "runs" in records[paths[0]]
    if s.data and not is_ner:
        raise UserError("--data is for the corpus of NER, and results of linking need none; leave it out")
    groups, runs, title = tagged_runs(records, s.data) if is_ner else linked_runs(records)
    of_ways = [[run for path in way for run in runs[path]] for way in ways]
    scores = [name for name in of_ways[0][0] if all(name in run for way in of_ways for run in way)]
    if not groups or all(name.startswith("trigrams") for name in scores):  # which are the same for all checkpoints
        raise UserError("there is no score of vectors that all of these results have; give beyond.link one --pooling")
    print(title)
    print_other_settings([record["signature"] for record in records.values()])
    for i, (way, found) in enumerate(zip(ways, of_ways), 1):
        poolings = dict.fromkeys(pooling for path in way for pooling in poolings_of(records[path]))
        at = f", vectors at {' and '.join(poolings)}" * bool(poolings)
        print(f"  {i}: {' '.join(way)} ({len(found)} run{'s' * (len(found) > 1)}{at})")
    sums = [{name: np.array([sum_groups(groups, run[name]) for run in way]) for name in scores} for way in of_ways]
    width = max(map(len, scores))
    for i, way in enumerate(sums[1:], 2):
        print(f"\n  {'':<{width}}{1:>9}{i:>9}{f'{i} - 1':>9}   {'95 % interval':<18}p")
        for name in scores:
            first, other, low, high, p = compare_runs(sums[0][name], way[name])
            interval = f"[{low:+z.2f}, {high:+z.2f}]"  # z: no -0.00
            cells = f"{first:9.2f}{other:9.2f}{other - first:+z9.2f}   {interval:<18}{p:.4f}"
            print(f"  {name:<{width}}{cells}")
    print("\n  in per cent; 95 % interval of the difference; p of a paired permutation test; seeds are not resampled")


# ---------------------------------------------------------------- results


def rank_fault(value):
    """The form, as find_misfit has it, of a mention's rank; null where nothing was found."""
    fits = value is None or (type(value) in (int, float) and 1 <= value < 1e15)
    return "" if fits else f"is {ascii(value)[:20]}, which is no rank"


TAGGED = SCORES | {"signature": {"corpus": str, "labels": str, "data": str, "data sha256": str, str: None}}
LINKED = {"signature": {"corpus": str, "split": str, "dictionary sha256": str, str: None}, str: None}
RANKED = {"document_of_mention": [int], "ranks": {str: [rank_fault]}, str: None}
GIVE = "give results folders of finetune.py, or linking-*.json of beyond.link"


def result_file(path):
    """The file of a result, which may be given by its folder. Raises: UserError."""
    file = Path(path, "scores.json") if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise UserError(f"{file} not found; {GIVE}")
    return file


def check_given_once(paths):
    """Raises UserError if two paths lead to one result: its folder and its file, links, or other spellings."""
    given = {}
    for path in paths:
        status = result_file(path).stat()
        file = status.st_dev, status.st_ino
        if file in given:
            also = f", also as {given[file]}" * (given[file] != path)
            raise UserError(f"{path} is given twice{also}; a pattern such as mlm* may take in results of another way")
        given[file] = path


def read_result(path):
    """The record of a results folder of fine-tuning, or of a file of links. Raises: UserError."""
    file = result_file(path)
    try:
        record = read_record(file, {str: None})
    except (UserError, ValueError, TypeError, RecursionError) as e:
        reason = " ".join(str(e).removeprefix(f"{file}, ").split())[:200]
        raise UserError(f"{file} is no file of results, or a damaged one ({reason}); {GIVE}") from None
    if "runs" in record:
        form = TAGGED
    elif {"composite", "choices"} & record.keys():  # which no other file of results has
        form = LINKED | ({"choices": {str: RANKED}} if "choices" in record else RANKED)
    else:
        raise UserError(f"{file} holds neither scores of NER nor links; {GIVE}")
    if misfit := find_misfit(record, form):
        raise UserError(f"{file}: {misfit}; it is damaged or of an earlier version, so score again")
    return record


def choices_of(record):
    """{choice of languages: what beyond.link keeps of it}; a single choice is called ""."""
    return record["choices"] if "choices" in record else {"": record}


def poolings_of(record):
    """The poolings that a record has links of. The setting says none where a checkpoint's files name one."""
    choices = [] if "runs" in record else choices_of(record).values()
    return [pooling for pooling in POOLINGS if any(pooling in found["ranks"] for found in choices)]


def check_same_data(records):
    """Raises UserError unless all results are of the same test set, labels and dictionary. records: {path: record}."""
    (first_path, first), *others = records.items()
    exact = ["labels", "data sha256", "dictionary sha256"]  # the same data may lie elsewhere
    exact += ["corpus"] * ("runs" in first)  # there it is a name, which says how labels are scored
    for path, record in others:
        if ("runs" in record) != ("runs" in first):
            raise UserError(f"{first_path} and {path} cannot be compared: one is of NER, the other of linking")
        before, now = ({key: x["signature"].get(key, "") for key in DATA} for x in (first, record))
        if any(before[key] != now[key] for key in exact):
            shown = {k: f"{k} ({str(before[k]) or 'none'}, {str(now[k]) or 'none'})" for k in DATA} | DIGESTS
            differ = ", ".join(shown[k] for k in differing_settings(before, now))
            raise UserError(f"{first_path} and {path} cannot be compared, as they differ in {differ}")


def print_other_settings(signatures):
    """Names the settings that differ between results of the same data, as a difference may be due to them."""
    known = {*DATA, "checkpoint", "checkpoint sha256", "pooling"}  # the pooling is named beside each way
    for key in dict.fromkeys(key for signature in signatures for key in signature if key not in known):
        values = dict.fromkeys(str(signature.get(key, "")) or "none" for signature in signatures)
        if len(values) > 1:
            print(f"  note: {key} is not the same everywhere ({', '.join(values)})")


def tagged_runs(records, folder):
    """(the document of each test sequence, {path: its runs}, a title) of results of fine-tuning.

    A run is {score: (sequences, 2)}: the numerator and the denominator that each sequence adds to the score. The corpus
    is read again, as the predictions do not hold its documents, nor entities that labels cannot express.
    """
    signature = next(iter(records.values()))["signature"]
    name, folder = signature["corpus"], folder or signature["data"]
    documents, corpus = read_corpus(name, folder, signature["labels"])[0]["test"], CORPORA[name]
    runs = {}
    for path, record in records.items():
        runs[path] = []
        for scores in record["runs"]:
            file = Path(path if Path(path).is_dir() else Path(path).parent, f"predictions-{scores['seed']}.conll")
            if not file.exists():
                raise UserError(f"{file} not found; copy the whole results folder, or run finetune.py again")
            predictions = read_predictions(file, documents, folder)
            n_correct, n_predicted, n_gold = entity_counts(documents, predictions, corpus).sum(axis=1).T
            f1 = paper_scores(documents, predictions, corpus)[:, 2]
            entities = np.column_stack([2 * n_correct, n_predicted + n_gold])
            runs[path].append({"strict entity F1": entities, "paper's F1": np.column_stack([f1, np.ones(len(f1))])})
            found = [ratio(values.sum(axis=0)) for values in runs[path][-1].values()]
            if not np.allclose(found, [scores["entity"][2], scores["paper"][2]], rtol=0, atol=1e-6):
                raise UserError(f"{file} does not give the scores of scores.json; has {folder} changed?")
        if not runs[path]:
            raise UserError(f"{path} holds no seed yet")
    groups = [d.group or i for i, d in enumerate(documents)]
    unit = "documents" if documents[0].text is not None or documents[0].group else "sentences"
    return groups, runs, f"NER, {name} in {folder}: {len({*groups}):,} {unit}"


def read_predictions(path, documents, folder):
    """A list of labels for each document, from a file of write_predictions. Raises: UserError if it is of others."""
    rows = [row.rpartition("\t") for row in read_utf8(path).split("\n")[:-1]]
    wanted = [row for d in documents for row in (*map("\t".join, zip(d.tokens, d.labels)), "")]
    for i, (row, want) in enumerate(zip_longest(rows, wanted), 1):
        if not row or row[0] != want:
            advice = "give the corpus as it was scored (--data), or run finetune.py again"
            raise UserError(f"{path}, row {i} does not fit the test split of {folder}; {advice}")
    labels = (label for *_, label in rows)
    return [[next(labels) for _ in (*d.tokens, "")][:-1] for d in documents]  # a blank row is after each


def linked_runs(records):
    """(the document of each mention, {path: its run, in a list}, a title) of results of linking.

    A run is as in tagged_runs. Exact match is left out: it is the same for all checkpoints. Trigrams are too, but they
    are a baseline for the vectors. Where each result has one pooling, but not all the same, all are called "vectors".
    """
    poolings = [poolings_of(record) for record in records.values()]
    is_own = all(len(x) == 1 for x in poolings) and any(x != poolings[0] for x in poolings)
    runs, groups = {}, []
    for path, record in records.items():
        runs[path] = [{}]
        for choice, found in choices_of(record).items():
            groups = groups or found["document_of_mention"]
            if {*map(len, found["ranks"].values())} - {len(groups)} or found["document_of_mention"] != groups:
                raise UserError(f"{path}: its lists of ranks and documents are not of the same mentions; score again")
            for method, ranks in found["ranks"].items():
                rank = np.array([rank or np.inf for rank in ranks])
                label = method.replace(poolings_of(record)[0], "vectors") if is_own else method
                label += f", names in {choice}" * bool(choice)
                values = {"accuracy at 1": rank <= 1, "accuracy at 5": rank <= 5, "MRR": 1 / rank}
                if method != "exact match":
                    runs[path][0] |= {f"{label}: {x}": np.column_stack([y, rank > 0]) for x, y in values.items()}
    signature = record["signature"]
    size = f"{len(groups):,} mentions in {len({*groups}):,} documents"
    return groups, runs, f"linking, {signature['corpus']}, {signature['split']}: {size}"


# ---------------------------------------------------------------- statistics


def ratio(sums):
    """A score in per cent from (..., 2) sums of numerators and denominators; 0 where a denominator is 0."""
    return 100 * sums[..., 0] / np.maximum(sums[..., 1], 1)


def compare_runs(first, other):
    """(score of the first way, of the other, low and high end of the difference's 95 % interval, p-value).

    Args: first, other: (runs, documents, 2) numerators and denominators of a score.
    """
    n_runs, n_documents, _ = first.shape
    columns = np.concatenate([first, other]).transpose(1, 0, 2).reshape(n_documents, -1)
    samples = ratio(bootstrap(range(n_documents), columns, RESAMPLES).reshape(RESAMPLES, -1, 2))
    differences = samples[:, n_runs:].mean(axis=1) - samples[:, :n_runs].mean(axis=1)
    rng = np.random.default_rng(0)
    swaps = (rng.integers(2, size=(BLOCK, n_documents)) for _ in range(SWAPS // BLOCK))
    swapped = np.concatenate([swapped_differences(first, other, swap.astype(float)) for swap in swaps])
    means = [ratio(runs.sum(axis=1)).mean() for runs in (first, other)]
    n_as_large = np.count_nonzero(np.abs(swapped) >= abs(means[1] - means[0]) - 1e-9)  # sums are rounded
    return *means, *np.percentile(differences, [2.5, 97.5]), (1 + n_as_large) / (1 + SWAPS)


def swapped_differences(first, other, swap):
    """The differences (swaps,) of the scores of two ways whose outputs change places in some documents.

    The mean over all pairs of a run of the first and one of the other, so that neither their number nor their order
    matters. Args: first, other: as in compare_runs. swap: (swaps, documents), 1 where they change places, else 0.
    """
    from_first, from_other = (np.tensordot(swap, runs, (1, 1)) for runs in (first, other))  # (swaps, runs, 2)
    kept_first, kept_other = first.sum(axis=1) - from_first, other.sum(axis=1) - from_other
    new_first = ratio(kept_first[:, :, None] + from_other[:, None])  # (swaps, runs of first, runs of other)
    new_other = ratio(kept_other[:, None] + from_first[:, :, None])
    return (new_other - new_first).mean(axis=(1, 2))


COMMANDS = {"compare": (compare, Compare)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="compare")
