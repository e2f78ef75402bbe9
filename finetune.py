"""One-shot token classification on a checkpoint, of kgi.py or of any family that model.py reads (paper, section 4.2).

    python finetune.py list                                     the corpora, and what their folders must hold
    python finetune.py runs/kgi-fr --corpus e3c --data E3C-Corpus/preprocessed_data/clinical_entities/layer1/French
    python finetune.py runs/kgi-en --corpus ncbi-disease --data NCBI-disease --runs 4
    python finetune.py SapBERT-from-PubMedBERT-fulltext --data my-corpus             train and test in CoNLL or brat
    python finetune.py runs/kgi-fr --data my-corpus --untrained
    python finetune.py tables [--paper]                                              results/ as the paper's tables

"The model is given a single pass over the training data before being evaluated on the test set": batch size 4, learning
rate 2e-5, weight decay 0.01. Each of --runs seeds starts from the same checkpoint. There are two scores. The paper's
score averages precision, recall and F1 over the labels of each sequence, O included, and then over sequences. The
field's score is strict entity-level P/R/F1 against all entities of the corpus, on character spans if it has text. The
program writes scores.json, the predictions, one token per line, and the tagger of the best seed, as model/, to
results/<checkpoint>/<corpus>/.
"""

import configs  # isort: split

import copy
import time
from collections import Counter

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import model as models
from configs import UserError
from support import tokenizers
from support.arrays import concat_ranges
from support.corpora import (
    CORPORA,
    TABLE_5_NOTE,
    count_entities,
    read_corpus,
)  # fmt: skip
from support.datasets import take_settings_of_run
from support.files import (
    folder_lock,
    progress,
    run_command,
    write_json,
)  # fmt: skip
from support.hardware import autocast, choose_device
from support.reports import print_next, print_scores, print_single_label
from support.results import (
    check_results,
    describe_results,
    describe_windows,
    keep_best_tagger,
    read_earlier_runs,
    result_signature,
    write_predictions,
)  # fmt: skip
from support.scores import (
    entity_counts,
    entity_score,
    entity_types,
    f1_intervals,
    micro_scores,
    precision_recall_f1,
    type_scores,
)  # fmt: skip
from support.tables import write_tables
from support.windows import count_split_entities, labels_of, make_windows

F1_KINDS = {"paper": "paper", "entity": "entities", "macro": "mean over types"}  # scores of a seed, and how to say them
# ---------------------------------------------------------------- the one-shot protocol (section 4.2)


class TokenClassifier(nn.Module):
    """The pre-trained encoder, dropout, and a linear layer over the labels."""

    def __init__(self, encoder, n_labels):
        super().__init__()
        self.encoder = encoder
        self.classifier = nn.Linear(encoder.config.dim, n_labels)
        models.init_weights(self.classifier)

    def forward(self, ids, mask, word_index):
        """ids, mask (n, L); word_index (k,) in ids.ravel() -> (k, labels) logits of those words."""
        hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, word_index)
        return self.classifier(F.dropout(hidden, self.encoder.config.dropout, self.training))


def collate(windows, pad, device):
    """Windows -> (ids, mask, word_index) as TokenClassifier.forward takes them."""
    width = max(len(w.ids) for w in windows)
    ids = torch.tensor([w.ids + [pad] * (width - len(w.ids)) for w in windows])
    length = torch.tensor([len(w.ids) for w in windows])
    word_index = torch.tensor([i * width + p for i, w in enumerate(windows) for p in w.word_positions])
    return ids.to(device), (torch.arange(width) < length[:, None]).to(device), word_index.to(device)


