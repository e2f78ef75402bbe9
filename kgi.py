"""Pre-training: one encoder on four tasks with one mixed cross-entropy (paper, sections 3.1 and 4.1).

    python kgi.py                                            the only data set under datasets/
    python kgi.py configs/v1-fr.toml
    torchrun --nproc_per_node 4 kgi.py configs/v1-fr.toml --precision fp16
    torchrun --nproc_per_node 4 kgi.py configs/drbert-fr.toml --init DrBERT-4GB
    torchrun --nproc_per_node 2 kgi.py --data datasets/es --layers 6 --heads 6 --dim 384 --ffn 1536
    python kgi.py configs/v1-fr.toml --budget 24h --tasks mlm,ep,lp --out runs/no-triples
    sbatch configs/slurm.sh configs/v1-fr.toml               several nodes, queued again until it is done
    python kgi.py plot runs/kgi-fr runs/kgi-es               their curves as one picture
    python kgi.py --evaluate runs/kgi-fr [OTHER ...]         what they know of held-out pairs, and of synonyms
    python kgi.py --map runs/kgi-fr                          a picture of its terms by semantic group

Each step takes one effective batch, whatever the number of ranks and the size of the micro-batches:
they change the speed and nothing else. Started again, the same command goes on from the last checkpoint; SIGTERM,
SIGUSR1 and Ctrl-C have it save after the step it is at and leave with status 75, a second one at once.
Written to runs/<name>/: metrics.jsonl, the last two checkpoints, and the model (config.json, weights, tokenizer).
"""

import fcntl
import hashlib
import json
import math
import os
import re
import signal
import sys
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import configs
import data
import model as models
from configs import UserError, tokenization, write_atomic
from data import TASKS

VALID_EPOCH = 2**32 - 1  # the masks of validation: the same at every step, of no training epoch
CHECKPOINTS = ("checkpoint.pt", "checkpoint.before.pt")  # the last one and the one before it
LAYOUT = ("data", "out", "init", "micro_tokens", "device", "valid_every", "save_every", "log_every")
SKIPS = 20  # fp16 overflows in a row, each at half the scale before, that end a run
SPELLED = 50_000  # terms, at most, that are also compared by spelling: it takes 16 kB each
STOPPED = 75  # exit status after a signal that asked to stop: "try again later" (EX_TEMPFAIL of sysexits.h)


def alphas(n):
    """Weights of EP, LP and TC from their numbers of training examples (section 4.1).

    alpha_i = sum_{j != i} n_j / (2 sum_k n_k), j and k over the three tasks: they sum to 1, the weight
    of MLM, and the more examples a task has, the less each counts. The 2 is the number of tasks less one, so that
    it also holds for two tasks, where an ablation leaves one out (n = 0); a task alone has the weight 1.
    """
    total, others = sum(n), sum(x > 0 for x in n) - 1
    return [(total - x) / (others * total) if others > 0 and x else float(x > 0) for x in n]


def seconds(text):
    """Seconds of a length of time such as 24h, 1h30m, 90m or 45s."""
    match = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", text)
    total = sum(int(n or 0) * unit for n, unit in zip(match.groups(), (86400, 3600, 60, 1))) if match else 0
    if not 0 < total < 1e8:
        raise UserError(f"budget = '{text}' is not a length of time such as 24h, 1h30m or 90m")
    return total


def learning_rate(step, steps, warmup, peak):
    """Triangle: from zero up to `peak` over the warm-up, then linearly down to zero (appendix B)."""
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def read_record(line):
    """A line of metrics.jsonl, {} if it is damaged: cut off, not JSON, or not a step with numbers."""
    try:
        record = json.loads(line)
        step, both = record["step"], record | record.get("valid", {})
        numbers = [x for key, x in both.items() if key != "valid"]
        good = all(type(x) is float or type(x) is int and abs(x) < 2**53 for x in numbers)
        return record if good and type(step) is int and step >= 0 else {}
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}


def read_metrics(path):
    """(the records of a metrics.jsonl, the number of its damaged lines); none of either if there is no file."""
    lines = [line for line in path.read_bytes().split(b"\n") if line] if path.exists() else []
    records = [record for line in lines if (record := read_record(line))]
    return records, len(lines) - len(records)


def find_data(folder, checkpoint=""):
    """The data set: `folder`, or the only one under datasets/ (that was built with the checkpoint's tokenizer)."""
    if folder:
        return Path(folder)
    found, faults = [], ""
    tokenizer = data.load_tokenizer(checkpoint).to_str() if checkpoint else ""
    for path in sorted(Path("datasets").glob("[!.]*")):
        try:
            if (path / "manifest.json").exists() and (not checkpoint or tokenizer_of(path) == tokenizer):
                found.append(path)
        except (UserError, OSError) as e:  # a data set that cannot be read; another one may do
            faults += f"; {e}"
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several data sets: say --data with one of {', '.join(map(str, found))}")
    if checkpoint:
        raise UserError(
            f"no data set under datasets/ has the tokenizer of {checkpoint}; {how_to_build(checkpoint)} "
            f"(--evaluate and --map can do with another one, given as --data){faults}"
        )
    raise UserError(
        "no data set under datasets/; build one with 'make data LANG=fr', or say --data (of 'make demo': demo/fr)"
        f"{faults}"
    )


def tokenizer_of(folder):
    """The tokenizer of a data set, as a text that can be compared."""
    return Tokenizer.from_str(data.read_tokenizer(folder).decode()).to_str()


def has_tokenizer_of(checkpoint, folder):
    """Whether a data set was built with the tokenizer of a checkpoint (relation tokens added if it had none)."""
    return tokenizer_of(folder) == data.load_tokenizer(checkpoint).to_str()


def how_to_build(checkpoint):
    return f"build one with: make data LANG=.. TOKENIZER='{checkpoint}'"


def digest(paths):
    """A short hash of what is in files."""
    out = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as f:
            out.update(hashlib.file_digest(f, "sha256").digest())
    return out.hexdigest()[:16]


def read_checkpoint(path):
    """The state in a file that Trainer.save wrote.

    Raises: FileNotFoundError; UserError if it is damaged, by a single bit too (torch.load does not look at check sums).
    """
    try:
        with zipfile.ZipFile(path) as z:
            damaged = z.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OverflowError):
        damaged = path.name
    if damaged:
        raise UserError(f"{path}: damaged")
    state = models.read_torch(path)
    if not isinstance(state, dict) or "identity" not in state:
        raise UserError(f"{path} is not a checkpoint of this program")
    return state


