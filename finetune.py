"""One-shot token classification on a checkpoint, of kgi.py or of any family that model.py reads (paper, section 4.2).

    python finetune.py list                                     the corpora, and what their folders must hold
    python finetune.py runs/kgi-fr --corpus e3c --data E3C-Corpus/preprocessed_data/clinical_entities/layer1/French
    python finetune.py runs/kgi-en --corpus ncbi-disease --data NCBI-disease --runs 4
    python finetune.py SapBERT-from-PubMedBERT-fulltext --data my-corpus             train and test in CoNLL or brat
    python finetune.py runs/kgi-fr --data my-corpus --untrained
    python finetune.py tables [--paper]                                              results/ as the paper's tables

"The model is given a single pass over the training data before being evaluated on the test set": batch size 4, learning
rate 2e-5, weight decay 0.01. Each of --runs seeds starts from the same checkpoint. There are two scores. The paper's
score averages precision, recall and F1 over the labels of each sequence (ours: O is one of them), then over sequences.
The field's score is strict entity-level P/R/F1 against all entities of the corpus, on character spans if it has text.
The program writes scores.json, the predictions, one token per line, and the tagger of the best seed, as model/, to
results/<checkpoint>/<corpus>/.
"""

import configs  # isort: split

import copy
import time
from collections import Counter
from typing import NamedTuple

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from tokenizers import Tokenizer

import model as models
from configs import UserError
from support import modernbert, taggers, tokenizers
from support.corpora import CORPORA, Corpus, read_corpus
from support.datasets import take_settings_of_run
from support.files import folder_lock, progress, write_json
from support.hardware import autocast, choose_device
from support.programs import run_command
from support.reports import print_after_finetuning
from support.results import (
    check_results,
    describe_results,
    describe_windows,
    keep_best_tagger,
    read_earlier_scores,
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
from support.tables import print_advice, print_corpora, print_corpus, print_scores, write_tables
from support.windows import MAX_WINDOW, central_words, labels_of, make_windows

F1_KINDS = {"paper": "paper", "entity": "entities", "macro": "mean over types"}  # scores of a seed, and how to say them


class Setup(NamedTuple):
    """All that the seeds of a command share: the corpus, cut into windows, and the checkpoint they start from."""

    corpus: Corpus
    splits: dict  # {split: Documents}
    windows: dict  # {split: Windows}
    labels: list  # those of the training split
    constant: str  # the most frequent of them
    encoder: models.Encoder
    head: dict  # {name: tensor} of what ModernBERT's taggers have before the classifier, as pre-trained
    tokenizer: Tokenizer
    pad: int  # token id
    max_len: int  # tokens of a window
    device: torch.device
    dtype: torch.dtype | None  # of autocast, None for float32


# ---------------------------------------------------------------- the one-shot protocol (section 4.2)


class TokenClassifier(nn.Module):
    """The pre-trained encoder, in ModernBERT its prediction head, dropout, and a linear layer over the labels."""

    def __init__(self, encoder, labels, pad, device, dtype):
        super().__init__()
        self.labels, self.pad, self.device, self.dtype = labels, pad, device, dtype
        self.encoder = encoder
        self.head = modernbert.TaggerHead(encoder) if encoder.config.family == "modernbert" else nn.Identity()
        self.classifier = nn.Linear(encoder.config.dim, len(labels))
        encoder.init_head(self.classifier)
        self.to(device)

    def forward(self, windows):
        """Windows -> (words, labels) logits of their words, each at its first token."""
        ids, mask, word_index = self.collate(windows)
        with autocast(self.device, self.dtype):
            hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, word_index)
            return self.classifier(F.dropout(self.head(hidden), self.encoder.config.dropout, self.training))

    def collate(self, windows):
        """Windows -> (n, L) ids, (n, L) mask, and (words,) indices into ids.ravel()."""
        width = max(len(w.ids) for w in windows)
        ids = torch.tensor([w.ids + [self.pad] * (width - len(w.ids)) for w in windows])
        length = torch.tensor([len(w.ids) for w in windows])
        word_index = torch.tensor([i * width + p for i, w in enumerate(windows) for p in w.word_positions])
        mask = torch.arange(width) < length[:, None]
        return ids.to(self.device), mask.to(self.device), word_index.to(self.device)


