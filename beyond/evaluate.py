"""Intrinsic evaluation (section 5 leaves it to future work): held-out pairs, synonyms, and a map of the terms.

    python -m beyond.evaluate runs/kgi-fr [OTHER ...]        what they know of held-out pairs, and of synonyms
    python -m beyond.evaluate map runs/kgi-fr                a picture of its terms by semantic group

All checkpoints get the same masks. One with another tokenizer or other relations than the data set is measured by
synonyms alone.
"""

import configs  # isort: split

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

import data
import model as models
from beyond import embed, maps, retrieval
from configs import DEVICES, POOLINGS, PRECISIONS, UserError, argument, setting
from data import TASK_NAMES, TASKS
from kgi import VALID_EPOCH
from support import hardware, layouts, reports, runs, tokenizers, umls
from support.arrays import ceil_div
from support.datasets import read_manifest, relation_names, tokenizer_of
from support.files import made_folder, name_of, write_json
from support.pooling import read_pooling
from support.programs import run_command
from support.relations import rel_of
from support.results import check_results_file

NEGATIVES = {"corrupted_entities": data.CORRUPTED_ENTITIES, "corrupted_relation": data.CORRUPTED_RELATION}
MIN_TARGETS = 20  # held-out targets of a relation that counts in macro F1: an F1 of fewer is noise
MAX_MATRIX = 7  # relations of a confusion matrix that is printed: of more it is unreadable
MAX_SPELLED = 50_000  # terms that are also compared by their trigrams of letters: it takes 16 kB each


@dataclass
class Evaluate:
    """Measure what checkpoints know of held-out pairs and documents, and of synonyms."""

    checkpoints: list[str] = argument("CHECKPOINT", "run folders, or folders of other checkpoints", many=True)
    data: str = setting("", retrieval.DATA_HELP)
    out: str = setting("results", "results go to <out>/<checkpoint>")
    seed: int = setting(0, "seed of the masks and of the choice of concepts", most=2**32)
    terms: int = setting(20_000, "terms per language for synonym retrieval; 0: all (only for a small graph)")
    precision: str = setting("auto", "number format of the matrix products", choices=PRECISIONS)
    device: str = setting("auto", "where to run", choices=DEVICES)


@dataclass
class Map:
    """Draw the terms of a checkpoint by semantic group: t-SNE of discriminant axes, fitted on other terms."""

    checkpoint: str = argument("CHECKPOINT", "run folder, or folder of another checkpoint")
    data: str = setting("", retrieval.DATA_HELP)
    out: str = setting("results", "the picture goes to <out>/<checkpoint>")
    seed: int = setting(0, "seed of the choice of concepts, and of t-SNE", most=2**32)
    terms: int = setting(20_000, "terms a language, of which at most 4,000 are drawn; 0: all, for a small graph")
    pooling: str = setting("", embed.POOLING_HELP, choices=POOLINGS)
    precision: str = setting("auto", "number format of the matrix products", choices=PRECISIONS)
    device: str = setting("auto", "where to run", choices=DEVICES)


def evaluate(s):
    """Measures what checkpoints know of the four tasks and of synonyms; printed, and kept in results/."""
    device, dtype = hardware.choose_device(s.device, s.precision)
    names = [name_of(checkpoint) for checkpoint in s.checkpoints]
    if len({*names}) < len(names):
        raise UserError(f"results are named by checkpoint, and two of {', '.join(names)} are the same")
    for checkpoint in s.checkpoints:
        models.load_config(checkpoint)  # a mistake in the last one is found before the first one takes its time
    for checkpoint, name in zip(s.checkpoints, names):
        began, folder = time.monotonic(), retrieval.data_of(s, checkpoint)
        print(f"{checkpoint} on {folder}", flush=True)
        path = Path(s.out, name, f"knowledge-{name_of(folder)}.json")
        with made_folder(path.parent):
            record = evaluate_checkpoint(s, checkpoint, folder, path, device, dtype)
            print_evaluation(record)
            write_json(path, record)
        print(f"  -> {path} ({time.monotonic() - began:.0f} s)", flush=True)
    reports.print_next(
        ("python finetune.py tables --results {}", s.out), ("python -m beyond.evaluate map {}", s.checkpoints[-1])
    )


