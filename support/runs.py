"""A run on a machine: its signals, and a run folder that survives being killed at any moment."""

import hashlib
import json
import os
import signal
import sys
import time
import zipfile
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch

from configs import UserError, program_name, warmup_steps
from support import reports, tokenizers
from support.checkpoints import read_config
from support.datasets import RUN_FILE, write_run
from support.files import check_output, reject_lfs_pointer, write_atomic
from support.forms import find_misfit
from support.hardware import compiler_message
from support.pooling import write_pooling
from support.programs import is_out_of_memory, read_launch
from support.tensors import WEIGHT_FILES, read_torch, weight_files

EXIT_REQUEUE = 75  # exit status after a signal: "try again later" (EX_TEMPFAIL of sysexits.h)
CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
MAY_CHANGE_ON_RESUME = (
    "data", "out", "init", "max_tokens", "device", "layout", "compile", "valid_every", "valid_examples", "save_every",
    "save_minutes", "log_every",
)  # fmt: skip
# Settings that only earlier versions have, or lack, with the values of their runs that can be resumed.
DELETED, ADDED = {"bf16_stream": False, "attention_dropout": True}, {"family": "distilbert"}
EXPORTED = {  # what a run writes for other programs: how the beginning of ours is recognised; see check_output
    "config.json": rb'(?s).*"kgi_tasks": ', "README.md": rb"(?s).*This is a UMLS-KGI-BERT", "tokenizer.json": rb"\{",
    "tokenizer_config.json": rb'\{\s*"tokenizer_class": "PreTrainedTokenizerFast",\s*"model_max_length"',
    "special_tokens_map.json": rb'\{\s*"pad_token": ',
}  # fmt: skip


@dataclass
class TrainState:
    """Where a run is. A checkpoint holds this beside model, optimizer and scaler, and no more.

    The order, the masks and the dropout are functions of (seed, step, micro-batch, rank).
    """

    step: int = 0
    steps: int = 0  # of the whole run; 0: not yet known, with a time budget
    validated: int = 0  # the step of the last validation: one that a signal interrupted is made up for on resume
    skipped: int = 0  # fp16 steps whose gradients overflowed
    overflows: int = 0  # of them in a row, up to now
    compiled: bool = False  # whether the encoder was
    sums: list = field(default_factory=list)  # since the last line of the log: (names, 3) loss, correct, targets
    work: dict = field(default_factory=dict)  # since the last line of the log

    def begin_interval(self, n_names):
        """A line of the log was written: the next one counts from here."""
        self.sums = np.zeros((n_names, 3)).tolist()
        self.work = dict.fromkeys(("seconds", "tokens", "computed", "flops"), 0.0)


class Interrupted(Exception):
    """A signal asked the run to stop: the unfinished step or validation is dropped, on all ranks at once."""


class StopSignal:
    """On SIGTERM, SIGUSR1 or Ctrl-C: drop the unfinished step, save, exit. A second signal exits immediately."""

    def __init__(self):
        self.number, self.is_main_process = 0, read_launch().rank == 0  # number: of the signal, 0 before
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


def vote_to_stop(run, is_last):
    """Raises Interrupted on all ranks, if a signal came to any; called before each micro-batch of a pass.

    A rank with a signal votes at once, the others before their last micro-batch. So each rank votes once a pass, and
    gradients are exchanged by all ranks or by none.
    """
    asked = run.stop_signal.number > 0
    if (asked or is_last) and run.ranks.all_reduce_sum([float(asked)])[0]:
        raise Interrupted