def finetune_one_seed(s, seed, setup):
    """A TokenClassifier on a copy of the encoder: `epochs` passes over the training windows in a seeded order.

    The learning rate is constant, since the paper names no schedule. A word in two windows is trained on twice.
    """
    torch.manual_seed(seed)
    encoder = models.new_encoder(setup.encoder.config) if s.untrained else copy.deepcopy(setup.encoder)
    classifier = TokenClassifier(encoder, setup.labels, setup.pad, setup.device, setup.dtype).train()
    if not s.untrained:
        classifier.load_state_dict(classifier.state_dict() | setup.head)
    optimizer = torch.optim.AdamW(classifier.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
    documents, windows = setup.splits["train"], setup.windows["train"]
    index = {label: i for i, label in enumerate(setup.labels)}
    for epoch in range(s.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(windows)).tolist()
        for i in progress(f"seed {seed}", range(0, len(order), s.batch_size)):
            batch = [windows[j] for j in order[i : i + s.batch_size]]
            gold = [index[label] for window in batch for label in labels_of(documents, window)]
            loss = F.cross_entropy(classifier(batch).float(), torch.tensor(gold, device=setup.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} after epoch {epoch + 1}; try a lower --lr or --precision fp32")
    return classifier.eval()


@torch.no_grad()
def predict(classifier, documents, windows):
    """Predicts a label for every word: that of the highest logit. Returns: a list of labels for each document."""
    best = word_scores(classifier, documents, windows, lambda logits: logits.argmax(-1, keepdim=True))
    return [[classifier.labels[i] for i in x[:, 0].tolist()] for x in best]


@torch.no_grad()
def word_scores(classifier, documents, windows, function):
    """function(logits (words, labels)) -> (words, k) of every word, split into one array for each document.

    A word that is in several windows gets its scores from the one in which it is farthest from an edge.
    """
    by_length = sorted(windows, key=lambda w: len(w.ids))
    at_once = 64 if classifier.device.type == "cuda" else 16  # in the cache of a CPU
    found = [function(torch.zeros(0, len(classifier.labels))).numpy()]  # there may be no window
    for i in progress("predicting", range(0, len(by_length), at_once)):
        logits = classifier(by_length[i : i + at_once])
        if not torch.isfinite(logits).all():
            raise UserError("the predictions are not finite; try a lower --lr or --precision fp32")
        found.append(function(logits).cpu().numpy())
    central = np.concatenate(found)[central_words(documents, by_length)]
    return np.split(central, np.cumsum([len(d.tokens) for d in documents])[:-1])


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
    """(documents, 3): sequence_scores of each. Where Table 5 counts types (bio is false), B- and I- are stripped."""

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


# ---------------------------------------------------------------- a run


def finetune_seeds(s):
    """Fine-tunes a checkpoint once a seed; scores, predictions and the best tagger are written."""
    if s.precision == "fp16":
        raise UserError("precision = 'fp16': fine-tuning has no loss scaler; give auto, bf16 or fp32")
    take_settings_of_run(s)
    device, dtype = choose_machine(s.device, s.precision)
    splits, issues = read_corpus(s.corpus, s.data, s.labels)
    corpus, test = CORPORA[s.corpus], splits["test"]
    out, record = describe_results(s, corpus)
    check_results(s, out)
    setup = set_up(s, splits, device, dtype)
    print_corpus(s, setup, issues)

    record["signature"] = result_signature(s, setup)
    details = describe_windows(s, setup.max_len, test, corpus)
    seeds, predicted_labels = range(s.seed, s.seed + s.runs), {}
    with folder_lock(out, "another process writes results into it; wait for it, or choose another --out"):
        scores = read_earlier_scores(out, record["signature"], seeds)
        for seed in seeds:
            began = time.monotonic()
            classifier = finetune_one_seed(s, seed, setup)
            scores[seed], predictions = evaluate(classifier, seed, setup)
            predicted_labels[seed] = {label for p in predictions for label in p}
            record["tagger"] = keep_best_tagger(out / "model", scores, seed, classifier, setup.tokenizer, details)
            write_predictions(out / f"predictions-{seed}.conll", test, predictions)
            record["runs"] = [scores[k] for k in sorted(scores)]
            write_json(out / "scores.json", record)
            f1 = [f"{scores[seed][kind][2]:.2f} ({what})" for kind, what in F1_KINDS.items()]
            print(f"seed {seed}: F1 {', '.join(f1)} in {time.monotonic() - began:.0f} s", flush=True)
    unit = "documents" if test[0].text is not None or test[0].group else "sentences"
    print_scores(record["runs"], setup.constant, unit, corpus.pos)
    print_advice(predicted_labels, scores, s, setup.encoder.config.dim)
    print(f"\n{out}\ntagger: {out / 'model'}, seed {record['tagger']['seed']} ({record['tagger']['chosen']})")
    print_after_finetuning(s, out)


def choose_machine(device, precision):
    """(device, autocast dtype or None); float32 where auto would be fp16, on a GPU without bf16."""
    device, dtype = choose_device(device, precision)
    return device, None if dtype == torch.float16 else dtype


def set_up(s, splits, device, dtype):
    """The Setup of a checkpoint and the splits of a corpus, which are cut into windows that fit the encoder."""
    encoder = models.load(s.checkpoint, encoder_only=True).encoder
    max_len = min(s.max_len or MAX_WINDOW, encoder.config.max_positions)
    if max_len < 8:
        raise UserError(f"max_len = {max_len}: windows of fewer than 8 tokens are not worth reading")
    tokenizer = tokenizers.load(s.checkpoint, max_entries=encoder.config.vocab_size)
    special = tokenizers.special_ids(tokenizer)
    frequency = Counter(label for d in splits["train"] for label in d.labels)
    # Labels of entities keep B- and I-, or touching entities would merge; paper_scores strips them where the paper's
    # classes have none.
    labels = sorted(frequency, key=lambda t: (t != "O", t[2:], t))
    windows = {split: make_windows(documents, tokenizer, special, max_len) for split, documents in splits.items()}
    corpus, constant = CORPORA[s.corpus], frequency.most_common(1)[0][0]
    head, pad = taggers.read_head(s.checkpoint, encoder.config), special["pad"]
    return Setup(corpus, splits, windows, labels, constant, encoder, head, tokenizer, pad, max_len, device, dtype)


def evaluate(classifier, seed, setup):
    """(the scores of a seed, its predictions for the test split). The scores have "dev" if there is a dev split."""
    test = setup.splits["test"]
    predictions = predict(classifier, test, setup.windows["test"])
    scores = {"seed": seed} | score(test, predictions, setup.corpus, setup.constant)
    if "dev" in setup.splits:
        dev_predictions = predict(classifier, setup.splits["dev"], setup.windows["dev"])
        scores["dev"] = {"entity": entity_score(setup.splits["dev"], dev_predictions, setup.corpus)}
    return scores, predictions


COMMANDS = {
    "run": (finetune_seeds, configs.Finetune),
    "list": (lambda _: print_corpora(), configs.ListCorpora),
    "tables": (lambda s: write_tables(s.results, s.paper), configs.Tables),
}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="run")