def evaluate_checkpoint(s, checkpoint, folder, path, device, dtype):
    """The record of one checkpoint: its tasks (evaluate_tasks), and the retrieval of synonyms (evaluate_synonyms).

    path: where it is going to be. Raises: UserError, before it takes long, if results of another checkpoint are there.
    """
    c = models.load_config(checkpoint)
    tokenizer = tokenizers.load(checkpoint, max_entries=c.vocab_size)
    # The model may have more rows than its tokenizer has entries, and the tokenizer more relations than the data set.
    has_heads = tokenizer.to_str() == tokenizer_of(folder) and c.relation_classes == relation_names(folder)[:-1]
    model = models.load(checkpoint, encoder_only=not has_heads).to(device).eval()
    settings, manifest = asdict(s), read_manifest(folder)
    del settings["checkpoints"]
    signature = {"data": str(folder.resolve()), "data sha256": manifest["sha256"]["valid.arrow"]}
    signature = runs.signature_of(checkpoint) | signature | {k: settings[k] for k in ("seed", "terms", "precision")}
    check_results_file(path, signature)
    record = {"checkpoint": str(checkpoint), "data": name_of(folder), "settings": settings, "signature": signature}
    if "kgi_tasks" in c.extra_config:
        record["tasks"] = c.extra_config["kgi_tasks"]  # of the heads of others nothing can be expected
    seq_len, n = manifest["settings"]["seq_len"], c.max_positions
    if not has_heads:
        print(f"  not a model of the tokens and relations of {folder}: synonyms alone")
    elif n < seq_len:
        raise UserError(f"{checkpoint} has {n} positions and {folder} sequences of up to {seq_len} tokens")
    else:
        record |= evaluate_tasks(model, folder, s.seed, dtype)
    max_tokens = embed.longest_text(read_pooling(checkpoint), c)
    record |= evaluate_synonyms(s, folder, model.encoder, tokenizer, dtype, max_tokens)
    return record | {"scores": flat_scores(record)}


@torch.no_grad()
def predict_targets(model, dataset, seed, dtype):
    """The model's predictions for all targets of a validation split.

    The masks follow from this seed and Table 8's probability, so that all checkpoints are compared on the same ones.

    Returns: arrays (targets,): example (row of the split), task, label, prediction (the class with the best score), and
    score (the cross-entropy; of triples the log odds of "true" instead).
    """
    out, device = [], model.mlm_bias.device
    for rows in np.array_split(dataset.rows, ceil_div(len(dataset), 1024)):
        epochs = np.full(len(rows), VALID_EPOCH)
        batch = dataset.masked_batch(rows, epochs, seed, configs.Train.mlm_probability)
        for micro_batch in layouts.padded(batch, 4096, 64):
            micro_batch = micro_batch.to(device)
            with hardware.autocast(device, dtype):
                logits = [x.float() for x in model.logits(micro_batch)]
            label = micro_batch.label.split(micro_batch.n_targets)
            score = [F.cross_entropy(x, gold, reduction="none") for x, gold in zip(logits, label)]
            score[data.TC] = logits[data.TC][:, 1] - logits[data.TC][:, 0]
            prediction, task = torch.cat([x.argmax(-1) for x in logits]), np.arange(len(TASKS))
            arrays = (x.cpu().numpy() for x in (micro_batch.example, micro_batch.label, prediction, torch.cat(score)))
            example, *rest = arrays
            out.append((rows[example], np.repeat(task, micro_batch.n_targets), *rest))
    return [np.concatenate(column) for column in zip(*out)]


