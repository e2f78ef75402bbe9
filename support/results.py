"""Result files, read and written: a results folder of fine-tuning, and what any file of results may hold.

A results folder holds scores.json, predictions-<seed>.conll, and the tagger of the best seed, as model/.
"""

import hashlib
import json
import re
from dataclasses import asdict
from pathlib import Path

from configs import UserError
from support import taggers
from support.corpora import corpus_folder, language_of
from support.files import check_output, name_of, read_utf8, write_atomic
from support.forms import find_misfit
from support.texts import replace_surrogates
from support.windows import OVERLAP

# ---------------------------------------------------------------- any file of results


def percent(value):
    """The form, as find_misfit has it, of a score."""
    fits = type(value) in (int, float) and 0 <= value <= 100 + 1e-6
    return "" if fits else f"is {ascii(value)[:20]}, which is no score"


THREE = (percent,) * 3  # precision, recall, F1
SEED = {"seed": int, "paper": THREE, "entity": THREE, "constant_baseline": percent}
SCORES = {  # the form of a scores.json, as far as tables read it; older files have no more
    "checkpoint": str, "language": str, "task": str, "settings": {"untrained": bool, str: None},
    "runs": [SEED | {str: None}], str: None,
}  # fmt: skip
WHOLE_SEED = SEED | {
    "macro": THREE, "labels": {str: (*THREE, int)}, "interval": {"paper": (percent,) * 2, "entity": (percent,) * 2},
    "constant_baseline_entity": percent, str: {"entity": THREE, str: None},  # "dev", if the corpus has such a split
}  # fmt: skip


def read_record(path, form):
    """The object in a JSON file of results. Raises: UserError, OSError, ValueError or TypeError for another file."""
    if not path.is_file():
        raise ValueError("a folder, a pipe or a device")
    record = json.loads(read_utf8(path), parse_constant=reject_constant)
    if misfit := find_misfit(record, form):
        raise ValueError(misfit)
    return record


def reject_constant(name):
    """Raises TypeError for NaN and Infinity, which Python's JSON lets in."""
    raise TypeError(f"{name!r} is not a number")


def read_records(folder, pattern, form):
    """Yields (path, its object) of each JSON file of a form below a folder; another file is named in a line."""
    for path in sorted(Path(folder).rglob(pattern)):
        try:
            record = read_record(path, form)
        except (UserError, OSError, ValueError, TypeError, RecursionError) as e:
            reason = " ".join(f"{type(e).__name__}: {e}"[:200].split())
            print(f"{path}: not a file of results, left out ({reason})")
        else:
            yield path, record


def differing_settings(before, now):
    """Which settings of two signatures differ; a digest only if its path does not, which says more.

    For results that are older than a setting, its value is "".
    """
    before, now = ({k: replace_surrogates(x) if type(x) is str else x for k, x in s.items()} for s in (before, now))
    keys = [k for k in now if before.get(k, "") != now[k]]
    return [k for k in keys if not (k.endswith(" sha256") and k.removesuffix(" sha256") in keys)]


def read_results_of(path, signature, form, place):
    """The results in a file, {} if there is none. Raises: UserError if they are of another signature, or of none.

    Args: form: of the file, as find_misfit has it. place: its name in messages.
    """
    if not path.exists():
        return {}
    try:
        record = read_record(path, form)
    except (UserError, ValueError, TypeError, RecursionError):
        raise UserError(f"{path} is not a file of results and is not overwritten; choose another --out") from None
    before = record.get("signature")
    if not isinstance(before, dict):
        raise UserError(f"{place} holds results without a record of all their settings; choose another --out")
    if other := differing_settings(before, signature):
        values = [(k, str(before.get(k, ""))[:200] or "none", str(signature[k]) or "none") for k in other]
        changes = ", ".join(f"{k} {was}, now {now}" for k, was, now in values)
        raise UserError(f"{place} holds results of {changes}; choose another --out")
    return record


def check_results_file(path, signature):
    """Raises UserError if there is a file that is about to be replaced and is not one of results of this signature."""
    check_output(path, rb'\{\s*"checkpoint": ')
    read_results_of(path, signature, {str: None}, path)


# ---------------------------------------------------------------- a results folder of fine-tuning


def describe_results(s, corpus):
    """(the results folder, the record of a run without its scores)."""
    name, language = name_of(s.checkpoint), language_of(s.corpus, s.data)
    name += "-untrained" if s.untrained else ""
    task = s.corpus
    if not language or corpus.language != language:  # of several languages, or of your own: what tells which it is
        task += f"-{language or name_of(s.data)}"
    task += re.sub(r"[^\w.-]", "-", f"-{s.labels}") if s.labels else ""
    task += f"-{s.epochs}-epochs" if s.epochs > 1 else ""
    out = Path(s.out or Path("results", name, task))
    settings = {k: v for k, v in asdict(s).items() if k not in ("seed", "runs")}
    record = {"checkpoint": str(s.checkpoint), "corpus": s.corpus, "task": task, "language": language}
    return out, record | {"settings": settings}


