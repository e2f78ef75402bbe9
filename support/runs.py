"""A run on a machine: its signals, and a run folder that survives being killed at any moment."""

import hashlib
import os
import re
import signal
import zipfile
from functools import partial
from pathlib import Path

import torch

from configs import UserError
from support.checkpoints import read_config
from support.datasets import RUN_FILE
from support.files import check_output, reject_lfs_pointer, write_atomic
from support.forms import find_misfit
from support.programs import read_launch
from support.tensors import WEIGHT_FILES, read_torch, weight_files

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
EXPORTED = {  # what a run writes for other programs: how the beginning of ours is recognised; see check_output
    "config.json": rb'(?s).*"kgi_tasks": ', "README.md": rb"(?s).*This is a UMLS-KGI-BERT", "tokenizer.json": rb"\{",
    "tokenizer_config.json": rb'\{\s*"tokenizer_class": "PreTrainedTokenizerFast",\s*"model_max_length"',
    "special_tokens_map.json": rb'\{\s*"pad_token": ',
}  # fmt: skip


class Interrupted(Exception):
    """A signal asked the run to stop: the unfinished step or validation is dropped, on all ranks at once."""


class StopSignal:
    """Has SIGTERM, SIGUSR1 and Ctrl-C ask the run to save its last finished step and end; a second exits immediately.

    number: of the signal that came, 0 before.
    """

    def __init__(self):
        self.number, self.is_main_process = 0, read_launch().rank == 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self.handle)

    def handle(self, number, _):
        self.number = number
        if self.is_main_process:  # not print, which the signal may have interrupted
            line = f"{self.name} received: saving the last finished step; a second {self.name} exits immediately\n"
            os.write(2, (("\n" if os.isatty(2) else "") + line).encode())
        signal.signal(number, signal.SIG_DFL)

    @property
    def name(self):
        return signal.Signals(self.number).name if self.number else "a signal to another rank"


def memory_advice(rank, tokens, seq_len):
    """What to do if memory ran out in a step. Args: tokens: of a micro-batch. seq_len: of the longest sequence."""
    advice = f"retry with --micro_tokens {tokens // 2}; the run will resume"
    if tokens // 2 < seq_len:  # a micro-batch of one sequence cannot be halved
        advice = "give a smaller model (--layers, --dim, --ffn) or build a data set with a smaller --seq_len"
    return f"rank {rank}: out of memory with micro-batches of {tokens:,} tokens; {advice}"


def budget_seconds(text):
    """Seconds of a length of time such as 24h, 1h30m, 90m or 45s. Raises: UserError."""
    match = re.fullmatch(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", text)
    total = sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1))) if match else 0
    if not 0 < total < 1e8:
        raise UserError(f"time_budget = '{text}' is not a length of time such as 24h, 1h30m or 90m")
    return total


# ---------------------------------------------------------------- the run folder


def write_checkpoint(out, content, keep_previous):
    """Writes checkpoint.pt and keeps the one before it as checkpoint.prev.pt.

    The old file is replaced only when the new one is complete on disk. The previous one is kept because a disk can lose
    data that it has confirmed. keep_previous: False if the last checkpoint on disk is damaged.
    """
    write_atomic(out / CHECKPOINT, lambda f: torch.save(content, f), out / PREVIOUS if keep_previous else None)


def read_checkpoint(path):
    """The content of a file of write_checkpoint.

    Raises: FileNotFoundError; UserError if it is damaged, by a single bit too (torch.load does not look at check sums).
    """
    reject_lfs_pointer(path)
    try:
        with zipfile.ZipFile(path) as z:
            damaged = z.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError):
        damaged = path.name
    if damaged:
        raise UserError(f"{path}: damaged")
    return read_torch(path)


def find_checkpoint(out, like):
    """The last checkpoint of a run folder that is whole: (path, content, what is wrong with a later one).

    Path and content are None if there is none. like: the checkpoint that this run would write now.
    Raises: UserError if none of them is whole.
    """
    faults = []
    for path in (out / CHECKPOINT, out / PREVIOUS):
        try:
            content = read_checkpoint(path)
            if fault := find_fault(content, like):
                raise UserError(f"{path} is not a checkpoint of this program: {fault}")
            return path, content, faults
        except FileNotFoundError:
            faults += [f"no {path}"] if path.name == CHECKPOINT else []
        except UserError as e:
            faults.append(str(e))
    if (out / CHECKPOINT).exists() or len(faults) > 1:
        raise UserError(f"{faults[-1]}; no checkpoint is left to resume from: choose another --out")
    return None, None, []