def evaluate_tasks(model, folder, seed, dtype):
    """What a model knows of the held-out pairs and documents of a data set, in per cent but the loss.

    Returns: {"mlm": {language: {"loss", "accuracy"}}, "ep": {"tokens", "entities"} (accuracies; an entity is correct if
    all its tokens are), "lp": score_links, "tc": {"accuracy", and for each kind of negative "accuracy" of the negatives
    and "auc": of them against all true triples}}.
    """
    from sklearn.metrics import roc_auc_score  # a second that training need not wait

    dataset = data.PretrainingDataset(folder, "valid")
    example, task, label, prediction, score = predict_targets(model, dataset, seed, dtype)
    correct, out = label == prediction, {}
    for index, name in enumerate(TASK_NAMES):
        if (targets := task == index).any():
            out[name] = {"accuracy": 100 * correct[targets].mean()}
    if "mlm" in out:
        out["mlm"], lang = {}, np.where(task == data.MLM, dataset.lang[example].astype(int), -1)
        for i in np.unique(lang[task == data.MLM]):
            loss, accuracy = score[lang == i].mean(), 100 * correct[lang == i].mean()
            out["mlm"][dataset.manifest["languages"][i]] = {"loss": loss, "accuracy": accuracy}
    if "ep" in out:
        targets = task == data.EP
        n_wrong = np.bincount(example[targets], ~correct[targets])[np.unique(example[targets])]
        out["ep"] = {"tokens": out["ep"]["accuracy"], "entities": 100 * (n_wrong == 0).mean()}
    if "lp" in out:
        targets = task == data.LP
        out["lp"] = score_links(label[targets], prediction[targets], relation_names(folder)[:-1])
    kind = np.where(task == data.TC, dataset.kind[example].astype(int), -1)
    for name, negative in NEGATIVES.items() if "tc" in out else ():
        targets = (kind == data.TRUE) | (kind == negative)
        if (kind == negative).any() and label[targets].any():
            auc = 100 * roc_auc_score(label[targets], score[targets])
            out["tc"][name] = {"accuracy": 100 * correct[kind == negative].mean(), "auc": auc}
    return json.loads(json.dumps(out, default=float))


def score_links(gold, predicted, names):
    """Scores of link prediction, in per cent, and those of a majority baseline: always the most frequent relation.

    Args: gold, predicted: indices into names, those of all relations but synonymy.
    Returns: {"relations": names, "confusion" (gold in rows), "accuracy", "rel_accuracy" (any relation of the right REL
    is correct; only if some are finer), "macro_f1_relations" (how many have MIN_TARGETS), "macro_f1" (over these, if
    there are any), "accuracy_majority", "macro_f1_majority"}.
    """
    from sklearn.metrics import confusion_matrix, f1_score

    n_targets, rel = np.bincount(gold, minlength=len(names)), np.array([*map(rel_of, names)])
    counted = np.flatnonzero(n_targets >= MIN_TARGETS)
    confusion = confusion_matrix(gold, predicted, labels=range(len(names)))
    out = {"relations": names, "confusion": confusion.tolist(), "macro_f1_relations": len(counted)}
    for guess, suffix in ((predicted, ""), (np.full(len(gold), n_targets.argmax()), "_majority")):
        out[f"accuracy{suffix}"] = 100 * (guess == gold).mean()
        if len(counted):
            f1 = f1_score(gold, guess, labels=counted, average="macro", zero_division=0)
            out[f"macro_f1{suffix}"] = 100 * f1
    if len({*rel}) < len(names):
        out["rel_accuracy"] = 100 * (rel[predicted] == rel[gold]).mean()
    return out