def tensors(micro, pin):
    """A micro-batch of data.micro_batches as the arguments of KGIBert.forward. pin: for copies to a GPU meanwhile."""
    ids = torch.from_numpy(micro["ids"])
    mask = torch.arange(ids.shape[1]) < torch.from_numpy(micro["length"])[:, None]
    sizes = torch.bincount(torch.from_numpy(micro["task"]), minlength=len(TASKS)).tolist()
    out = [ids, None if mask.all() else mask, torch.from_numpy(micro["position"]), torch.from_numpy(micro["label"])]
    return *(x.pin_memory() if pin and x is not None else x for x in out), sizes


def to_device(args, device):
    return [x.to(device, non_blocking=True) if isinstance(x, torch.Tensor) else x for x in args]


class Trainer:
    """Everything of one run. State beyond the weights: optimizer, scaler and the step, no more, since the
    order, the masks and the dropout are functions of (seed, step, micro-batch, rank)."""

    asked = 0  # the number of the signal that asked to stop

    def __init__(self, s):
        self.s, self.began = s, time.perf_counter()
        self.device, self.dtype = models.choose_device(s.device, s.precision)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.folder = folder = find_data(s.data, s.init)
        if not s.tasks or not set(s.tasks) <= set(TASKS):
            raise UserError(f"tasks = {' '.join(s.tasks)}: choose some of {' '.join(TASKS)}")
        s.tasks = [task for task in TASKS if task in s.tasks]
        self.train, self.valid = (data.Examples(folder, part, s.tasks) for part in data.PARTS)
        if not len(self.train):
            raise UserError(f"{folder} has no examples of {', '.join(s.tasks)}")
        there = np.unique(self.train.task[self.train.rows])
        self.trained = [task for i, task in enumerate(TASKS) if i in there]
        self.tokenizer = data.read_tokenizer(folder)
        self.out = Path(s.out or Path("runs", f"kgi-{folder.resolve().name}"))
        n = len(self.train)
        self.order = data.Order(n, s.batch_size, s.seed)
        self.steps = 0  # with a budget not known before the machine's speed is
        if s.budget and s.steps:
            raise UserError(f"budget = {s.budget} and steps = {s.steps}: give one of them (--steps 0 if a file has it)")
        self.allowed = seconds(s.budget) if s.budget else None
        if not s.budget:
            self.schedule(s.steps or max(1, round(s.epochs * n / s.batch_size)))
        self.valid_every = s.valid_every or max(1, round(n / s.batch_size))
        self.save_every = s.save_every or self.valid_every
        counts = [
            sum(c["train"][t] for c in self.train.manifest["counts"].values()) * (t in s.tasks) for t in TASKS[1:]
        ]
        if s.alphas and len(s.alphas) != 3:
            raise UserError(f"alphas = {s.alphas}: there must be three, for EP, LP and TC")
        self.weights = torch.tensor([1.0, *(s.alphas or alphas(counts))])

        self.init = None
        if not s.init:
            vocab, pad = self.train.manifest["vocab_size"], self.train.special["pad"]
            config = models.Config(vocab, self.train.seq_len, s.dim, s.layers, s.heads, s.ffn, s.dropout, pad)
        models.must_fit(config if not s.init else models.load_config(s.init), self.device)
        torch.manual_seed(s.seed)
        if s.init:
            self.model = self.begin_with(s.init)
            self.init = digest([Path(s.init, "config.json"), *models.weight_files(s.init)])
        else:
            self.model = models.KGIBert(config)
        extra = self.model.encoder.config.handed_on
        extra["kgi_tasks"] = [t for t in TASKS if t in self.trained or t in extra.get("kgi_tasks", ())]
        self.model.to(self.device)
        self.budget = s.micro_tokens or models.micro_tokens(self.model, self.device)
        cuda = self.device.type == "cuda"
        self.padding = 1024 if cuda else 64  # tokens; see data.micro_batches
        self.ddp = self.model
        if self.world > 1:
            dist.init_process_group("nccl" if cuda else "gloo")
            self.ddp = DistributedDataParallel(self.model)
        self.begin()
        # A thread begins on the first GPU, where pinned memory would open a context for every rank.
        gpu = {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)} if cuda else {}
        self.assembler, self.ahead = ThreadPoolExecutor(1, **gpu), {}
        self.fell_back = False  # the last checkpoint on disk is damaged: not to be kept as the one before

    def begin(self):
        """Step 0: nothing that was learnt by the optimizer, nothing counted."""
        s = self.s
        self.optimizer = torch.optim.AdamW(self.model.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.step = self.skipped = 0
        self.clear()

    def clear(self):
        """An interval of the log begins: per task summed loss, right answers and targets; and the work done."""
        self.interval = np.zeros((4, 3))
        self.work = dict.fromkeys(("seconds", "tokens", "computed", "flops"), 0.0)

    def schedule(self, steps):
        """The run's number of steps, and of those up to the peak."""
        s, self.steps = self.s, steps
        self.warmup = s.warmup if s.warmup >= 1 else max(1.0, s.warmup * steps)
        if self.warmup >= steps and steps > 1:
            length = f"{s.epochs:g} epochs of {len(self.train):,} examples"
            length = f"in {s.budget}" if s.budget else f"steps = {s.steps}" if s.steps else length
            raise UserError(
                f"warmup = {s.warmup:g} steps, but the run has only {steps} ({length}); "
                "give a share, such as --warmup 0.5"
            )

    def begin_with(self, folder):
        """The model of a checkpoint folder, with room for the tokens that the data set has beside its own."""
        if Path(folder).resolve() == self.out.resolve():
            raise UserError(f"--init and --out are both {folder}; to go on with that run leave --init as it was")
        c, special = models.load_config(folder), self.train.special
        for size in ("layers", "heads", "dim", "ffn"):
            asked = getattr(self.s, size)
            if asked not in (getattr(configs.Train, size), getattr(c, size)):
                raise UserError(f"{size} = {asked}, but {folder} has {getattr(c, size)}; leave it out")
        theirs = tokenization.load(folder, c.vocab_size)
        if not has_tokenizer_of(folder, self.folder):
            raise UserError(f"{self.folder} has another tokenizer than {folder}; {how_to_build(folder)}")
        if c.pad != special["pad"]:
            raise UserError(f"{folder}: its config.json pads with token {c.pad}, its tokenizer with {special['pad']}")
        if c.max_positions < self.train.seq_len:
            raise UserError(
                f"{folder} has {c.max_positions} positions and {self.folder} sequences of up to "
                f"{self.train.seq_len} tokens; build it with a smaller --seq_len"
            )
        model = models.load(folder, self.s.dropout, say=lambda text: self.rank == 0 and print(text, flush=True))
        new = [i for i in (*special["relations"], special["hrel"]) if theirs.id_to_token(i) is None]
        models.grow(model, new, self.train.manifest["vocab_size"])
        return model

    def identity(self):
        """What must be the same for a checkpoint to be gone on from."""
        settings = {k: v for k, v in asdict(self.s).items() if k not in LAYOUT}
        return settings | {"data": self.train.manifest["sha256"], "init": self.init}

    def save(self):
        """checkpoint.pt (to go on from) and the model as a folder that finetune.py opens.

        Never of a model that has diverged: the checkpoint before it stays.
        """
        if not all(p.isfinite().all() for p in self.model.parameters()):
            self.diverged(self.step, "the weights are not finite")
        if self.rank:
            return
        state = {
            "step": self.step, "identity": self.identity(), "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(), "steps": self.steps,
            "interval": self.interval.tolist(), "work": self.work, "skipped": self.skipped,
        }  # fmt: skip
        # The one before stays until this one is whole on disk, and after: a disk can lose what it said it has.
        last, before = (self.out / name for name in CHECKPOINTS)
        new = last.with_suffix(".new")
        write_atomic(new, lambda f: torch.save(state, f))
        if last.exists() and not self.fell_back:
            last.replace(before)
        new.replace(last)
        self.fell_back = False
        self.publish()

    def publish(self):
        """The model as a folder that finetune.py, and AutoModel of the wider ecosystem, open."""
        c = self.model.encoder.config
        tokenization.save(self.tokenizer, self.out, c.max_positions, c.segments)
        write_atomic(self.out / "README.md", lambda f: f.write(self.card().encode(errors="replace")))
        models.save(self.model, self.out)

    def card(self):
        """The model card: what it was trained on and with, and the last validation of metrics.jsonl, as Markdown."""
        s, c, manifest = self.s, self.model.encoder.config, self.train.manifest
        languages, text, graph = manifest["languages"], "mlm" in self.trained, self.trained != ["mlm"]
        lines = ["---", "language:", *(f"- {lang}" for lang in languages)]
        lines += ["pipeline_tag: fill-mask"] * ("mlm" in c.handed_on["kgi_tasks"])
        lines += ["tags:", "- biomedical", *["- umls", "- knowledge-graph"] * graph]
        lines += ["---", "", f"# {self.out.resolve().name}", ""]
        begun = f"goes on from `{Path(s.init).resolve().name}`" if s.init else "was trained from scratch"
        lines += [
            f"A UMLS-KGI-BERT (Mannion et al., ClinicalNLP 2023): it {begun} on "
            + " and on ".join(["sequences from the UMLS knowledge graph"] * graph + ["documents"] * text)
            + f". The encoder opens with any library that reads the layout `{c.family}`; `tokenizer.json` holds the "
            f"relation tokens {' '.join(data.RELATION_TOKENS)}. What it was trained on has licences of its own"
            + " (for the UMLS, that of the US National Library of Medicine)" * graph + ".",
            "",
        ]  # fmt: skip
        columns = ["terms", "CUIs", "relations"] * graph
        names = [f"{name} examples" for task, name in zip(TASKS, data.NAMES) if task in self.trained]
        lines += ["| " + " | ".join(["language", *columns, *names]) + " |"]
        lines += ["|---" * (1 + len(columns) + len(names)) + "|"]
        for lang in languages:
            n = manifest["counts"][lang]
            cells = [*(n[x.lower()] for x in columns), *(n["train"][task] for task in self.trained)]
            lines.append(f"| {lang} | " + " | ".join(f"{x:,}" for x in cells) + " |")
        sizes = {"layers": c.layers, "heads": c.heads, "hidden size": c.dim, "feed-forward": c.ffn}
        sizes |= {"vocabulary": c.vocab_size, "positions": c.max_positions}
        run = {"steps": f"{self.step:,} of {self.steps:,}", "effective batch": s.batch_size, "peak learning rate": s.lr}
        run |= {"warm-up steps": f"{self.warmup:,.0f}", "dropout": s.dropout, "MLM probability": s.mlm_probability}
        weights = [f"{task.upper()} {w:.3f}" for task, w in zip(TASKS, self.weights) if task in self.trained]
        run |= {"weights of the tasks": ", ".join(weights), "seed": s.seed}
        lines += ["", "| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in (sizes | run).items())]
        valid = [r for r in read_metrics(self.out / "metrics.jsonl")[0] if "valid" in r]
        if valid:
            lines += ["", f"| held out, at step {valid[-1]['step']:,} | loss | accuracy |", "|---|---|---|"]
            for task, name in zip(TASKS, data.NAMES):
                loss, accuracy = (valid[-1]["valid"].get(f"{task}_{x}") for x in ("loss", "accuracy"))
                if loss is not None and accuracy is not None:
                    lines.append(f"| {name} | {loss:.3f} | {100 * accuracy:.1f} % |")
        return "\n".join(lines) + "\n"

    def diverged(self, step, what):
        path = self.out / CHECKPOINTS[0]
        kept = f"{path} is the last checkpoint" if path.exists() else "there is no checkpoint yet"
        raise UserError(f"step {step}: {what}; {kept}. Try a lower --lr or --precision fp32, with another --out")

    def resume(self):
        """Goes on from the last checkpoint that is whole; lines of metrics.jsonl after it are dropped."""
        faults, state, metrics = [], None, self.out / "metrics.jsonl"
        records, damaged = read_metrics(metrics)
        for path in (self.out / name for name in CHECKPOINTS):
            try:
                state = read_checkpoint(path)
                break
            except FileNotFoundError:
                faults += [f"no {path}"] * (path.name == CHECKPOINTS[0])
            except UserError as e:
                faults.append(str(e))
        if state:
            self.fell_back = bool(faults)
            if faults and self.rank == 0:
                print(f"{faults[0]}; going on from the one before it, of step {state['step']:,}", flush=True)
            for key, value in self.identity().items():
                before = state["identity"].get(key)
                undecided = key == "budget" and not state["steps"]
                if before != value and not undecided:
                    values = "" if key in ("data", "init") else f" ({before}, now {value})"
                    raise UserError(
                        f"{path} was made with another '{key}'{values}; "
                        f"use the same settings, another --out, or delete {self.out}"
                    )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty if that run had none
                self.scaler.load_state_dict(state["scaler"])
            self.step, self.skipped, self.work = state["step"], state["skipped"], state["work"]
            self.interval = np.array(state["interval"])
            if state["steps"]:  # 0: stopped while the steps that a budget allows were being found out
                self.schedule(state["steps"])
            if damaged and self.rank == 0:
                print(f"{metrics}: damaged lines dropped: {damaged:,}", flush=True)
            elif not records and self.step and self.rank == 0:
                print(f"{metrics} is not there: what it held up to step {self.step:,} is lost", flush=True)
            records = [record for record in records if self.step and record["step"] <= self.step]
        elif (self.out / CHECKPOINTS[0]).exists() or len(faults) > 1:
            raise UserError(f"{faults[-1]}; no checkpoint is left to go on from: choose another --out")
        else:
            # A run that ended before its first checkpoint leaves metrics.jsonl alone, with nothing to keep.
            foreign = damaged or any("valid" not in record and "mfu" not in record for record in records)
            records = []
            for name in ("config.json", "README.md", "tokenizer.json", *models.WEIGHTS, *[metrics.name] * foreign):
                if (self.out / name).exists():
                    raise UserError(
                        f"{self.out} holds a {name}, but no checkpoint.pt to go on from; choose another --out"
                    )
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            lines = "".join(json.dumps(record) + "\n" for record in records)
            write_atomic(metrics, lambda f: f.write(lines.encode()))

    def assemble(self, step):
        """(this rank's micro-batches of a step, targets of each task and lengths in the whole effective batch)."""
        epochs, at = self.order(step)
        batch = self.train.batch(epochs, self.train.rows[at], self.s.seed, self.s.mlm_probability)
        micros = data.micro_batches(batch, self.budget, self.padding, self.rank, self.world)
        return [tensors(m, self.device.type == "cuda") for m in micros], batch.counts, batch.length

    def batch(self, step):
        """assemble(step), which a thread has done while the step before was computed; it then goes on to the next."""
        now = self.ahead.pop(step, None) or self.assembler.submit(self.assemble, step)
        self.ahead = {step + 1: self.assembler.submit(self.assemble, step + 1)} if step + 1 < self.steps else {}
        return now.result()

    def optimizer_step(self):
        """One effective batch: forward and backward of every micro-batch, then the update.

        Loss, equation (2): per task the sum over all micro-batches and ranks divided by the number of
        targets in the whole effective batch, so that how it was cut does not matter. If gradients overflow in fp16,
        the scaler skips the update and halves its scale, and the step is done again: it has its update in the end,
        and the schedule its number of them.

        Returns: (statistics (4, 3), float64: summed loss, right answers, targets of each task, the same on all ranks;
        whether a rank was asked to stop).
        """
        s, began = self.s, time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.steps, self.warmup, s.lr)
        micros, counts, length = self.batch(self.step)
        # DDP averages over the ranks; times world makes it the sum.
        scale = self.weights * self.world / torch.from_numpy(counts).clamp(min=1)
        scale = scale.to(self.device, torch.float32)
        computed = sum(m[0].numel() for m in micros)
        for _ in range(SKIPS):
            sums = torch.zeros(4, 2, device=self.device)
            for i, micro in enumerate(micros):
                torch.manual_seed(int(data.mix(s.seed, self.step, i, self.rank)) >> 1)
                alone = self.ddp.no_sync() if self.world > 1 and i < len(micros) - 1 else nullcontext()
                with alone:
                    with models.autocast(self.device, self.dtype):
                        out = self.ddp(*to_device(micro, self.device))
                    self.scaler.scale((out[:, 0] * scale).sum()).backward()
                sums += out.detach()
            self.scaler.unscale_(self.optimizer)
            if s.clip:
                torch.nn.utils.clip_grad_norm_(self.model.parameters(), s.clip)
            before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            *total, all_computed, stop = self.over_ranks([*sums.flatten().tolist(), computed, float(self.asked > 0)])
            statistics = np.column_stack([np.reshape(total, (4, 2)), counts])
            loss = self.summary(statistics)["loss"]
            if not math.isfinite(loss):
                self.diverged(self.step + 1, f"the loss is {loss}")
            if self.scaler.get_scale() >= before:
                break
            self.skipped += 1
        else:
            self.diverged(
                self.step + 1, f"the gradients overflowed fp16 {SKIPS} times, in the end scaled by {before:g}"
            )
        self.step += 1
        self.interval += statistics
        self.work["flops"] += models.flops(self.model.encoder.config, length, counts[:2].sum())
        self.work["tokens"] += int(length.sum())
        self.work["computed"] += all_computed
        self.work["seconds"] += time.perf_counter() - began
        return statistics, stop > 0

    def over_ranks(self, numbers):
        """A list of numbers, summed over all ranks."""
        total = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    @torch.no_grad()
    def validate(self, limit=math.inf):
        """Loss and accuracy of each task over the whole validation part, as summary has them.

        Raises: UserError, on all ranks, if one of them needs more than `limit` seconds.
        """
        self.model.eval()
        began, done, late = time.perf_counter(), 0.0, False
        sums, counts = torch.zeros(4, 2, device=self.device), np.zeros(4)
        batches = np.split(self.valid.rows, range(self.s.batch_size, len(self.valid), self.s.batch_size))
        for rows in batches:
            epochs = np.full(len(rows), VALID_EPOCH)
            batch = self.valid.batch(epochs, rows, self.s.seed, self.s.mlm_probability)
            counts += batch.counts
            for micro in data.micro_batches(batch, self.budget, self.padding, self.rank, self.world):
                with models.autocast(self.device, self.dtype):
                    sums += self.model(*to_device(tensors(micro, False), self.device))
                done += micro["length"].sum() * self.world / batch.length.sum()
                if late := time.perf_counter() - began > limit:
                    break
            if late:
                break
        self.model.train()
        estimate = (time.perf_counter() - began) * len(batches) / (done or 1)
        *total, estimates, late = self.over_ranks([*sums.flatten().tolist(), estimate, float(late)])
        if late:
            lasts = estimates / self.world
            self.too_short(2 * lasts, f"validations before and after the training ({lasts:.1f} s each)")
        return self.summary(np.column_stack([np.reshape(total, (4, 2)), counts]))

    def summary(self, statistics):
        """(4, 3) sums over all ranks -> {"loss": equation (2), "mlm_loss": .., "mlm_accuracy": .., ...}."""
        out = {"loss": 0.0}
        for task, weight, (loss, right, n) in zip(TASKS, self.weights.tolist(), statistics.tolist()):
            if n:
                out |= {f"{task}_loss": loss / n, f"{task}_accuracy": right / n}
                out["loss"] += weight * loss / n
        return out

    def write(self, record):
        if self.rank == 0:
            with open(self.out / "metrics.jsonl", "a") as f:
                f.write(json.dumps(record) + "\n")

    def plan(self):
        """--budget: after a measured warm-up, as many steps as end inside it, with validations and checkpoints.

        The warm-up is whole steps of the run, at a rate of almost zero and then undone. What is decided goes into
        the first checkpoint, so that going on is exact. Runs after the validation of step 0, at self.began + its time.
        """
        start = {k: v.clone() for k, v in self.model.state_dict().items()}
        # A step is at least a forward and a backward pass, each as long as validating as many examples.
        least = 2 * self.validating * self.s.batch_size / max(1, len(self.valid))
        passed = self.over_ranks([time.perf_counter() - self.began])[0] / self.world
        if passed + least + self.validating > self.allowed:
            self.too_short(
                2 * self.validating + least,
                f"validations before and after the training ({self.validating:.1f} s each) and one step "
                f"({least:.1f} s or more)",
            )
        self.steps = self.warmup = 10**9
        took, measured = [], 0.0
        # Two steps at least, unless the first has already used the budget up; not without end on any clock.
        while len(took) < 2 or measured < min(0.02 * self.allowed, 60) and len(took) < 10_000:
            began = time.perf_counter()
            self.optimizer_step()
            both = self.over_ranks([time.perf_counter() - began, time.perf_counter() - self.began])
            took.append(both[0] / self.world)
            measured += took[-1]
            if both[1] / self.world + self.validating > self.allowed:
                break
        step = np.mean(took[1:] or took)  # the first warms caches up
        self.model.load_state_dict(start)
        self.steps, self.ahead = 0, {}
        self.begin()
        began = time.perf_counter()
        self.save()
        self.over_ranks([0.0])  # the others wait for rank 0, which writes, so that all measure the same
        saving = time.perf_counter() - began
        left = self.allowed - (time.perf_counter() - self.began) - self.validating - saving
        a_step = max(1e-6, step + self.validating / self.valid_every + saving / self.save_every)
        # The ranks' mean, that all do the same; a twentieth is kept, for no machine is equally fast all day.
        steps = int(self.over_ranks([0.95 * left / a_step])[0] / self.world)
        if steps < 1:
            self.too_short(
                self.validating + saving + a_step / 0.95,
                f"one step ({step:.1f} s), validations before and after it "
                f"({self.validating:.1f} s each) and a checkpoint ({saving:.1f} s)",
            )
        self.schedule(steps)
        self.save()

    def too_short(self, needed, what):
        """--budget is not enough for `what`. needed: seconds, beside those that have passed."""
        needed = math.ceil(time.perf_counter() - self.began + needed) + 1
        raise UserError(f"budget = {self.s.budget} is not enough for {what}: give at least {needed}s")

    @contextmanager
    def alone(self):
        """Keeps other processes out of the run folder; the system lets go of it when this one ends, however it does."""
        self.out.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.out, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.out}: another process is training into it; wait for it, or end it") from None
            except OSError:  # a file system without locks, as some of clusters are
                pass
            yield
        finally:
            os.close(lock)

    def run(self):
        """Trains to the end, or until a signal asks to stop. Returns: whether it came to the end."""
        try:
            with nullcontext() if self.rank else self.alone():
                return self.go()
        except (RuntimeError, MemoryError) as e:  # torch.OutOfMemoryError is a RuntimeError
            if "out of memory" not in str(e) and "allocate memory" not in str(e) and not isinstance(e, MemoryError):
                raise
            # From whatever rank it is: the others do not know.
            half = self.budget // 2
            advice = f"half, --micro_tokens {half}: it changes nothing but the speed, and a run begun goes on"
            if half < self.train.seq_len:  # a micro-batch of one sequence cannot be halved
                advice = "a smaller model (--layers, --dim, --ffn) or build a data set with a smaller --seq_len"
            sys.exit(
                f"kgi.py: error: rank {self.rank}: out of memory with micro-batches of {self.budget:,} tokens. "
                f"Give {advice}"
            )

    def go(self):
        s, first = self.s, self.rank == 0
        self.resume()
        begun = self.step
        if self.over_ranks([begun])[0] != begun * self.world:
            raise UserError(f"the ranks see different checkpoints in {self.out}; all nodes must share the folder")
        if self.step == self.steps > 0:  # at once, so that calling again what is done costs nothing
            if first and not self.published():  # killed before this
                self.publish()
            if first:
                print(f"done: {self.out}", flush=True)
            return True
        self.rate, self.measured = self.world * models.matrix_rate(self.device, self.dtype), time.perf_counter()
        if first:
            size = sum(p.numel() for p in self.model.parameters())
            print(
                f"{self.out}: {size:,} parameters, {len(self.train):,} examples, {self.world} x {self.device.type} "
                f"{str(self.dtype or torch.float32)[6:]}, {self.rate / 1e12:.3g} TFLOP/s, "
                f"micro-batches of {self.budget:,} tokens, "
                f"weights {' '.join(f'{t} {w:.3f}' for t, w in zip(TASKS, self.weights) if t in s.tasks)}",
                flush=True,
            )
        if self.step == 0:
            began = time.perf_counter()
            # With a budget another one comes at the end.
            limit = math.inf if self.steps else (self.allowed - (began - self.began)) / 2
            record = self.validate(limit)
            self.validating = self.over_ranks([time.perf_counter() - began])[0] / self.world
            if not self.steps:
                self.plan()
            self.write({"step": 0, "valid": record})
            self.show(0, "valid", record)
        if first:
            print(f"steps {self.step:,} to {self.steps:,} of {s.batch_size:,} examples", flush=True)
        since = time.perf_counter()
        hidden = None if first else True  # None: a bar on a terminal, nothing elsewhere
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)
        stop = False
        while self.step < self.steps and not stop:
            _, stop = self.optimizer_step()
            bar.update()
            last = self.step == self.steps
            validate, save = self.step % self.valid_every == 0 or last, self.step % self.save_every == 0 or last
            if self.step % s.log_every == 0 or validate or save:
                left = (time.perf_counter() - since) / (self.step - begun) * (self.steps - self.step)
                work, took = self.work, self.work["seconds"] or math.inf  # no clock is fine enough for everything
                epoch = self.step * s.batch_size / len(self.train)
                record = {"step": self.step, "epoch": epoch, **self.summary(self.interval)}
                record |= {
                    "lr": self.optimizer.param_groups[0]["lr"], "tokens_per_s": work["tokens"] / took,
                    "mfu": self.mfu(work["flops"] / took), "padding": 1 - work["tokens"] / work["computed"],
                    "skipped": self.skipped, "memory_gb": models.peak_memory(self.device) / 1e9, "left_s": left,
                }  # fmt: skip
                self.write(record)
                self.show(self.step, "train", record)
                self.clear()
            if validate:
                record = self.validate()
                if not math.isfinite(record["loss"]):
                    self.diverged(self.step, f"the validation loss is {record['loss']}")
                self.write({"step": self.step, "valid": record})
                self.show(self.step, "valid", record)
            if save or stop:
                self.save()
        bar.close()
        if first and self.step < self.steps:
            name = signal.Signals(self.asked).name if self.asked else "a signal to another rank"
            print(f"stopped by {name} after step {self.step:,}, saved; the same command goes on from there", flush=True)
        elif first:
            print(f"done: {self.out}", flush=True)
        return self.step == self.steps

    def published(self):
        """Whether the run folder holds the model as it is now."""
        try:
            there = models.load(self.out, say=lambda _: None).state_dict()
        except UserError:
            return False
        same = all(torch.equal(x.cpu(), there[name]) for name, x in self.model.state_dict().items())
        return same and all((self.out / name).exists() for name in ("README.md", "tokenizer.json"))

    def mfu(self, achieved):
        """The share that `achieved` operations a second are of the best rate so far, be it the run's own.

        The rate of a product of matrices is measured again once a minute, since the machine may have been busy before.
        """
        if self.over_ranks([float(time.perf_counter() - self.measured > 60)])[0]:
            self.measured = time.perf_counter()
            with suppress(torch.OutOfMemoryError):  # the run may need all there is
                again = models.matrix_rate.__wrapped__(self.device, self.dtype, repeat=1)
                self.rate = max(self.rate, self.world * again)
        self.rate = max(self.rate, achieved)
        return achieved / self.rate if self.rate else 0.0

    def show(self, step, what, record):
        """One line: losses and accuracies per task, and how the run goes."""
        if self.rank:
            return
        parts = [f"step {step:>6}/{self.steps}", f"{what} loss {record['loss']:.3f}"]
        for task in TASKS:
            if f"{task}_loss" in record:
                parts.append(f"{task} {record[f'{task}_loss']:.3f} ({100 * record[f'{task}_accuracy']:.1f} %)")
        if what == "train":
            parts.insert(1, f"epoch {record['epoch']:.2f}")
            parts += [
                f"lr {record['lr']:.2e}", f"{record['tokens_per_s']:,.0f} tokens/s", f"MFU {100 * record['mfu']:.0f} %",
                f"padding {100 * record['padding']:.1f} %", f"skipped {record['skipped']}",
                f"{record['memory_gb']:.1f} GB", f"left {timedelta(seconds=round(record['left_s']))}",
            ]  # fmt: skip
        tqdm.write("  ".join(parts), file=sys.stdout)
        sys.stdout.flush()


