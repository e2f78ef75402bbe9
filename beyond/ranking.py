"""How often the nearest concept is the right one: the mentions of a corpus with ids, ranked and scored.

The protocol, by which the figures of papers differ most:

* A concept is as near to a mention as the nearest of its names. Concepts are ranked, not names. Concepts that are
  equally near share the mean of their ranks, so a name of two concepts alone is right at 5, but not at 1.
* `a|b` (or a comma or semicolon between ids) is one mention with alternatives: any of them is right. `a+b` is a
  composite of parts, and all must be found. It is not split into the words of its parts. Its rank is that of the part
  found last, but 1 if the first p concepts hold all p parts. An id that names several concepts is found with any.
  NCBI-Disease writes most of its composites with `|`, so that any of their parts is right. The variants of BioRED keep
  their bars (`c|SUB|G|94|A` is one id). A concept that a dictionary calls `a|b` is found by either id.
* A mention whose concept is not in the dictionary counts as not found. Accuracy is given over all mentions and over the
  reachable ones. A composite is reachable if all of its parts are. Mentions without any id are not counted.
* A retired CUI counts as the one that replaced it in the release of --umls. Some are replaced only by a broader,
  narrower or related concept, which is not synonymous. The scores are given a second time with these as not found.
* Unseen mentions are those whose words, in lower case, are not a mention of the training split. Without such a split
  there are no figures for them.
* The names of several choices of languages (--lang) are scored in turn against the same mentions, and embedded once.
* Mentions of the training split are not added to the dictionary, and abbreviations are not expanded, unless asked for.
"""

import hashlib
import sys
import time
from collections import defaultdict
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path

import numpy as np

import model as models
from beyond.dictionaries import (
    embed_mentions_and_names,
    exact_matches,
    query_blocks,
    share_names,
    trigram_similarities,
)
from beyond.embed import choose_pooling
from beyond.gold import read_tasks
from configs import POOLINGS
from support import runs
from support.arrays import bootstrap
from support.files import made_folder, name_of, write_json
from support.results import check_results_file
from support.retired import OUTCOMES

RESAMPLES = 1000  # bootstrap samples of documents for a confidence interval


def link_corpus(s, dictionaries):
    """Scores the links of the mentions of a corpus; printed, and kept in results/.

    Args: dictionaries: {choice of languages: Dictionary}, which are scored in turn.
    """
    began, path = time.monotonic(), results_file(s)
    pooling, *_ = choose_pooling(s, models.load_config(s.checkpoint), partial(print, file=sys.stderr), default="")
    tasks = read_tasks(s, dictionaries.values())
    shared = share_names([task.dictionary for task in tasks])
    tasks = [task._replace(dictionary=dictionary) for task, dictionary in zip(tasks, shared)]
    check_results_file(path, signature := results_signature(s, *tasks) | runs.signature_of(s.checkpoint))
    with made_folder(path.parent):
        records = score_links(s, tasks, [pooling] if pooling else POOLINGS)
        found = records[0] if len(records) == 1 else {"choices": dict(zip(dictionaries, records))}
        record = {"checkpoint": s.checkpoint, "settings": asdict(s), "signature": signature} | found
        print_linking(record)
        write_json(path, record)
    print(f"  -> {path} ({time.monotonic() - began:.0f} s)")


def score_links(s, tasks, poolings):
    """The linking_record of each LinkingTask, looked up by several methods. All have the same queries and names."""
    texts, all_names = tasks[0].queries, tasks[0].dictionary.names
    queries, names = embed_mentions_and_names(s, texts, all_names, poolings)
    is_equal, trigrams = exact_matches(all_names, texts), trigram_similarities(all_names, texts)

    def similarities(block):
        """Those of a block of mentions to all names, one method after the other."""
        yield "exact match", is_equal(block)
        spelling = trigrams(block)
        yield "trigrams", spelling
        for i, pooling in enumerate(poolings):
            cosine = queries[pooling][block] @ names[:, i].T
            yield pooling, cosine
            yield f"{pooling} + trigrams", cosine + spelling

    return [linking_record(task, ranks) for task, ranks in zip(tasks, rank_mentions(tasks, similarities))]


# ---------------------------------------------------------------- ranks