def evaluate_synonyms(s, folder, encoder, tokenizer, dtype, max_tokens=None):
    """Retrieval of synonyms in each language of a data set, and of English names from those of another language.

    Queries are all names of some concepts, and those of held-out concepts alone ("_held_out").
    Returns: {"synonyms": {language: {"terms", vectors: metrics}}, "translations": {language: {vectors: metrics}}}.
    """
    out, names, manifest = {"synonyms": {}, "translations": {}}, {}, read_manifest(folder)
    build = manifest["settings"]
    for lang in manifest["languages"]:
        tables, strings, term, concept = retrieval.sample_terms(folder, lang, s.terms, s.seed)
        cui = tables.cui[concept]
        held_out = data.in_validation(cui, cui, build["seed"], build["valid_fraction"])
        vectors = {"spelling": retrieval.trigram_vectors(strings)} if len(strings) <= MAX_SPELLED else {}
        vectors |= embed.embed_terms(encoder, tokenizer, strings, POOLINGS, dtype, max_tokens)
        out["synonyms"][lang] = {"terms": len(strings)}
        for how, x in vectors.items():
            metrics = retrieval.retrieval_metrics(x, term, concept, held_out)
            out["synonyms"][lang] |= dict(zip((how, f"{how}_held_out"), metrics))
        names[lang] = vectors, term, cui, held_out
    english = names.pop("en", None)
    for lang, (vectors, term, cui, held_out) in names.items() if english else ():
        out["translations"][lang] = {}
        for how in (how for how in vectors if how in english[0]):
            for suffix, queries in (("", np.ones(len(term), bool)), ("_held_out", held_out)):
                asked, found = (vectors[how], term[queries], cui[queries]), (english[0][how], *english[1:3])
                out["translations"][lang][how + suffix] = retrieval.translation_metrics(*asked, *found)
    return out


def flat_scores(record):
    """The numbers of a record under one key each, the mean over the languages: what tables show."""
    out = {}
    if losses := [x["loss"] for x in record.get("mlm", {}).values()]:
        out["mlm_loss"] = statistics.mean(losses)
    for name in TASK_NAMES:
        keys = ("tokens", "entities", "accuracy", "rel_accuracy", "macro_f1", "accuracy_majority", "macro_f1_majority")
        out |= {f"{name}_{key}": record[name][key] for key in keys if key in record.get(name, ())}
    out |= {f"tc_auc_{kind}": record["tc"][kind]["auc"] for kind in NEGATIVES if kind in record.get("tc", {})}
    for suffix, how in (("", "mean"), ("_cls", "cls"), ("_spelling", "spelling")):
        for queries in ("", "_held_out"):
            found = [x[how + queries] for x in record["synonyms"].values() if x.get(how + queries)]
            for key in ("at_1", "at_5", "mrr") if found else ():
                out[f"synonyms_{key}{suffix}{queries}"] = statistics.mean(x[key] for x in found)
            if found := [x[how + queries] for x in record.get("translations", {}).values() if x.get(how + queries)]:
                out[f"translations_at_1{suffix}{queries}"] = statistics.mean(x["at_1"] for x in found)
    return out


def print_evaluation(record):
    """Prints what beyond.evaluate found."""
    titles = {task.name: task.title for task in TASKS}
    for lang, x in record.get("mlm", {}).items():
        print(f"  {titles['mlm']}, {lang}: loss {x['loss']:.3f}, accuracy {x['accuracy']:.1f} %")
    if x := record.get("ep"):
        print(f"  {titles['ep']}: {x['tokens']:.1f} % of the tokens, {x['entities']:.1f} % of the entities")
    if "lp" in record:
        print_links(titles["lp"], record["lp"])
    for name in [name for name in titles if name in record and name not in ("mlm", "ep", "lp")]:
        print(f"  {titles[name]}: accuracy {record[name]['accuracy']:.1f} %")
        for kind in filter(record[name].get, NEGATIVES):
            accuracy, auc, negatives = *record[name][kind].values(), f"negatives with {kind.replace('_', ' ')}"
            print(f"    {negatives}: accuracy {accuracy:.1f} %, ROC AUC against true ones {auc:.1f} %")
    for lang, by_vectors in record["translations"].items():
        for how, x in filter(all, by_vectors.items()):
            print(f"  {lang} -> en, {x['queries']:,} names, {title_of(how)}: accuracy at 1 {x['at_1']:.1f} %")
    for lang, by_vectors in record["synonyms"].items():
        n = by_vectors["terms"]
        if not by_vectors["mean"]:
            print(f"  synonyms, {lang}: no concept has two of the {n:,} terms")
        for how, x in by_vectors.items():
            if how != "terms" and x:
                scores = f"accuracy at 1 {x['at_1']:.1f} %, at 5 {x['at_5']:.1f} %, MRR {x['mrr']:.1f} %"
                print(f"  synonyms, {lang}, {x['queries']:,} among {n:,} terms, {title_of(how)}: {scores}")