def blank_figure(size):
    """A figure of matplotlib, which is an extra."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise UserError("drawing needs matplotlib: pip install -r requirements-plot.txt") from None
    return Figure(size, layout="constrained")


def plot(argv):
    """Loss and accuracy of each task over the steps, of one or several runs, as one picture."""
    usage = "usage: python kgi.py plot RUN [RUN ...] [--out curves.png]"
    at = argv.index("--out") if "--out" in argv[:-1] else len(argv)
    runs, out = [*argv[:at], *argv[at + 2 :]], argv[at + 1] if at < len(argv) else None
    runs = [Path(run) for run in runs]
    if not runs or any(str(run).startswith("-") for run in runs):
        raise UserError(usage)
    axes = blank_figure((16, 7)).subplots(2, len(TASKS), sharex=True)
    for k, run in enumerate(runs):
        path, color = run / "metrics.jsonl", f"C{k}"
        if not path.is_file():
            raise UserError(f"{path} not found; is {run} a run folder?")
        records, damaged = read_metrics(path)
        if damaged:
            print(f"{path}: damaged lines left out: {damaged:,}")
        if not any("valid" in r for r in records):
            raise UserError(f"{path}: no validation in it yet")
        for row, what in zip(axes, ("loss", "accuracy")):
            for ax, task, name in zip(row, TASKS, data.NAMES):
                train = [(r["step"], r[key]) for r in records if (key := f"{task}_{what}") in r]
                valid = [(r["step"], r["valid"][key]) for r in records if key in r.get("valid", ())]
                ax.set(title=name, xlabel="step", ylabel=what)
                ax.plot(*zip(*train), color=color, alpha=0.4) if train else None
                ax.plot(*zip(*valid), color=color, marker="o", label=run.name) if valid else None
    axes[0, 0].legend(title="held out (pale: training)")
    out = Path(out or (runs[0] / "curves.png" if len(runs) == 1 else "curves.png"))
    if out.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise UserError(f"--out {out}: must end in .png, .pdf or .svg")
    write_atomic(out, lambda f: axes[0, 0].figure.savefig(f, format=out.suffix[1:].lower()))
    print(out)


# ---------------------------------------------------------------- what the encoder knows (the paper's future work)


@torch.no_grad()
def answers(model, examples, seed, dtype):
    """All targets of the held-out part, masked as at a validation: arrays (targets,) of

    example (row of the part), task, label, answer (the class with the best score), and value: the cross-entropy, of
    triples the log odds of "true" instead.
    """
    out, device = [], model.vocab_bias.device
    for rows in np.array_split(examples.rows, -(-len(examples) // 1024)):
        batch = examples.batch(np.full(len(rows), VALID_EPOCH), rows, seed, configs.Train.mlm_probability)
        for micro in data.micro_batches(batch, 4096, 64):
            ids, mask, position, label, sizes = to_device(tensors(micro, False), device)
            with models.autocast(device, dtype):
                logits = [x.float() for x in model.logits(ids, mask, position, sizes)]
            value = [F.cross_entropy(x, gold, reduction="none") for x, gold in zip(logits, label.split(sizes))]
            value[data.TC] = logits[data.TC][:, 1] - logits[data.TC][:, 0]
            answer = torch.cat([x.argmax(-1) for x in logits])
            mine = rows[micro["example"]], micro["task"], micro["label"], answer.cpu().numpy()
            out.append((*mine, torch.cat(value).cpu().numpy()))
    return [np.concatenate(column) for column in zip(*out)]


def knowledge(model, folder, seed, dtype):
    """What a model of this program knows of the held-out pairs and documents of a data set, in per cent but the loss.

    Returns: {"mlm": {language: {"loss", "accuracy"}}, "ep": {"tokens", "entities"} (accuracies; an entity is right if
    all its tokens are), "lp": {"accuracy", "macro_f1", "confusion" (gold in rows, as RELATIONS)}, "tc": {"accuracy",
    and for each kind of negative "accuracy" of the negatives and "auc": of them against all true triples}}.
    """
    from sklearn.metrics import confusion_matrix, f1_score, roc_auc_score  # a second that training need not wait

    examples = data.Examples(folder, "valid")
    example, task, label, answer, value = answers(model, examples, seed, dtype)
    right, out = answer == label, {}
    for i, lang in enumerate(examples.manifest["languages"]):
        if (at := (task == data.MLM) & (examples.lang[example] == i)).any():
            out.setdefault("mlm", {})[lang] = {"loss": value[at].mean(), "accuracy": 100 * right[at].mean()}
    if (at := task == data.EP).any():
        wrong = np.bincount(example[at], ~right[at])[np.unique(example[at])]
        out["ep"] = {"tokens": 100 * right[at].mean(), "entities": 100 * (wrong == 0).mean()}
    if (at := task == data.LP).any():
        confusion = confusion_matrix(label[at], answer[at], labels=range(models.RELATION_CLASSES))
        there = np.unique(label[at])  # a relation that the held-out pairs lack has no F1
        macro = 100 * f1_score(label[at], answer[at], labels=there, average="macro", zero_division=0)
        out["lp"] = {"accuracy": 100 * right[at].mean(), "macro_f1": macro, "confusion": confusion.tolist()}
    if (at := task == data.TC).any():
        kind = examples.kind[example]
        out["tc"] = {"accuracy": 100 * right[at].mean()}
        for name, k in (("other_pair", data.OTHER_PAIR), ("other_relation", data.OTHER_RELATION)):
            those = at & ((kind == data.TRUE) | (kind == k))
            if (kind[those] == k).any() and label[those].any():
                auc = 100 * roc_auc_score(label[those], value[those])
                out["tc"][name] = {"accuracy": 100 * right[those & (kind == k)].mean(), "auc": auc}
    return json.loads(json.dumps(out, default=float))


def some_terms(folder, lang, n, seed):
    """(graph, strings, term, concept): all terms of concepts of a language, drawn until there are n strings (0: all).

    They are those of the release that the data set in `folder` was built from, which stay beside it in tables/. A
    string that names several concepts is there once; term and concept (P,) say which string names which concept.
    """
    tables = data.load_tables(place := folder.parent / "tables" / lang, lang)
    if not tables or len(tables[0].terms) != data.read_manifest(folder)["counts"][lang].get("terms"):
        raise UserError(f"{place}: not the terms of {folder}, not there or damaged; build the data set again")
    graph = tables[0]
    concepts = np.argsort(data.uniform(seed, graph.cui), kind="stable")
    sizes = np.diff(graph.first_term)[concepts]
    concepts = concepts[: np.searchsorted(np.cumsum(sizes), n) + 1 if n else None]
    sizes = np.diff(graph.first_term)[concepts]
    at = data.ragged(graph.first_term[concepts], sizes)
    strings, term = np.unique(np.array(graph.terms.take(at).to_pylist(), object), return_inverse=True)
    return graph, strings.tolist(), term, np.repeat(concepts, sizes)


def vectors(encoder, tokenizer, strings, pooling, dtype):
    """(strings, dim) float32 tensor, on the encoder's device."""
    ids, length = tokenization.encode(tokenizer, [" " + x for x in strings], "terms")
    special, room = tokenization.special_ids(tokenizer), encoder.config.max_positions - 2
    blocks = list(models.embed(encoder, special, ids, length, pooling, room, dtype))
    return torch.from_numpy(np.concatenate(blocks)).to(encoder.word.weight.device)


