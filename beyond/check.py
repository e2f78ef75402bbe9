"""What a corpus holds, what labels cannot express, and its overlap with the documents of a data set.

    python -m beyond.check --corpus meddocan --data MEDDOCAN
    python -m beyond.check --corpus meddocan --data MEDDOCAN --dataset datasets/es

Labels cannot express entities that overlap, or that end within a token. So the best possible scores are printed too.
"""

from configs import setting  # isort: split

from collections import Counter
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

import data
from support import texts, tokenizers
from support.corpora import CORPORA, read_corpus
from support.datasets import read_tokenizer
from support.files import name_of, progress
from support.labels import count_entities, decode_entities
from support.programs import run_command
from support.reports import print_next
from support.scores import entity_counts, gold_entities, precision_recall_f1
from support.windows import count_split_entities, make_windows


@dataclass
class Check:
    """Count what a corpus holds, what labels cannot express, and its overlap with a data set."""

    corpus: str = setting("custom", "a name of 'finetune.py list'; custom: your own (CoNLL, brat, parquet)")
    data: str = setting("", "folder of the corpus")
    dataset: str = setting("", "also count the texts of the corpus that overlap with documents of this data set")
    labels: str = setting("", "column of tags, if the corpus is from the hub and has several")


def check(s):
    """What a corpus holds, what labels cannot express, and its overlap with a data set."""
    splits, issues = read_corpus(s.corpus, s.data, s.labels)
    corpus, overlaps = CORPORA[s.corpus], {}
    rows = count_corpus(corpus, splits, issues)
    if s.dataset:
        tokenizer = Tokenizer.from_str(read_tokenizer(s.dataset).decode())
        dataset = data.PretrainingDataset(s.dataset, "train", ["mlm"])
        if not corpus.pos:
            special = tokenizers.special_ids(tokenizer)
            windows = {k: make_windows(docs, tokenizer, special, dataset.seq_len) for k, docs in splits.items()}
            n_split = {split: count_split_entities(docs, windows[split]) for split, docs in splits.items()}
            rows[f"labelled, split across windows of {dataset.seq_len} tokens"] = n_split
        overlaps, comparable = find_contamination(splits, dataset, tokenizer)
        rows[f"of {texts.NGRAM_SIZE + texts.MIN_NGRAMS - 1} words or more"] = comparable
        rows[f"  of these, overlapping with training documents of {name_of(s.dataset)}"] = overlaps
    width = max(map(len, rows)) + 2
    print(f"{corpus.title}, {s.data}\n{'':<{width}}" + "".join(f"{split:>10}" for split in splits))
    for what, values in rows.items():
        print(f"{what:<{width}}" + "".join(f"{v:>10,}" if v != "-" else f"{v:>10}" for v in values.values()))
    if overlaps.get("test"):
        print("make data EXCLUDE=.., the folder or file of the test split, leaves them out of pre-training")
    finetune = "python finetune.py CHECKPOINT --corpus {} --data {}" + " --labels {}" * bool(s.labels)
    print_next((finetune, s.corpus, s.data, *[s.labels] * bool(s.labels)))


def count_corpus(corpus, splits, issues):
    """{what: {split: how many}} of sequences, tokens, entities and issues."""

    def each(count):
        return {split: count(documents) for split, documents in splits.items()}

    rows = {}
    if any(d.group for documents in splits.values() for d in documents):
        rows["documents"] = each(lambda documents: len({d.group for d in documents}))
    unit = "documents" if any(d.text is not None for d in splits["test"]) else "sentences"
    rows[unit] = each(len)
    rows["tokens"] = each(lambda documents: sum(len(d.tokens) for d in documents))
    if not corpus.pos:
        rows["entities"] = each(count_entities)
        rows["entities that are labelled"] = each(lambda docs: sum(len(decode_entities(d.labels)) for d in docs))
    kinds = each(lambda docs: Counter(kind for d in docs for kind, _ in (d.gold or gold_entities(d, corpus.pos))))
    rows |= {f"  {k}": {x: kinds[x][k] for x in splits} for k in sorted({k for c in kinds.values() for k in c})}
    rows |= {k: {x: issues[x][k] for x in splits} for k in sorted({k for c in issues.values() for k in +c})}
    if not corpus.pos:
        counts = each(lambda docs: entity_counts(docs, [d.labels for d in docs], corpus).sum(axis=(0, 1)))
        for i, what in enumerate(("precision", "recall")):  # of the gold labels against all that the corpus marks
            rows[f"best {what} that labels can have (%)"] = {
                split: round(100 * float(precision_recall_f1(*n)[i]), 2) if n[1 + i] else "-"
                for split, n in counts.items()
            }
    return rows


def find_contamination(splits, dataset, tokenizer):
    """Sequences of a corpus that overlap with the pre-training documents, and those long enough to tell.

    Both sides are compared as the tokenizer writes them. Returns: two dicts {split: how many}.
    """
    stored = zip(dataset.offsets[dataset.rows], dataset.offsets[dataset.rows + 1])
    training = tokenizer.decode_batch([dataset.ids[a:b].tolist() for a, b in stored])
    sequences = [d for documents in splits.values() for d in documents]
    tested = [d.text if d.text is not None else " ".join(d.tokens) for d in sequences]
    tested = [tokenizer.decode(e.ids) for e in tokenizer.encode_batch(tested, add_special_tokens=False)]
    comparable = np.array([len(texts.ngram_hashes(text)) >= texts.MIN_NGRAMS for text in tested])
    overlapping = np.zeros(len(tested), bool)
    for found in texts.find_overlaps(progress("documents of the data set", training), tested):
        overlapping[found] = True
    ends = np.cumsum([len(documents) for documents in splits.values()])[:-1]
    counts = ([int(part.sum()) for part in np.split(flags, ends)] for flags in (overlapping, comparable))
    return tuple(dict(zip(splits, n)) for n in counts)


COMMANDS = {"check": (check, Check)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="check")