def finetune_one_seed(s, seed, encoder, documents, windows, labels, pad, device, dtype):
    """A TokenClassifier on a copy of the encoder: `epochs` passes over the training windows in a seeded order.

    The learning rate is constant, since the paper names no schedule. A word in two windows is trained on twice.
    """
    torch.manual_seed(seed)
    encoder = models.Encoder(encoder.config) if s.untrained else copy.deepcopy(encoder)
    classifier = TokenClassifier(encoder, len(labels)).to(device).train()
    optimizer = torch.optim.AdamW(classifier.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
    index = {label: i for i, label in enumerate(labels)}
    for epoch in range(s.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(windows)).tolist()
        for i in progress(f"seed {seed}", range(0, len(order), s.batch_size)):
            batch = [windows[j] for j in order[i : i + s.batch_size]]
            gold = [index[label] for w in batch for label in labels_of(documents, w)]
            with autocast(device, dtype):
                logits = classifier(*collate(batch, pad, device))
            loss = F.cross_entropy(logits.float(), torch.tensor(gold, device=device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} after epoch {epoch + 1}; try a lower --lr or --precision fp32")
    return classifier.eval()


@torch.no_grad()
def predict(classifier, documents, windows, labels, pad, device, dtype):
    """A label for every word of every document, and probabilities.

    A word that is in several windows gets its label from the one in which it is farthest from an edge.

    Returns: two lists with an entry a document: a list of labels, and (words, 2) float32, the probability of that label
    and that of O, which is 0 if O is no label.
    """
    outside, found = [i for i, label in enumerate(labels) if label == "O"], [np.zeros((0, 3), np.float32)]
    by_length = sorted(windows, key=lambda w: len(w.ids))
    for i in progress("predicting", range(0, len(by_length), 64)):
        with autocast(device, dtype):
            logits = classifier(*collate(by_length[i : i + 64], pad, device))
        if not torch.isfinite(logits).all():
            raise UserError("the predictions are not finite; try a lower --lr or --precision fp32")
        highest, softmax = logits.argmax(-1, keepdim=True), logits.float().softmax(-1)
        columns = highest, softmax.gather(-1, highest), softmax[:, outside].sum(-1, keepdim=True)
        found.append(torch.cat(columns, -1).cpu().numpy())
    first_word = np.cumsum([0] + [len(d.tokens) for d in documents])
    start = np.array([first_word[w.document] + w.first_word for w in by_length], int)
    n_words = np.array([len(w.word_positions) for w in by_length], int)
    word = concat_ranges(start, n_words)
    from_start, from_end = word - np.repeat(start, n_words), np.repeat(start + n_words, n_words) - 1 - word
    # What is assigned to a word last stays: that of the middle, and of equals that of the first window.
    order = np.lexsort((-np.arange(len(word)), np.minimum(from_start, from_end)))
    best = np.zeros((first_word[-1], 3), np.float32)
    best[word[order]] = np.concatenate(found)[order]
    of_documents = np.split(best, first_word[1:-1])
    return [[labels[int(i)] for i in x[:, 0].tolist()] for x in of_documents], [x[:, 1:] for x in of_documents]


# ---------------------------------------------------------------- the two scores (section 4.2.1)


def sequence_scores(gold, predicted):
    """The paper's metric for one sequence: macro (P, R, F1) over the labels in gold or prediction.

    Section 4.2.1 calculates these "on each sequence in the test set" and averages "across all training batches", so
    that its mean depends on the batch size. Here every sequence weighs the same, and a sequence is a whole document,
    not a window. O counts as a label. A score is 0 where its denominator is 0 (scikit-learn's zero_division=0).
    """
    scores = []
    for label in sorted({*gold, *predicted}):  # in one order, so that sums round alike in every process
        n_correct = sum(g == p == label for g, p in zip(gold, predicted))
        scores.append(precision_recall_f1(n_correct, predicted.count(label), gold.count(label)))
    return np.mean(scores, axis=0)


def paper_scores(documents, predictions, corpus):
    """(documents, 3): sequence_scores of each; B- and I- are stripped where Table 5's number of classes has none."""

    def style(labels):
        return labels if corpus.bio else [t if t == "O" else t[2:] for t in labels]

    return np.array([sequence_scores(style(d.labels), style(p)) for d, p in zip(documents, predictions)])


def score(documents, predictions, corpus, constant="O"):
    """All scores of one classifier, in per cent.

    Args:
        documents: the test split. predictions: a label for each of its tokens. corpus: its row of CORPORA.
        constant: the label of the constant baseline, the most frequent one of the training split.

    Returns: {"paper": [P, R, F1], "entity": micro [P, R, F1] (of parts of speech: token accuracy thrice),
        "macro": [P, R, F1] over the types in gold or predictions, "labels": {type: [P, R, F1, number in gold]},
        "constant_baseline" and "constant_baseline_entity": paper and entity F1 of always predicting `constant`,
        "interval": {"paper" and "entity": 95 % bootstrap confidence interval of the F1}}.
    """
    paper, counts = paper_scores(documents, predictions, corpus), entity_counts(documents, predictions, corpus)
    types = type_scores(entity_types(documents, predictions, corpus), counts)
    constants = [[constant] * len(p) for p in predictions]
    return {
        "paper": (100 * paper.mean(axis=0)).tolist(),
        "entity": micro_scores(counts),
        "macro": np.mean([x[:3] for x in types.values()] or [[0.0] * 3], axis=0).tolist(),
        "labels": types,
        "constant_baseline": 100 * float(np.mean(paper_scores(documents, constants, corpus)[:, 2])),
        "constant_baseline_entity": micro_scores(entity_counts(documents, constants, corpus))[2],
        "interval": f1_intervals(documents, paper[:, 2], counts),
    }


# ---------------------------------------------------------------- a run, and its results


def run(s):
    """Fine-tunes a checkpoint once a seed; scores and predictions are printed and written."""
    if s.precision == "fp16":
        raise UserError("precision = 'fp16': fine-tuning has no loss scaler; give auto, bf16 or fp32")
    take_settings_of_run(s)
    device, dtype = choose_machine(s.device, s.precision)
    splits, issues = read_corpus(s.corpus, s.data)
    corpus, train, test = CORPORA[s.corpus], splits["train"], splits["test"]
    out, record = describe_results(s, corpus)
    check_results(s, out)
    encoder = models.load(s.checkpoint, heads=False).encoder
    max_len = min(s.max_len or encoder.config.max_positions, encoder.config.max_positions)
    if max_len < 8:
        raise UserError(f"max_len = {max_len}: windows of fewer than 8 tokens are not worth reading")
    tokenizer = tokenizers.load(s.checkpoint, max_entries=encoder.config.vocab_size)
    special = tokenizers.special_ids(tokenizer)
    frequency = Counter(label for d in train for label in d.labels)
    # With B- and I- always, or touching entities would merge; the paper's score strips them where its classes have
    # none.
    labels = sorted(frequency, key=lambda t: (t != "O", t[2:], t))
    windows = {split: make_windows(documents, tokenizer, special, max_len) for split, documents in splits.items()}
    print_corpus(s, corpus, splits, issues, windows["train"], windows["test"], max_len, labels)

    record["signature"] = result_signature(s, encoder, tokenizer, max_len, train, test)
    constant, single_label = frequency.most_common(1)[0][0], {}
    with folder_lock(out, "another process writes results into it; wait for it, or choose another --out"):
        runs = read_earlier_runs(out, record["signature"], range(s.seed, s.seed + s.runs))
        for seed in range(s.seed, s.seed + s.runs):
            began = time.monotonic()
            machine = special["pad"], device, dtype
            classifier = finetune_one_seed(s, seed, encoder, train, windows["train"], labels, *machine)
            predictions, _ = predict(classifier, test, windows["test"], labels, *machine)
            runs[seed] = {"seed": seed} | score(test, predictions, corpus, constant)
            if "dev" in splits:
                found, _ = predict(classifier, splits["dev"], windows["dev"], labels, *machine)
                runs[seed]["dev"] = {"entity": entity_score(splits["dev"], found, corpus)}
            if len(predicted := {label for p in predictions for label in p}) == 1:
                single_label[seed] = predicted.pop()
            details = describe_windows(s, max_len, test, corpus)
            record["tagger"] = keep_best_tagger(out / "model", runs, seed, classifier, tokenizer, labels, details)
            write_predictions(out / f"predictions-{seed}.conll", test, predictions)
            record["runs"] = [runs[k] for k in sorted(runs)]
            write_json(out / "scores.json", record)
            f1 = [f"{runs[seed][kind][2]:.2f} ({what})" for kind, what in F1_KINDS.items()]
            print(f"seed {seed}: F1 {', '.join(f1)} in {time.monotonic() - began:.0f} s", flush=True)
    unit = "documents" if test[0].text is not None or test[0].group else "sentences"
    print_scores(record["runs"], constant, unit, corpus.pos)
    print_single_label(single_label, s, encoder.config.dim)
    print(f"\n{out}\ntagger: {out / 'model'}, seed {record['tagger']['seed']} ({record['tagger']['chosen']})")
    of_all = [("python finetune.py tables",)] if not s.out else []  # elsewhere nobody knows what --results to give
    print_next(("python -m beyond.tag {} < notes.txt > entities.jsonl", out), *of_all)


def choose_machine(device, precision):
    """(device, autocast dtype or None); float32 where auto would be fp16, on a GPU without bf16."""
    device, dtype = choose_device(device, precision)
    return device, None if dtype == torch.float16 else dtype


def print_corpus(s, corpus, splits, issues, train_windows, test_windows, max_len, labels):
    """What is trained and tested on, and what of it cannot be learnt or found."""
    train, test = splits["train"], splits["test"]
    entities = "" if corpus.pos else f"{count_entities(train):,} + {count_entities(test):,} entities, "
    print(
        f"{s.corpus}: {len(train):,} + {len(test):,} sequences, {entities}{len(train_windows):,} + "
        f"{len(test_windows):,} windows of up to {max_len} tokens, {len(labels)} labels",
        flush=True,
    )
    for split in ("train", "test"):
        for what, n in sorted((+issues[split]).items()):
            print(f"{split}: {n:,} {what}")
    if not corpus.pos and (n_split := count_split_entities(test, test_windows)):
        print(f"test: {n_split:,} entities are split across windows; they count as missed unless joined correctly")
    if unseen := sorted({t for d in test for t in d.labels} - set(labels)):
        print(f"labels {', '.join(unseen)} never occur in training; their entities count as missed")


# ---------------------------------------------------------------- list and tables


def list_corpora(s):
    """A line of what and where, and a line of what the folder must hold, for each corpus."""
    row = "{:<16}{:<16}{:<16}{:<36}{}"
    print(row.format("--corpus", "in the paper", "language", "Table 5: train, dev, test, classes", "licence"))
    for name, c in CORPORA.items():
        print(row.format(name, c.title, c.language, c.table5 or "-", c.licence or "-"))
        print(f"    --data: a folder that holds {c.holds}")
    print(TABLE_5_NOTE)
    print_next(("python -m beyond.check --corpus CORPUS --data FOLDER",))


def tables(s):
    """Writes all results as the paper's tables."""
    write_tables(s.results, s.paper)


COMMANDS = {
    "run": (run, configs.Finetune),
    "list": (list_corpora, configs.ListCorpora),
    "tables": (tables, configs.Tables),
}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="run")