def find_fault(content, like):
    """What a checkpoint lacks to be resumed, in words; "" if nothing. like: a checkpoint of the run that resumes.

    That of a run with other settings needs to say no more than these: check_signature is about to refuse it.
    """
    if misfit := find_misfit(content, dict.fromkeys(like)):
        return misfit
    signature, state, optimizer = (content[key] for key in ("signature", "state", "optimizer"))
    if type(signature) is not dict or not is_plain(signature):
        return "signature does not hold the settings of a run"
    # One of an older version lacks what was added to the state since.
    needed = {"step", "steps", "statistics", "work"}.union(state if type(state) is dict else ())
    form = form_of({key: x for key, x in like["state"].items() if key in needed})
    if misfit := find_misfit(state, form, "state"):
        return misfit
    if not max(state.get("skipped", 0), state.get("overflows", 0)) <= state["step"] <= state["steps"]:
        return f"state is at step {state['step']} of {state['steps']}"
    if signature_change(content, like["signature"]):
        return ""
    # In the order of the model's parameters; it may be empty before the first step that was not skipped.
    moments = [{"step": torch.zeros(()), "exp_avg": x, "exp_avg_sq": x} for x in like["model"].values()]
    found = optimizer.get("state") if type(optimizer) is dict else optimizer
    is_new = found == {} and state["step"] == state.get("skipped", 0)
    scaler = content["scaler"] or {}  # empty if that run had none
    return (
        find_misfit(content["model"], form_of(like["model"]), "model")
        or find_misfit(found, {} if is_new else form_of(dict(enumerate(moments))), "state of the optimizer")
        or find_misfit(scaler, form_of(torch.amp.GradScaler("cpu").state_dict()) if scaler else {}, "scaler")
    )


def form_of(like):
    """The form, as find_misfit has it, of a value like this one: same keys, lengths and shapes, and finite numbers.

    Whole numbers are not negative. What is None may be anything.
    """
    if isinstance(like, dict):
        return {key: form_of(x) for key, x in like.items()}
    if type(like) is list:
        return tuple(map(form_of, like))
    if isinstance(like, torch.Tensor):
        return partial(tensor_fault, like)
    if like is None:
        return None
    return type(like) if type(like) in (bool, int) else number_fault


def tensor_fault(like, value):
    """What is wrong with a value where there was a tensor `like`; "" if nothing."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return "is no tensor of numbers"
    return "" if value.shape == like.shape else f"has shape {[*value.shape]}, not {[*like.shape]}"


def number_fault(value):
    """What is wrong with a value where there was a number, maybe below 0; "" if nothing."""
    return "" if type(value) in (int, float) and abs(value) < 1e300 else f"is {ascii(value)[:20]}"


def is_plain(value):
    """Whether a value is of those that a file of settings has: two of them can be compared."""
    parts = [*value, *value.values()] if type(value) is dict else value if type(value) is list else ()
    return type(value) in (dict, list, str, int, float, bool, type(None)) and all(map(is_plain, parts))


def signature_change(content, now):
    """Which setting of a checkpoint is another one now, in words; "" if none. now: the signature of this run."""
    before = content["signature"]
    for key, value in now.items():
        # Where the steps are not known yet, a time budget was being measured: another one may be given.
        if before.get(key) != value and (key != "time_budget" or content["state"]["steps"]):
            return f"{key} has changed" if key in ("data", "init") else f"{key} was {before.get(key)}, now {value}"
    return ""


def check_signature(path, content, now):
    """Raises UserError if a checkpoint is of a run with other settings or data. now: the signature of this run."""
    if change := signature_change(content, now):
        raise UserError(
            f"cannot resume {path}: {change}; use the same settings, another --out, or delete {path.parent}"
        )


def refuse_foreign_folder(out, records, n_damaged):
    """Raises UserError if a folder without a checkpoint holds files that a run would overwrite.

    Args: records, n_damaged: as reports.read_metrics has them of its metrics.jsonl.
    """
    # A run that ended before its first checkpoint leaves metrics.jsonl alone, with nothing to keep.
    foreign_metrics = n_damaged or any("valid" not in record and "mfu" not in record for record in records)
    names = [*EXPORTED, "modules.json", "sentence_bert_config.json", "1_Pooling", RUN_FILE, *WEIGHT_FILES]
    for name in names + ["metrics.jsonl"] * bool(foreign_metrics):
        if (out / name).exists():
            raise UserError(f"{out} holds a {name}, but no {CHECKPOINT} to resume from; choose another --out")


def check_exported(out):
    """Raises UserError if files of other programs have taken the place of those that a run writes."""
    for name, form in EXPORTED.items():
        check_output(out / name, form)


def signature_of(checkpoint):
    """What results say of the checkpoint that they are of: its path, and a hash of its files."""
    read_config(checkpoint)  # says what is wrong with the folder
    files = [Path(checkpoint, "config.json"), *weight_files(checkpoint)]
    return {"checkpoint": str(Path(checkpoint).resolve()), "checkpoint sha256": digest(files)}


def digest(paths):
    """A short hash of the content of files."""
    out = hashlib.sha256()
    for path in paths:
        with open(Path(path), "rb") as f:
            out.update(hashlib.file_digest(f, "sha256").digest())
    return out.hexdigest()[:16]
