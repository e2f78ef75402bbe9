"""Strict entity scores of labelled documents, and their confidence intervals."""

import numpy as np

from support.arrays import bootstrap
from support.labels import decode_entities

RESAMPLES = 1000  # bootstrap samples of test documents for a confidence interval


def precision_recall_f1(n_correct, n_predicted, n_gold):
    """From counts (numbers or arrays); 0 where a denominator is 0."""
    precision, recall = n_correct / np.maximum(n_predicted, 1), n_correct / np.maximum(n_gold, 1)
    return precision, recall, 2 * n_correct / np.maximum(np.add(n_predicted, n_gold), 1)


def predicted_entities(document, labels, pos):
    """A set of (type, ((start, end),)), in characters if there is text, else in tokens. pos: each token is one."""
    if pos:
        return {(label, ((i, i + 1),)) for i, label in enumerate(labels)}
    spans = document.spans or [(i, i + 1) for i in range(len(labels))]
    return {(e.tag, ((spans[e.start][0], spans[e.end - 1][1]),)) for e in decode_entities(labels)}


def gold_entities(document, pos):
    """All that the corpus marks, labelled or not, as predicted_entities has it."""
    return set(document.gold) if document.gold is not None else predicted_entities(document, document.labels, pos)


def entity_types(documents, predictions, corpus):
    """The types in gold or predictions, sorted."""
    pairs = zip(documents, predictions)
    found = (gold_entities(d, corpus.pos) | predicted_entities(d, p, corpus.pos) for d, p in pairs)
    return sorted({kind for entities in found for kind, _ in entities})


def entity_counts(documents, predictions, corpus):
    """(documents, types, 3): correct, predicted and gold entities of each type, in the order of entity_types."""
    index = {kind: k for k, kind in enumerate(entity_types(documents, predictions, corpus))}
    counts = np.zeros((len(documents), len(index), 3), int)
    for i, (d, p) in enumerate(zip(documents, predictions)):
        gold, found = gold_entities(d, corpus.pos), predicted_entities(d, p, corpus.pos)
        for column, entities in enumerate((gold & found, found, gold)):
            for kind, _ in entities:
                counts[i, index[kind], column] += 1
    return counts


def entity_score(documents, predictions, corpus):
    """Strict micro [P, R, F1] of the entities, in per cent; of parts of speech token accuracy thrice."""
    return micro_scores(entity_counts(documents, predictions, corpus))


def micro_scores(counts):
    """[P, R, F1] of entity_counts, in per cent."""
    return [100 * float(x) for x in precision_recall_f1(*counts.sum(axis=(0, 1)))]


def type_scores(types, counts):
    """{type: [P, R, F1, number in gold]}, in per cent, of entity_types and entity_counts."""
    totals = counts.sum(axis=0)
    return {k: [*(100 * float(x) for x in precision_recall_f1(*n)), int(n[2])] for k, n in zip(types, totals)}


def f1_intervals(documents, paper_f1, counts):
    """{"paper" and "entity": [low, high]}: 95 % bootstrap intervals of the F1, in per cent, with documents resampled.

    Args: paper_f1: (documents,) the paper's F1 of each sequence. counts: of entity_counts.
    """
    groups = [d.group or i for i, d in enumerate(documents)]
    columns = np.column_stack([counts.sum(axis=1), paper_f1, np.ones(len(paper_f1))])
    n_correct, n_predicted, n_gold, f1_sum, n = bootstrap(groups, columns, RESAMPLES).T
    samples = {"paper": 100 * f1_sum / n, "entity": 100 * precision_recall_f1(n_correct, n_predicted, n_gold)[2]}
    return {kind: np.percentile(f1, [2.5, 97.5]).tolist() for kind, f1 in samples.items()}
