"""One-shot token classification on a checkpoint, of kgi.py or of any family that model.py reads (paper, section 4.2).

    python finetune.py runs/kgi-fr --corpus e3c --data E3C-Corpus/preprocessed_data/clinical_entities/layer1/French
    python finetune.py runs/kgi-en --corpus ncbi-disease --data NCBI-disease --runs 4
    python finetune.py SapBERT-from-PubMedBERT-fulltext --corpus iob --data my-corpus
    python finetune.py runs/kgi-fr --corpus iob --data my-corpus --untrained

One pass over the training part, batch 4, learning rate 2e-5, weight decay 0.01; each of --runs seeds
starts from the same checkpoint. Two scores: the paper's (precision, recall and F1 averaged over the labels
of each sequence, O included, then over sequences) and the field's (strict entity-level micro P/R/F1).
"""

import copy
import json
import statistics
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2
from tqdm import tqdm

import configs
import model as models
from configs import UserError, tokenization, write_atomic

# ---------------------------------------------------------------- corpora

CORPORA = {  # name: (files of the training part, files of the test part), in the folder or its layer1/
    "e3c": ("train.txt", "test.txt"),
    "ncbi-disease": ("train.tsv", "test.tsv"),
    "iob": ("train.*", "test.*"),
}


def read_iob(path):
    """A two-column file (token, then TAB or one space, then tag; blank line after each sentence).

    Returns: list of (words, tags), tags in IOB2: O, B-X, I-X, an I-X only after B-X or I-X.
    Raises: UserError naming the line of a wrong column count, an unknown tag or bad UTF-8.
    """
    try:
        lines = [line.rstrip("\r") for line in Path(path).read_bytes().decode("utf-8").split("\n")]
    except UnicodeDecodeError as e:
        line = Path(path).read_bytes()[: e.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8; convert the file") from None
    sentences, words, tags = [], [], []
    for n, line in enumerate([*lines, ""], 1):
        if not line.strip():
            if words:
                sentences.append((words, tags))
                words, tags = [], []
            continue
        fields = line.split("\t") if "\t" in line else line.split(" ")
        if len(fields) != 2 or not fields[0]:
            raise UserError(f"{path}, line {n}: {len(fields)} columns instead of 2 (token, tag): {line[:60]!r}")
        word, tag = fields
        kind = tag[2:]
        if tag != "O" and (tag[:2] not in ("B-", "I-") or not kind):
            raise UserError(f"{path}, line {n}: unknown label '{tag}'; expected O, B-<type> or I-<type>")
        if tag[:2] == "I-" and (not tags or tags[-1] not in (f"B-{kind}", tag)):
            raise UserError(f"{path}, line {n}: '{tag}' does not follow B-{kind} or {tag}; the file must be IOB2")
        words.append(word)
        tags.append(tag)
    if not sentences:
        raise UserError(f"{path}: no sentence in it")
    return sentences


def read_corpus(name, folder):
    """(train, test) lists of (words, tags). Raises: UserError if a part is missing or broken.

    A label of the test part that never occurs in training is said; it cannot be predicted and counts.
    """
    if name not in CORPORA:
        raise UserError(f"unknown corpus '{name}'; it is one of {', '.join(CORPORA)}")
    parts = []
    for pattern in CORPORA[name]:
        found = sorted(p for d in (Path(folder), Path(folder, "layer1")) for p in d.glob(pattern) if p.is_file())
        if len(found) != 1:
            what = f"holds {len(found)} files" if found else "holds no file"
            raise UserError(f"{folder} {what} {pattern}; --corpus {name} needs {' and '.join(CORPORA[name])}")
        parts.append((found[0], read_iob(found[0])))
    (_, train), (path, test) = parts
    seen = {tag for _, tags in train for tag in tags}
    unseen = sorted({tag for _, tags in test for tag in tags} - seen)
    if unseen:
        print(f"{path}: labels {', '.join(unseen)} never occur in training; their entities count as missed")
    return train, test


def windows(sentences, tokenizer, special, max_len):
    """Sentences -> windows of at most max_len tokens that together hold every word.

    A sentence with more tokens is covered by overlapping windows (by half). Each word gets its
    prediction from the window in which it is farthest from an edge, so that no gold label is lost.

    Returns: list of (sentence, first word, ids with [CLS] and [SEP], position of each word's first token).
    """
    room = max_len - 2
    ids, lengths = tokenization.encode(tokenizer, [" " + w for words, _ in sentences for w in words], "words")
    start = np.cumsum(lengths) - lengths
    pieces = [ids[s : s + min(n, room)].tolist() or [special["unk"]] for s, n in zip(start, lengths)]
    out = []
    bounds = np.cumsum([0] + [len(words) for words, _ in sentences])
    for i in range(len(sentences)):
        words = pieces[bounds[i] : bounds[i + 1]]
        begin, first = np.cumsum([0] + [len(w) for w in words]), 0
        while True:
            last = int(np.searchsorted(begin, begin[first] + room, side="right")) - 1  # one past the last word
            body = [special["cls"], *(t for w in words[first:last] for t in w), special["sep"]]
            out.append((i, first, body, (begin[first:last] - begin[first] + 1).tolist()))
            if last == len(words):
                break
            half = int(np.searchsorted(begin, (begin[first] + begin[last]) // 2))
            first = min(max(first + 1, half), last)
    return out


# ---------------------------------------------------------------- scores


def sequence_scores(gold, pred):
    """The paper's metric for one sequence: macro (P, R, F1) over the labels in gold or prediction.

    O counts as a label, B-X and I-X as two; 0 where a denominator is 0 (scikit-learn's zero_division=0).
    """
    scores = []
    for label in sorted({*gold, *pred}):  # in one order, so that sums round alike in every process
        hit = sum(g == p == label for g, p in zip(gold, pred))
        n_pred, n_gold = pred.count(label), gold.count(label)
        p, r = hit / n_pred if n_pred else 0.0, hit / n_gold if n_gold else 0.0
        scores.append((p, r, 2 * p * r / (p + r) if p + r else 0.0))
    return np.mean(scores, axis=0)


def score(gold, pred):
    """{"paper": [P, R, F1], "entity": [P, R, F1], "all_o": paper F1 of a tagger that always says O}, in per cent."""
    paper = np.mean([sequence_scores(g, p) for g, p in zip(gold, pred)], axis=0)
    floor = np.mean([sequence_scores(g, ["O"] * len(g))[2] for g in gold])
    entity = precision_recall_fscore_support(gold, pred, scheme=IOB2, average="micro", zero_division=0)[:3]
    return {"paper": (100 * paper).tolist(), "entity": [100 * float(x) for x in entity], "all_o": 100 * float(floor)}


# ---------------------------------------------------------------- training


class Tagger(nn.Module):
    """The pre-trained encoder, dropout, and a linear layer over the labels."""

    def __init__(self, encoder, labels):
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(encoder.config.dim, labels)
        models.initialise(self.head)

    def forward(self, ids, mask, position):
        """ids, mask (n, L); position (k,) in ids.ravel() -> (k, labels) logits of those words."""
        hidden = self.encoder(ids, mask).flatten(0, 1).index_select(0, position)
        return self.head(F.dropout(hidden, self.encoder.config.dropout, self.training))


def collate(chunk, pad, device):
    """Windows -> (ids, mask, position) as Tagger.forward wants them."""
    width = max(len(w[2]) for w in chunk)
    ids = torch.tensor([w[2] + [pad] * (width - len(w[2])) for w in chunk])
    length = torch.tensor([len(w[2]) for w in chunk])
    position = torch.tensor([i * width + p for i, w in enumerate(chunk) for p in w[3]])
    return ids.to(device), (torch.arange(width) < length[:, None]).to(device), position.to(device)


def train_once(s, seed, encoder, train, labels, pad, device, dtype):
    """One tagger from a copy of the encoder: `epochs` passes over the training windows in a seeded order."""
    torch.manual_seed(seed)
    encoder = models.Encoder(encoder.config) if s.untrained else copy.deepcopy(encoder)
    tagger = Tagger(encoder, len(labels)).to(device).train()
    optimizer = torch.optim.AdamW(tagger.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
    index = {label: i for i, label in enumerate(labels)}
    sentences, cut = train
    for epoch in range(s.epochs):
        order = np.random.default_rng([seed, epoch]).permutation(len(cut)).tolist()
        bar = tqdm(range(0, len(order), s.batch_size), f"seed {seed}", disable=None, leave=False, dynamic_ncols=True)
        for i in bar:
            chunk = [cut[j] for j in order[i : i + s.batch_size]]
            gold = [index[t] for w in chunk for t in sentences[w[0]][1][w[1] : w[1] + len(w[3])]]
            with models.autocast(device, dtype):
                logits = tagger(*collate(chunk, pad, device))
            loss = F.cross_entropy(logits.float(), torch.tensor(gold, device=device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
        if not torch.isfinite(loss):
            raise UserError(f"the loss is {loss.item()} after epoch {epoch + 1}; try a lower --lr or --precision fp32")
    return tagger.eval()


@torch.no_grad()
def predict(tagger, test, labels, pad, device, dtype):
    """A label for every word of every sentence, windows put together again."""
    sentences, cut = test
    pred = [["O"] * len(words) for words, _ in sentences]
    best = [[-1] * len(words) for words, _ in sentences]
    order = sorted(range(len(cut)), key=lambda i: len(cut[i][2]))
    for i in range(0, len(order), 64):
        chunk = [cut[j] for j in order[i : i + 64]]
        with models.autocast(device, dtype):
            answer = iter(tagger(*collate(chunk, pad, device)).argmax(-1).tolist())
        for sentence, first, _, words in chunk:
            for k in range(len(words)):
                label, distance = labels[next(answer)], min(k, len(words) - 1 - k)
                if distance > best[sentence][first + k]:
                    best[sentence][first + k], pred[sentence][first + k] = distance, label
    return pred


def main(argv):
    usage = "python finetune.py CHECKPOINT --corpus NAME --data DIR [config.toml] [--key value ...]"
    s, (checkpoint,) = configs.load("finetune", argv, usage, positionals=1)
    if s.precision == "fp16":
        raise UserError("precision = 'fp16': fine-tuning has no loss scaler; say auto, bf16 or fp32")
    device, dtype = models.choose_device(s.device, s.precision)
    if dtype == torch.float16:
        dtype = None  # auto on a GPU without bf16
    if not Path(s.data).is_dir() or not s.data:
        raise UserError(f"--data '{s.data}': there is no such folder; it must hold the corpus")
    train, test = read_corpus(s.corpus, s.data)
    encoder = models.load(checkpoint, heads=False).encoder
    config = encoder.config
    max_len = min(s.max_len or config.max_positions, config.max_positions)
    if max_len < 8:
        raise UserError(f"max_len = {max_len}: windows of fewer than 8 tokens are not worth reading")
    tokenizer = tokenization.load(checkpoint, config.vocab_size)
    special = tokenization.special_ids(tokenizer)
    labels = sorted({t for _, tags in train for t in tags}, key=lambda t: (t != "O", t[2:], t))
    cut = [(part, windows(part, tokenizer, special, max_len)) for part in (train, test)]
    entities = [sum(t[0] == "B" for _, tags in part for t in tags) for part in (train, test)]
    print(
        f"{s.corpus}: {len(train):,} + {len(test):,} sentences, {entities[0]:,} + {entities[1]:,} entities, "
        f"{len(cut[0][1]):,} + {len(cut[1][1]):,} windows of up to {max_len} tokens, labels {' '.join(labels)}",
        flush=True,
    )
    gold, results = [tags for _, tags in test], []
    for seed in range(s.seed, s.seed + s.runs):
        began = time.time()
        tagger = train_once(s, seed, encoder, cut[0], labels, special["pad"], device, dtype)
        results.append(score(gold, predict(tagger, cut[1], labels, special["pad"], device, dtype)))
        print(f"seed {seed}: {table_row(results[-1:])}  ({time.time() - began:.0f} s)", flush=True)
    if s.runs > 1:
        print(f"mean of {s.runs}: {table_row(results)}")
    print(f"(a tagger that always says O: paper F1 {results[0]['all_o']:.2f}, entity F1 0)")
    name = Path(checkpoint).resolve().name + ("-untrained" if s.untrained else "")
    out = Path(s.out or Path("results", name, f"{s.corpus}-{Path(s.data).resolve().name}"))
    out.mkdir(parents=True, exist_ok=True)
    record = {"checkpoint": str(checkpoint), "settings": asdict(s), "runs": results}
    write_atomic(out / "scores.json", lambda f: f.write((json.dumps(record, indent=1) + "\n").encode()))


def table_row(results):
    """Paper and entity P / R / F1, as mean and standard deviation over the runs."""

    def cell(kind, i):
        values = [r[kind][i] for r in results]
        spread = f" ±{statistics.stdev(values):.2f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.2f}{spread}"

    return "  ".join(f"{kind} P/R/F1 " + " / ".join(cell(kind, i) for i in range(3)) for kind in ("paper", "entity"))


if __name__ == "__main__":
    configs.run(main)