def rank_mentions(tasks, similarities):
    """The rank of each mention's concept, exactly, in each task: [{method: (mentions,) float64}, ...].

    It is infinite if a concept cannot be reached. The search is exhaustive, in blocks of mentions.

    Args: tasks: LinkingTasks of the same queries and names. similarities: a function of a slice of the queries that
        yields (method, (k, names) float32 array).
    """
    all_ranks = [defaultdict(partial(np.full, len(task.mentions), np.inf)) for task in tasks]
    mentions = [defaultdict(list) for _ in tasks]  # those of a query that can be reached
    for task, of_query in zip(tasks, mentions):
        for mention, query in enumerate(task.query.tolist()):
            if task.gold[mention]:
                of_query[query].append(mention)
    for block in query_blocks(tasks[0].dictionary, len(tasks[0].queries)):
        for method, name_similarities in similarities(block):
            for task, of_query, ranks in zip(tasks, mentions, all_ranks):
                offset = np.flatnonzero(np.diff(task.dictionary.concept, prepend=-1))
                for query, name_similarity in enumerate(name_similarities, block.start):
                    if query in of_query:
                        similarity = np.maximum.reduceat(name_similarity[task.dictionary.term], offset)
                        for mention in of_query[query]:
                            ranks[method][mention] = rank_of_mention(similarity, task.gold[mention])
    return [dict(ranks) for ranks in all_ranks]


def rank_of_mention(similarity, parts):
    """The rank of a mention: of its last part, but 1 if the first concepts, as many as it has parts, hold all of them.

    Args: similarity: (concepts,) of the mention. parts: as gold_concepts gives them.
    """
    last = max(rank_of_part(similarity, concepts) for concepts in parts)
    least = min(similarity[concepts].max() for concepts in parts)
    return 1.0 if 1 < len(parts) >= np.count_nonzero(similarity >= least) else last


def rank_of_part(similarity, concepts):
    """The rank of the first of some concepts by similarity.

    Of n equally near concepts, m of them right, the first right one is at (n + 1) / (m + 1) on average over all orders.
    """
    right = similarity[concepts]
    best = right.max()
    n_nearer, n_equal = np.count_nonzero(similarity > best), np.count_nonzero(similarity == best)
    return n_nearer + (n_equal + 1) / (np.count_nonzero(right == best) + 1)


# ---------------------------------------------------------------- scores


def results_file(s):
    """Where beyond.link keeps its scores. The name has the protocol's settings that are not the default."""
    parts = [name_of(s.corpus)] + [s.split] * (s.split != "test")
    parts += ["names", *s.lang] * (len(s.lang) > 1)
    parts += [key for key in ("expand_abbreviations", "train_mentions", "umls") if getattr(s, key)]
    return Path(s.out or "results", name_of(s.checkpoint), f"linking-{'-'.join(parts)}.json")


def results_signature(s, *tasks):
    """What the scores depend on besides the checkpoint. tasks: LinkingTasks."""
    digest = hashlib.sha256()
    for d, queries, gold in ((task.dictionary, task.queries, task.gold) for task in tasks):
        gold = [parts and [x.tolist() for x in parts] for parts in gold]
        texts = "\n".join([*d.ids, "", *d.names, "", repr((queries, gold))])
        digest.update(texts.encode("utf-8", "surrogatepass") + d.term.tobytes() + d.concept.tobytes())
    others = ["mentions", "keep_vectors", "device", "out"] + ["umls"] * (not s.umls)
    others += [f.name for f in fields(s) if f.metadata.get("group") == "links"]
    kept = {key: value for key, value in asdict(s).items() if key not in others}
    for key in {"corpus", "ids", "dictionary", "data", "umls"} & kept.keys():  # "NCBI/" is "NCBI"
        kept[key] = kept[key] and str(Path(kept[key]).resolve())
    kept["lang"] = " ".join(s.lang)
    return kept | {"dictionary sha256": digest.hexdigest()}


def linking_scores(ranks, documents):
    """Accuracy at 1 and 5 and mean reciprocal rank in per cent, and their 95 % bootstrap confidence intervals.

    The intervals are percentiles over 1,000 samples of the documents, drawn with replacement and seeded.

    Args: ranks: (mentions,), infinite where nothing was found. documents: that of each mention.
    Returns: {"at_1", "at_5", "mrr", "interval": {the same: [low, high]}}; {} of no mentions.
    """
    if not len(ranks):
        return {}
    values = np.column_stack([ranks <= 1, ranks <= 5, 1 / ranks, np.ones(len(ranks))])
    samples = bootstrap(documents, values, RESAMPLES)
    bounds = 100 * np.percentile(samples[:, :3] / samples[:, 3:], [2.5, 97.5], axis=0)
    names = ("at_1", "at_5", "mrr")
    scores = dict(zip(names, (100 * values[:, :3].mean(axis=0)).tolist()))
    return scores | {"interval": dict(zip(names, bounds.T.tolist()))}