def synonyms(embeddings, term, concept):
    """Whether the nearest other terms are of the same concept: accuracy at 1 and 5, mean reciprocal rank (per cent)."""
    queries, ranks = models.nearest_synonym(embeddings, torch.from_numpy(term), torch.from_numpy(concept))
    if not len(queries):
        return {}
    hits = [100 * (ranks <= k).double().mean().item() for k in (1, 5)]
    return {"at_1": hits[0], "at_5": hits[1], "mrr": 100 * (1 / ranks).mean().item(), "queries": len(queries)}


def evaluate(argv):
    """--evaluate: knowledge and synonyms of one or several checkpoints, printed and kept in results/."""
    from sklearn.feature_extraction.text import HashingVectorizer

    usage = "python kgi.py --evaluate CHECKPOINT [CHECKPOINT ...] [--data DATASET] [--key value ...]"
    s, checkpoints = configs.load("evaluate", argv, usage, positionals=None)
    device, dtype = models.choose_device(s.device, s.precision)
    names = [Path(checkpoint).resolve().name for checkpoint in checkpoints]
    if len({*names}) < len(names):
        raise UserError(f"results are named by checkpoint, and two of {', '.join(names)} are the same")
    for checkpoint, name in zip(checkpoints, names):
        folder, began = find_data(s.data, checkpoint), time.perf_counter()
        manifest = data.read_manifest(folder)
        c = models.load_config(checkpoint)
        tokenizer = tokenization.load(checkpoint, c.vocab_size)
        own = tokenizer.to_str() == tokenizer_of(folder)  # the model may have more rows than its tokenizer has entries
        model = models.load(checkpoint, heads=own).to(device).eval()
        print(f"{checkpoint} on {folder}", flush=True)
        record = {"checkpoint": str(checkpoint), "data": folder.resolve().name, "settings": asdict(s)}
        if "kgi_tasks" in c.handed_on:
            record["tasks"] = c.handed_on["kgi_tasks"]  # of the heads of others nothing can be expected
        if own:
            record |= knowledge(model, folder, s.seed, dtype)
        else:
            print(f"  not a model of the tokens of {folder}: synonyms alone")
        record["synonyms"] = {}
        for lang in manifest["languages"]:
            _, strings, term, concept = some_terms(folder, lang, s.terms, s.seed)
            ways = {}
            if len(strings) <= SPELLED:
                spelling = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 3), n_features=4096, dtype=np.float32)
                ways["spelling"] = torch.from_numpy(spelling.transform(strings).toarray())
            ways |= {how: vectors(model.encoder, tokenizer, strings, how, dtype) for how in ("cls", "mean")}
            record["synonyms"][lang] = {how: synonyms(x, term, concept) for how, x in ways.items()}
            record["synonyms"][lang]["terms"] = len(strings)
        report(record)
        path = Path(s.out or "results", name, f"knowledge-{folder.resolve().name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda f, record=record: f.write((json.dumps(record, indent=1) + "\n").encode()))
        print(f"  -> {path} ({time.perf_counter() - began:.0f} s)", flush=True)


def report(record):
    """The record of evaluate as lines."""
    for lang, x in record.get("mlm", {}).items():
        print(f"  {data.NAMES[0]}, {lang}: loss {x['loss']:.3f}, accuracy {x['accuracy']:.1f}")
    if x := record.get("ep"):
        print(f"  {data.NAMES[1]}: {x['tokens']:.1f} of the tokens, {x['entities']:.1f} of the entities")
    if x := record.get("lp"):
        confusion = np.array(x["confusion"])
        print(f"  {data.NAMES[2]}: accuracy {x['accuracy']:.1f} (always the most frequent relation: ", end="")
        print(f"{100 * confusion.sum(1).max() / confusion.sum():.1f}), macro F1 {x['macro_f1']:.1f}")
        names = data.RELATIONS[: len(confusion)]
        print("    gold \\ answer" + "".join(f"{name:>7}" for name in names))
        for name, row in zip(names, confusion.tolist()):
            print(f"    {name:<13}" + "".join(f"{n:>7,}" for n in row))
    if x := record.get("tc"):
        print(f"  {data.NAMES[3]}: accuracy {x['accuracy']:.1f}")
        for kind in ("other_pair", "other_relation"):
            if kind in x:
                told = f"accuracy {x[kind]['accuracy']:.1f}, ROC AUC against true ones {x[kind]['auc']:.1f}"
                print(f"    negatives with an{kind.replace('_', ' ')}: {told}")
    for lang, ways in record["synonyms"].items():
        if not ways["mean"]:
            print(f"  synonyms, {lang}: no concept has two of the {ways['terms']:,} terms")
        for how, x in ways.items():
            if how != "terms" and x:
                told = f"accuracy at 1 {x['at_1']:.1f}, at 5 {x['at_5']:.1f}, MRR {x['mrr']:.1f}"
                what = "trigrams of letters" if how == "spelling" else how
                print(f"  synonyms, {lang}, {x['queries']:,} among {ways['terms']:,} terms, {what}: {told}")


def draw_map(argv):
    """--map: the preferred terms of some concepts on the first two principal components of their vectors."""
    usage = "python kgi.py --map CHECKPOINT [--data DATASET] [--terms 20000] [--pooling mean|cls]"
    s, (checkpoint,) = configs.load("evaluate", argv, usage, positionals=1)
    if s.pooling not in ("cls", "mean"):
        raise UserError(f"pooling = '{s.pooling}' is not cls or mean")
    figure = blank_figure((11, 9))
    device, dtype = models.choose_device(s.device, s.precision)
    folder = find_data(s.data, checkpoint)
    encoder = models.load(checkpoint, heads=False).encoder.to(device).eval()
    tokenizer = tokenization.load(checkpoint, encoder.config.vocab_size)
    for lang in data.read_manifest(folder)["languages"]:
        graph, _, _, concept = some_terms(folder, lang, s.terms, s.seed)
        concept = np.unique(concept)
        strings = graph.terms.take(graph.first_term[concept]).to_pylist()
        x = vectors(encoder, tokenizer, strings, s.pooling, dtype)
        if len(x) < 3:
            raise UserError(f"a map of {len(x)} terms shows nothing; give more --terms")
        x = (x - x.mean(0)).cpu()
        torch.manual_seed(s.seed)
        _, size, axes = torch.pca_lowrank(x, q=min(8, *x.shape), center=False)
        at, shares = (x @ axes[:, :2]).numpy(), (size[:2] ** 2 / x.square().sum() * 100).tolist()
        figure.clear()
        ax = figure.subplots()
        group = graph.group[concept]
        for g in np.argsort(-np.bincount(group, minlength=len(graph.groups))):  # the rare ones above
            if (mine := group == g).any():
                ax.scatter(*at[mine].T, s=3, alpha=0.5, label=f"{graph.groups[g]} ({mine.sum():,})")
        ax.set(xlabel=f"{shares[0]:.1f} % of the variance", ylabel=f"{shares[1]:.1f} % of the variance")
        ax.set_title(f"{Path(checkpoint).resolve().name}: {len(strings):,} terms, {lang}, {s.pooling}")
        ax.legend(markerscale=4)
        path = Path(s.out or "results", Path(checkpoint).resolve().name, f"map-{lang}.png")
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, lambda f: figure.savefig(f, format="png"))
        print(path)


def main(argv):
    commands = {"plot": plot, "--evaluate": evaluate, "--map": draw_map}
    if argv and argv[0] in commands:
        return commands[argv[0]](argv[1:])
    settings, _ = configs.load("train", argv, "python kgi.py [config.toml] [--key value ...]")

    def ask(number, _):
        Trainer.asked, name = number, signal.Signals(number).name
        if os.environ.get("RANK", "0") == "0":  # not print, which the signal may have interrupted
            line = f"{name} received: saving after this step; a second {name} exits immediately\n"
            os.write(2, ("\n" * os.isatty(2) + line).encode())
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once

    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, ask)
    trainer = Trainer(settings)
    code = 0 if trainer.run() else STOPPED
    if trainer.world > 1:
        # Leave together and at once. Everything is on disk; a rank that takes its threads down in the usual way
        # aborts now and then ("terminate called without an active exception"), and torchrun then kills the rest.
        dist.barrier()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    configs.run(main)
