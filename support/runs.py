"""A run on a machine: its ranks, its signals, and a run folder that survives being killed at any moment."""

import hashlib
import os
import re
import signal
import sys
import zipfile
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from configs import UserError
from support import hardware
from support.checkpoints import WEIGHT_FILES, read_torch
from support.files import check_output, errors_named, write_atomic

CHECKPOINT, PREVIOUS = "checkpoint.pt", "checkpoint.prev.pt"
EXPORTED = {  # what a run writes for other programs: how the beginning of ours is recognised; see check_output
    "config.json": rb'(?s).*"kgi_tasks": ', "README.md": rb"(?s).*This is a UMLS-KGI-BERT", "tokenizer.json": rb"\{",
    "tokenizer_config.json": rb'\{\s*"tokenizer_class": "PreTrainedTokenizerFast",\s*"model_max_length"',
    "special_tokens_map.json": rb'\{\s*"pad_token": ',
}  # fmt: skip


class Ranks:
    """This process among those of the run, and its device."""

    def __init__(self, s):
        self.device, self.dtype = hardware.choose_device(s.device, s.precision)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.is_first = self.rank == 0

    def wrap(self, model):
        """The model as this rank trains it; all ranks meet here."""
        if self.world == 1:
            return model
        dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        return DistributedDataParallel(model)

    def all_reduce_sum(self, numbers):
        """A list of numbers, summed over all ranks."""
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def sum_tensor(self, tensor):
        """A tensor, summed over all ranks in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def mean(self, number):
        """The mean of a number over all ranks, so that they agree on it."""
        return self.all_reduce_sum([number])[0] / self.world

    def print(self, text):
        """Prints a line, above the progress bar, from the first rank."""
        if self.is_first:
            with errors_named("standard output"):
                tqdm.write(text, file=sys.stdout)
                sys.stdout.flush()

    def exit(self, status):
        """Ends the process, together with the other ranks.

        Everything is on disk by now. A rank that takes its threads down in the usual way aborts now and then
        ("terminate called without an active exception"), and torchrun then kills the rest.
        """
        if self.world > 1:
            dist.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
        sys.exit(status)


class StopSignal:
    """Has SIGTERM, SIGUSR1 and Ctrl-C ask the run to end after the current step; a second signal exits immediately.

    number: of the signal that came, 0 before.
    """

    def __init__(self):
        self.number = 0
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self.handle)

    def handle(self, number, _):
        self.number = number
        if os.environ.get("RANK", "0") == "0":  # not print, which the signal may have interrupted
            line = f"{self.name} received: saving after this step; a second {self.name} exits immediately\n"
            os.write(2, (("\n" if os.isatty(2) else "") + line).encode())
        signal.signal(number, signal.SIG_DFL)

    @property
    def name(self):
        return signal.Signals(self.number).name if self.number else "a signal to another rank"


def is_out_of_memory(error):
    """Whether an exception says that memory ran out; torch.OutOfMemoryError is a RuntimeError."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and bool(re.search("out of memory|allocate memory", str(error)))


def out_of_memory_message(rank, tokens, seq_len):
    """What to do about it. Args: tokens: of a micro-batch. seq_len: of the longest sequence."""
    advice = f"retry with --micro_tokens {tokens // 2}; the run will resume"
    if tokens // 2 < seq_len:  # a micro-batch of one sequence cannot be halved
        advice = "give a smaller model (--layers, --dim, --ffn) or build a data set with a smaller --seq_len"
    return f"rank {rank}: out of memory with micro-batches of {tokens:,} tokens; {advice}"


def budget_seconds(text):
    """Seconds of a length of time such as 24h, 1h30m, 90m or 45s. Raises: UserError."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
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
    try:
        with zipfile.ZipFile(path) as z:
            damaged = z.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError):
        damaged = path.name
    if damaged:
        raise UserError(f"{path}: damaged")
    content = read_torch(path)
    if not isinstance(content, dict) or not {"signature", "state"} <= content.keys():
        raise UserError(f"{path} is not a checkpoint of this program")
    return content


def find_checkpoint(out):
    """The last checkpoint of a run folder that is whole: (path, content, what is wrong with a later one).

    Path and content are None if there is none. Raises: UserError if all of them are damaged.
    """
    faults = []
    for path in (out / CHECKPOINT, out / PREVIOUS):
        try:
            return path, read_checkpoint(path), faults
        except FileNotFoundError:
            faults += [f"no {path}"] if path.name == CHECKPOINT else []
        except UserError as e:
            faults.append(str(e))
    if (out / CHECKPOINT).exists() or len(faults) > 1:
        raise UserError(f"{faults[-1]}; no checkpoint is left to resume from: choose another --out")
    return None, None, []


def check_signature(path, before, now):
    """Raises UserError if a checkpoint is of a run with other settings or data. before, now: {setting: value}."""
    for key, value in now.items():
        if before.get(key) != value:
            change = f"{key} has changed" if key in ("data", "init") else f"{key} was {before.get(key)}, now {value}"
            raise UserError(
                f"cannot resume {path}: {change}; use the same settings, another --out, or delete {path.parent}"
            )


def refuse_foreign_folder(out, records, n_damaged):
    """Raises UserError if a folder without a checkpoint holds files that a run would overwrite.

    Args: records, n_damaged: as reports.read_metrics has them of its metrics.jsonl.
    """
    # A run that ended before its first checkpoint leaves metrics.jsonl alone, with nothing to keep.
    foreign_metrics = n_damaged or any("valid" not in record and "mfu" not in record for record in records)
    names = [*EXPORTED, *WEIGHT_FILES]
    for name in names + ["metrics.jsonl"] * bool(foreign_metrics):
        if (out / name).exists():
            raise UserError(f"{out} holds a {name}, but no {CHECKPOINT} to resume from; choose another --out")


def check_exported(out):
    """Raises UserError if files of other programs have taken the place of those that a run writes."""
    for name, form in EXPORTED.items():
        check_output(out / name, form)


def digest(paths):
    """A short hash of the content of files."""
    out = hashlib.sha256()
    for path in paths:
        with open(Path(path), "rb") as f:
            out.update(hashlib.file_digest(f, "sha256").digest())
    return out.hexdigest()[:16]