def print_links(title, x):
    """Prints the scores of link prediction, and its confusion matrix, or a row for each of many relations."""
    rel = f", at the REL level {x['rel_accuracy']:.1f} %" if "rel_accuracy" in x else ""
    print(f"  {title}: accuracy {x['accuracy']:.1f} % (majority baseline {x['accuracy_majority']:.1f} %){rel}")
    if n := x["macro_f1_relations"]:
        scores = f"macro F1 {x['macro_f1']:.1f} % (majority baseline {x['macro_f1_majority']:.1f} %)"
        print(f"    {scores} over the {n} relations with {MIN_TARGETS} targets or more")
    names, confusion = x["relations"], np.array(x["confusion"])
    if len(names) <= MAX_MATRIX:
        print("    gold \\ predicted" + "".join(f"{name:>7}" for name in names))
        for name, row in zip(names, confusion.tolist()):
            print(f"    {name:<16}" + "".join(f"{n:>7,}" for n in row))
        return
    width = max(map(len, names))
    print(f"    {'':<{width}}  recall  precision  targets")
    for name, right, n, n_predicted in zip(names, confusion.diagonal(), confusion.sum(1), confusion.sum(0)):
        if n:
            precision = f"{100 * right / n_predicted:.1f} %" if n_predicted else "-"
            print(f"    {name:<{width}}{100 * right / n:>6.1f} %{precision:>11}{n:>9,}")


def title_of(how):
    """The vectors and the queries of a key of evaluate_synonyms, for print_evaluation."""
    return how.replace("spelling", "trigrams of letters").replace("_held_out", ", held-out concepts")


# ---------------------------------------------------------------- a map of the terms


def draw_map(s):
    """Draws the preferred terms of some concepts on a plane, by semantic group; each language on a map of its own."""
    device, dtype = hardware.choose_device(s.device, s.precision)
    folder = retrieval.data_of(s, s.checkpoint)
    encoder, tokenizer = models.open_encoder(s.checkpoint, device)
    pooling, max_tokens, _ = embed.choose_pooling(s, encoder.config, print)
    name, signature = name_of(s.checkpoint), runs.signature_of(s.checkpoint)["checkpoint sha256"]
    _, group_names = umls.read_semantic_groups(Path(configs.__file__).with_name("SemGroups.txt"))
    for lang in read_manifest(folder)["languages"]:
        path = Path(s.out, name, f"map-{lang}.png")
        maps.check_picture(path, signature)
        tables, _, _, concept = retrieval.sample_terms(folder, lang, s.terms, s.seed)
        concept = np.unique(concept)
        strings = tables.terms.take(tables.first_term[concept]).to_pylist()
        vectors = embed.embed_terms(encoder, tokenizer, strings, [pooling], dtype, max_tokens)[pooling]
        rows, points, axes = retrieval.map_of_groups(vectors, tables.group[concept], s.seed)
        group = tables.group[concept[rows]]
        shares, by_chance = retrieval.same_group_shares(points, group)
        shares_of_axes = ", ".join(f"{x:.1f} %" for x in axes[:3]) + ", ..." * (len(axes) > 3)
        title = (
            f"{name}: {len(rows):,} terms, {lang}, {pooling}\n"
            f"t-SNE of discriminant axes between groups, fitted on {len(strings) - len(rows):,} other terms\n"
            f"{len(axes)} axes with {shares_of_axes} of the variance between groups\n"
            f"10 nearest neighbours: {shares.mean():.1f} % of the same group, by chance {by_chance:.1f} %"
        )
        groups = [group_names.get(tables.groups[g], tables.groups[g]) for g in group]
        maps.draw_map(path, points, groups, [strings[i] for i in rows], shares, title, signature)
        print(path)


COMMANDS = {"evaluate": (evaluate, Evaluate), "map": (draw_map, Map)}

if __name__ == "__main__":
    run_command(__doc__, COMMANDS, default="evaluate")