@contextmanager
def failure_named(run):
    """Ends a run out of memory, or with an encoder that fails to compile again, by a line of advice from any rank."""
    place = f"{program_name()}: error: rank {run.ranks.rank}"
    try:
        yield
    except (RuntimeError, MemoryError) as e:
        if not is_out_of_memory(e):
            if not (run.compiled and isinstance(e, torch._dynamo.exc.TorchDynamoException)):
                raise
            advice = "retry with --compile off; the run will resume"
            sys.exit(f"{place}: torch.compile failed after step {run.state.step:,}: {compiler_message(e)}; {advice}")
        tokens = run.batches.max_tokens
        advice = f"retry with --max_tokens {tokens // 2}; the run will resume"
        if tokens // 2 < run.train.seq_len:  # a micro-batch of one sequence cannot be halved
            advice = "give a smaller model (--layers, --dim, --ffn) or build a data set with a smaller --seq_len"
        if run.objectives:
            names = " and ".join(objective.name for objective in run.objectives)
            advice += f"; if it ends so again, begin another with fewer examples of {names} in a step"
        sys.exit(f"{place}: out of memory with micro-batches of {tokens:,} tokens; {advice}")


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
    """The latest intact checkpoint of a run folder: (path, content, what is wrong with a later one).

    Path and content are None if there is none. like: the checkpoint that this run would write now.
    Raises: UserError if none of them is intact.
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
    state_form = form_of(like["state"])
    parts = {"signature": signature_fault, "state": state_form | {"sums": None}}
    if misfit := find_misfit(content, dict.fromkeys(like) | parts):
        return misfit
    state, optimizer = content["state"], content["optimizer"]
    if not max(state["skipped"], state["overflows"]) <= state["step"] <= state["steps"]:
        return f"state is at step {state['step']} of {state['steps']}"
    if signature_change(content, like["signature"]):
        return ""
    # In the order of the model's parameters; it may be empty before the first step that was not skipped.
    moments = [{"step": torch.zeros(()), "exp_avg": x, "exp_avg_sq": x} for x in like["model"].values()]
    found = optimizer.get("state") if type(optimizer) is dict else optimizer
    is_new = found == {} and state["step"] == state["skipped"]
    scaler = content["scaler"] or {}  # empty if that run had none
    return (
        find_misfit(state["sums"], state_form["sums"], "sums in state")
        or find_misfit(content["model"], form_of(like["model"]), "model")
        or find_misfit(found, {} if is_new else form_of(dict(enumerate(moments))), "state of the optimizer")
        or find_misfit(scaler, form_of(torch.amp.GradScaler("cpu").state_dict()) if scaler else {}, "scaler")
    )


def form_of(like):
    """The form, as find_misfit has it, of a value like this one: same keys, lengths and shapes, and finite numbers.

    Whole numbers are not negative.
    """
    if isinstance(like, dict):
        return {key: form_of(x) for key, x in like.items()}
    if type(like) is list:
        return tuple(map(form_of, like))
    if isinstance(like, torch.Tensor):
        return partial(tensor_fault, like)
    if type(like) in (bool, int):
        return type(like)
    return lambda x: "" if type(x) in (int, float) and abs(x) < 1e300 else f"is {ascii(x)[:20]}"


def tensor_fault(like, value):
    """What is wrong with a value where there was a tensor `like`; "" if nothing."""
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.is_floating_point():
        return "is no tensor of numbers"
    return "" if value.shape == like.shape else f"has shape {[*value.shape]}, not {[*like.shape]}"


def signature_fault(value):
    """What is wrong with a value where there was a signature; "" if nothing. Two that JSON holds can be compared."""
    with suppress(TypeError, ValueError, RecursionError):
        if type(value) is dict and json.dumps(value):
            return ""
    return "does not hold the settings of a run"


def signature_change(content, now):
    """Which setting of a checkpoint is another one now, in words; "" if none. now: the signature of this run."""
    before = ADDED | {key: value for key, value in content["signature"].items() if value != DELETED.get(key)}
    for key in now | before:
        value = now.get(key)
        # Where the steps are not known yet, a time budget was being measured: another one may be given.
        if before.get(key) != value and (key != "time_budget" or content["state"]["steps"]):
            if key == "objectives":
                return objectives_change(before.get(key), value)
            change = f"was {before.get(key)}, now {now.get(key, 'not a setting any more')}"
            return f"{key} has changed" if key in ("data", "init") else f"{key} {change}"
    return ""


def objectives_change(before, now):
    """Which losses beside those of the tasks are other ones now. before: of a file, which may say anything."""
    were, are = (" ".join(map(str, x)) if isinstance(x, dict) and x else "none" for x in (before, now))
    return f"the losses beside the tasks were {were}, now {are}" if were != are else f"the data of {are} has changed"


def check_signature(path, content, now):
    """Raises UserError if a checkpoint is of a run with other settings or data. now: the signature of this run."""
    if change := signature_change(content, now):
        advice = f"use the same settings, another --out, or delete {path.parent}"
        raise UserError(f"cannot resume {path}: {change}; {advice}")


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


# ---------------------------------------------------------------- a run of kgi.py, saved and resumed


def run_signature(run):
    """What must be the same for a checkpoint to be resumed."""
    settings = {k: v for k, v in asdict(run.s).items() if k not in MAY_CHANGE_ON_RESUME}
    objectives = {objective.name: objective.signature for objective in run.objectives}
    return {"objectives": objectives} | settings | {"data": run.train.manifest["sha256"], "init": run.init}


def checkpoint_content(run):
    """What a checkpoint holds."""
    return {
        "signature": run_signature(run), "state": asdict(run.state), "model": run.model.state_dict(),
        "optimizer": run.optimizer.state_dict(), "scaler": run.scaler.state_dict(),
    }  # fmt: skip


def save_checkpoint(run):
    """Writes checkpoint.pt, to resume from, and the model as other programs open it.

    A model that has diverged is not written: the checkpoint before it stays.
    """
    began = time.monotonic()
    if not all(p.isfinite().all() for p in run.model.parameters()):
        stop_diverged(run, "the weights are not finite")
    if run.ranks.is_main_process:
        write_checkpoint(run.out, checkpoint_content(run), keep_previous=not run.fell_back)
        run.fell_back = False
        export_checkpoint(run)
    run.ranks.all_reduce_sum([0.0])  # the other ranks wait for the first, which writes
    if run.saved < 0:
        at_latest = f", at the latest after {run.s.save_minutes:g} minutes" if run.s.save_minutes else ""
        seconds = time.monotonic() - began
        run.ranks.print(f"checkpoint: saved in {seconds:.1f} s, every {run.save_every:,} steps{at_latest}")
    run.saved, run.saved_at = run.state.step, time.monotonic()


def resume(run):
    """Resumes from the latest intact checkpoint, if there is one; lines of metrics.jsonl after it are dropped."""
    path, content, faults = find_checkpoint(run.out, checkpoint_content(run))
    metrics = run.out / "metrics.jsonl"
    records, n_damaged = reports.read_metrics(metrics)
    if content:
        check_signature(path, content, run_signature(run))
        run.model.load_state_dict(content["model"])
        # Its settings are those of this run, the learning rate that of each step.
        run.optimizer.load_state_dict(run.optimizer.state_dict() | {"state": content["optimizer"]["state"]})
        if content["scaler"]:  # empty if that run had none
            run.scaler.load_state_dict(content["scaler"])
        run.state, run.fell_back = TrainState(**content["state"]), bool(faults)
        step = run.state.step
        if faults:
            run.ranks.print(f"{faults[0]}; resuming from the previous checkpoint, of step {step:,}")
        if n_damaged:
            run.ranks.print(f"{metrics}: {n_damaged:,} damaged lines are dropped")
        elif not records and step:
            run.ranks.print(f"{metrics} is missing: what it held up to step {step:,} is lost")
        known = {True: run.state.validated, False: step}
        records = [record for record in records if step and record["step"] <= known["valid" in record]]
    else:
        refuse_foreign_folder(run.out, records, n_damaged)
        records = []  # of a run that ended before its first checkpoint
    if run.ranks.mean(run.state.step) != run.state.step:
        raise UserError(f"the ranks see different checkpoints in {run.out}; all nodes must share the folder")
    if run.ranks.is_main_process:
        run.out.mkdir(parents=True, exist_ok=True)
        lines = "".join(json.dumps(record) + "\n" for record in records)
        if metrics.exists():
            write_atomic(metrics, lambda f: f.write(lines.encode()))


def export_checkpoint(run):
    """Writes the model as a folder that finetune.py, and AutoModel of other libraries, open; with a model card."""
    s, state, c, folder = run.s, run.state, run.model.encoder.config, run.out
    tokenizers.save(run.tokenizer, folder, c.max_positions, c.type_vocab_size)
    weights = dict(zip(run.names, run.coefficients.tolist()))
    values = {
        "steps": f"{state.step:,} of {state.steps:,}", "effective batch": s.batch_size, "peak learning rate": s.lr,
        "warm-up steps": f"{warmup_steps(s, state.steps):,.0f}", "dropout": s.dropout,
        "MLM probability": s.mlm_probability, "seed": s.seed,
    }  # fmt: skip
    titles = {name: run.titles[name] for name in run.trained}
    card = reports.model_card(folder, s.init, c, run.train.manifest, weights, values, titles)
    write_atomic(folder / "README.md", lambda f: f.write(card.encode()))
    write_run(folder, run.train.folder, run.train.manifest, s.tables.get("finetune", {}))
    write_pooling(folder, run.pooling, c.dim, c.max_positions)
    run.model.save(folder)


def is_exported(run):
    """Whether the run folder holds the model of its last checkpoint: all of it, and none is older."""
    paths = [run.out / name for name in (CHECKPOINT, "model.safetensors", *EXPORTED, "modules.json", RUN_FILE)]
    is_complete = all(path.exists() for path in paths)
    return is_complete and paths[0].stat().st_mtime_ns <= paths[1].stat().st_mtime_ns


def stop_diverged(run, what):
    """Ends a run whose numbers are no longer finite. Its last checkpoint stays."""
    path = run.out / CHECKPOINT
    kept = f"{path} is the last checkpoint" if path.exists() else "there is no checkpoint yet"
    advice = "Try a lower --lr or --precision fp32, with another --out"
    raise UserError(f"step {run.state.step:,}: {what}; {kept}. {advice}")