def check_results(s, out):
    """Raises UserError if a results folder holds what fine-tuning would replace, and has not written."""
    check_output(out / "model", taggers.TAGGER_FILES, s.checkpoint)
    for seed in range(s.seed, s.seed + s.runs):
        check_output(out / f"predictions-{seed}.conll", rb"\n*([^\t\n]*\t){2}[^\t\n]+\n")


def result_signature(s, setup):
    """All that the scores of a seed depend on, but the device: results of one folder have one signature.

    The overlap of windows is a part of it where some do, as earlier versions had another. Args: setup: finetune.Setup.
    """
    checkpoint = hashlib.sha256(Path(s.checkpoint, "config.json").read_bytes() + setup.tokenizer.to_str().encode())
    for name, tensor in (setup.encoder.state_dict() | setup.head).items():
        checkpoint.update(name.encode() + tensor.contiguous().numpy().tobytes())
    corpus = hashlib.sha256()
    for d in (*setup.splits["train"], None, *setup.splits["test"]):
        corpus.update(repr(d and (d.tokens, d.labels, d.spans, d.gold, d.breaks, d.group)).encode())
    n_read = sum(len(w.word_positions) for windows in setup.windows.values() for w in windows)
    n_words = sum(len(d.tokens) for documents in setup.splits.values() for d in documents)
    values = {"checkpoint": str(Path(s.checkpoint).resolve()), "corpus": s.corpus}
    values |= {"data": str(Path(corpus_folder(s.corpus, s.data)).resolve()), "max_len": setup.max_len}
    values |= {"overlap of windows": OVERLAP if n_read > n_words else ""}
    values |= {
        k: getattr(s, k) for k in ("labels", "epochs", "batch_size", "lr", "weight_decay", "untrained", "precision")
    }
    return values | {"checkpoint sha256": checkpoint.hexdigest(), "data sha256": corpus.hexdigest()}


def read_earlier_scores(out, signature, seeds):
    """{seed: its scores} in a results folder, to which new seeds are added. Raises: as read_results_of."""
    record = read_results_of(out / "scores.json", signature, SCORES | {"runs": [WHOLE_SEED]}, out)
    runs = {r["seed"]: r for r in record.get("runs", ())}
    if runs:
        print(f"{out} holds seeds {', '.join(map(str, sorted(runs)))} of the same settings; new ones are added")
    if again := sorted(runs.keys() & seeds):
        print(f"seeds {', '.join(map(str, again))} are replaced, each when its new result is whole", flush=True)
    return runs


def write_predictions(path, documents, predictions):
    """A token a line: the token, its gold label and the predicted one, with TABs between; a blank line after each."""
    blocks = ["\n".join(map("\t".join, zip(d.tokens, d.labels, p))) + "\n\n" for d, p in zip(documents, predictions)]
    write_atomic(path, lambda f: f.write("".join(blocks).encode()))


# ---------------------------------------------------------------- its tagger


def describe_windows(s, max_len, test, corpus):
    """What the config.json of a tagger keeps, so that text is read and cut as in its evaluation."""
    has_text = test[0].text is not None  # else each word was read with a space before it
    return {"corpus": s.corpus, "has_text": has_text, "pos": corpus.pos, "max_len": max_len, "precision": s.precision}


def keep_best_tagger(folder, scores, seed, classifier, tokenizer, details):
    """Writes the tagger of a seed that was just scored, unless the folder holds a better one of an earlier seed.

    The best has the highest strict entity F1 on the dev split; the lowest seed wins a tie, and decides where there is
    no dev split. The test split never decides.

    Args: scores: {seed: its scores} of the results folder. Returns: which seed the folder holds, and why.
    """

    def rank(k):  # the lower, the better
        return -scores[k].get("dev", {"entity": [0, 0, 0]})["entity"][2], k

    before = taggers.read_tagger_details(folder).get("seed")
    is_known = type(before) is int and before in scores  # not one that an interrupted run left without its scores
    if is_known and before != seed and rank(before) < rank(seed):
        seed = before
    else:
        taggers.save_tagger(folder, classifier, tokenizer, details | {"seed": seed})
    if "dev" in scores[seed]:
        return {"seed": seed, "chosen": f"the best on the dev split: entity F1 {scores[seed]['dev']['entity'][2]:.2f}"}
    return {"seed": seed, "chosen": "the lowest seed, as the corpus has no dev split"}