def linking_record(task, ranks):
    """What beyond.link keeps: sizes, {subset: {"mentions", methods: {method: linking_scores}}}, and ranks.

    The ranks are for beyond.compare: a list for each method, of all mentions in the order of the corpus. Where nothing
    was found they are null. Another list holds the index of each mention's document.

    Args: ranks: of rank_mentions.
    """
    documents, scores = np.array([mention.document for mention in task.mentions]), {}
    index = {document: i for i, document in enumerate(dict.fromkeys(documents.tolist()))}
    reachable = np.array([gold is not None for gold in task.gold])
    subsets = {"all": np.ones(len(reachable), bool), "reachable": reachable}
    if task.unseen is not None:
        subsets |= {"unseen": task.unseen, "unseen_reachable": task.unseen & reachable}
    if task.not_synonymous.any():
        subsets["synonymous"] = subsets["all"]
    for name, subset in subsets.items():
        missed = task.not_synonymous & (name == "synonymous")
        found = {method: np.where(missed, np.inf, x)[subset] for method, x in ranks.items()}
        methods = {method: linking_scores(x, documents[subset].tolist()) for method, x in found.items()}
        scores[name] = {"mentions": int(subset.sum()), "methods": methods}
    return {
        "documents": len({*documents.tolist()}), "composite": sum(len(m.parts) > 1 for m in task.mentions),
        "concepts": len(task.dictionary.ids), "names": len(np.unique(task.dictionary.term)),
        "issues": dict(+task.issues),
        "retired": {outcome: task.retired[outcome] for outcome in OUTCOMES if task.retired[outcome]},
        "scores": scores,
        "document_of_mention": [index[document] for document in documents.tolist()],
        "ranks": {method: [rank if rank < np.inf else None for rank in x.tolist()] for method, x in ranks.items()},
    }  # fmt: skip


def print_linking(record):
    """Prints what beyond.link found: for each subset of the mentions a table of methods, by choice of languages."""
    s, choices = record["settings"], record.get("choices") or {"": record}
    first = next(iter(choices.values()))
    for lang, x in choices.items():
        in_language = f" in {lang}" * bool(lang)
        n_all, n_reachable = (x["scores"][name]["mentions"] for name in ("all", "reachable"))
        print(
            f"{s['corpus']}, {s['split']}: {n_all:,} mentions in {x['documents']:,} documents, {n_reachable:,} with a "
            f"concept in the dictionary of {x['concepts']:,} concepts and {x['names']:,} names{in_language}"
        )
    for issue, n in first["issues"].items():
        print(f"  {issue}: {n:,}")
    if first["retired"]:
        print(f"  CUIs in {s['umls']}: " + ", ".join(f"{n:,} {outcome}" for outcome, n in first["retired"].items()))
    titles = {
        "all": "all mentions", "reachable": "mentions with a concept in the dictionary",
        "unseen": "mentions unseen in training", "unseen_reachable": "unseen, with a concept in the dictionary",
        "synonymous": "all, broader or related concepts not found",
    }  # fmt: skip
    for subset, title in titles.items():
        found = {lang: x["scores"][subset] for lang, x in choices.items() if subset in x["scores"]}
        if not found:
            continue
        sizes = {lang: f" ({x['mentions']:,})" for lang, x in found.items()}
        is_same = len({*sizes.values()}) == 1
        title += [*sizes.values()][0] * is_same
        print(f"\n  {title:<49}{'at 1':<22}{'at 5':<22}MRR")
        for method, lang in [(method, lang) for method in [*found.values()][0]["methods"] for lang in found]:
            if scores := found[lang]["methods"][method]:
                intervals = {key: "[{:.1f}, {:.1f}]".format(*bounds) for key, bounds in scores["interval"].items()}
                cells = [f"{scores[key]:5.1f} {interval}" for key, interval in intervals.items()]
                label = method + (f", names in {lang}" + sizes[lang] * (not is_same)) * bool(lang)
                print(f"    {label:<45}" + "".join(f"{cell:<22}" for cell in cells).rstrip())
    print("\n  accuracy and MRR in per cent [95 % bootstrap confidence interval, documents resampled]")
