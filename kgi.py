"""Pre-training: one encoder on four tasks with one mixed cross-entropy (paper, sections 3.1 and 4.1).

    python kgi.py                                            the only data set under datasets/
    python kgi.py configs/v1-fr.toml
    torchrun --nproc_per_node 4 kgi.py configs/v1-fr.toml --precision fp16
    torchrun --nproc_per_node 4 kgi.py configs/drbert-fr.toml --init DrBERT-4GB
    torchrun --nproc_per_node 2 kgi.py --data datasets/es --layers 6 --heads 6 --dim 384 --ffn 1536

Each step takes one effective batch, whatever the number of ranks and the size of the micro-batches:
they change the speed and nothing else. Started again, the same command goes on from the last checkpoint.
Written to runs/<name>/: metrics.jsonl, the last two checkpoints, and the model (config.json, weights, tokenizer).
"""

import hashlib
import json
import os
import sys
import time
import zipfile
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
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


def alphas(n):
    """Weights of EP, LP and TC from their numbers of training examples (section 4.1).

    alpha_i = sum_{j != i} n_j / (2 sum_k n_k), j and k over the three tasks: they sum to 1, the weight
    of MLM, and the more examples a task has, the less each counts.
    """
    total = sum(n)
    return [(total - x) / (2 * total) if total else 0.0 for x in n]


def learning_rate(step, steps, warmup, peak):
    """Triangle: from zero up to `peak` over the warm-up, then linearly down to zero (appendix B)."""
    return peak * min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def step_of(line):
    """The step of a line of metrics.jsonl; infinity if the line was not written to its end."""
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def find_data(s):
    """The data set folder: --data, or the only one under datasets/ (with --init: built with its tokenizer)."""
    if s.data:
        return Path(s.data)
    found = sorted(p.parent for p in Path("datasets").glob("[!.]*/manifest.json"))
    if s.init:
        found = [p for p in found if has_tokenizer_of(s.init, p)]
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"several data sets: say --data with one of {', '.join(map(str, found))}")
    if s.init:
        raise UserError(f"no data set under datasets/ has the tokenizer of {s.init}; {how_to_build(s)}")
    raise UserError("no data set under datasets/; build one with 'make data LANG=fr', or try 'make demo'")


def has_tokenizer_of(checkpoint, folder):
    """Whether a data set was built with the tokenizer of a checkpoint (relation tokens added if it had none)."""
    built_with = Tokenizer.from_str(data.read_tokenizer(folder).decode())
    return built_with.to_str() == data.load_tokenizer(checkpoint).to_str()


def how_to_build(s):
    return f"build one with: make data LANG=.. TOKENIZER='{s.init}'"


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


def to_device(micro, device):
    """A micro-batch of data.micro_batches as the arguments of KGIBert.forward."""
    ids = torch.from_numpy(micro["ids"])
    full = torch.from_numpy(micro["length"])[:, None]
    mask = torch.arange(ids.shape[1]) < full
    sizes = torch.bincount(torch.from_numpy(micro["task"]), minlength=len(TASKS)).tolist()
    tensors = [ids, None if mask.all() else mask, torch.from_numpy(micro["position"]), torch.from_numpy(micro["label"])]
    return *(None if x is None else x.to(device, non_blocking=True) for x in tensors), sizes


class Trainer:
    """Everything of one run. State beyond the weights: optimizer, scaler and the step, no more, since the
    order, the masks and the dropout are functions of (seed, step, micro-batch, rank)."""

    def __init__(self, s):
        self.s = s
        self.device, self.dtype = models.choose_device(s.device, s.precision)
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.folder = folder = find_data(s)
        self.train, self.valid = data.Examples(folder, "train"), data.Examples(folder, "valid")
        self.tokenizer = data.read_tokenizer(folder)
        self.out = Path(s.out or Path("runs", f"kgi-{folder.resolve().name}"))
        n = len(self.train)
        self.steps = s.steps or max(1, round(s.epochs * n / s.batch_size))
        self.warmup = s.warmup if s.warmup >= 1 else max(1.0, s.warmup * self.steps)
        if self.warmup >= self.steps and self.steps > 1:
            raise UserError(
                f"warmup = {s.warmup:g} steps, but the run has only {self.steps} "
                f"({s.epochs:g} epochs of {n:,} examples); give a share, such as --warmup 0.5"
            )
        self.valid_every = s.valid_every or max(1, round(n / s.batch_size))
        self.save_every = s.save_every or self.valid_every
        self.budget = s.micro_tokens or (65536 if self.device.type == "cuda" else 4096)
        self.order = data.Order(n, s.batch_size, s.seed)
        counts = [sum(c["train"][t] for c in self.train.manifest["counts"].values()) for t in ("ep", "lp", "tc")]
        if s.alphas and len(s.alphas) != 3:
            raise UserError(f"alphas = {s.alphas}: there must be three, for EP, LP and TC")
        self.weights = torch.tensor([1.0, *(s.alphas or alphas(counts))])

        torch.manual_seed(s.seed)
        self.init = None
        if s.init:
            self.model = self.begin_with(s.init)
            self.init = digest([Path(s.init, "config.json"), *models.weight_files(s.init)])
        else:
            vocab, pad = self.train.manifest["vocab_size"], self.train.special["pad"]
            sizes = s.dim, s.layers, s.heads, s.ffn, s.dropout
            self.model = models.KGIBert(models.Config(vocab, self.train.seq_len, *sizes, pad))
        self.model.to(self.device)
        self.ddp = self.model
        if self.world > 1:
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
            self.ddp = DistributedDataParallel(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), s.lr, weight_decay=s.weight_decay, fused=True)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        self.step = 0
        self.fell_back = False  # the last checkpoint on disk is damaged: not to be kept as the one before

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
            raise UserError(f"{self.folder} has another tokenizer than {folder}; {how_to_build(self.s)}")
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
            self.diverged("the weights are not finite")
        if self.rank:
            return
        state = {
            "step": self.step, "identity": self.identity(), "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict(),
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
        write_atomic(self.out / "README.md", lambda f: f.write(self.card().encode()))
        models.save(self.model, self.out)

    def card(self):
        """The model card: what it was trained on and with, and the last validation of metrics.jsonl, as Markdown."""
        s, c, manifest = self.s, self.model.encoder.config, self.train.manifest
        languages = manifest["languages"]
        lines = ["---", "language:", *(f"- {lang}" for lang in languages), "pipeline_tag: fill-mask", "tags:"]
        lines += [f"- {tag}" for tag in ("umls", "knowledge-graph", "biomedical", "clinical")]
        lines += ["---", "", f"# {self.out.resolve().name}", ""]
        begun = f"goes on from `{Path(s.init).resolve().name}`" if s.init else "was trained from scratch"
        lines += [
            f"A UMLS-KGI-BERT (Mannion et al., ClinicalNLP 2023): it {begun} on sequences from the UMLS knowledge "
            "graph and on clinical text. The encoder opens with any library that reads the layout "
            f"`{c.family}`; `tokenizer.json` holds the relation tokens {' '.join(data.RELATION_TOKENS)}. The text and "
            "the terms it was trained on have licences of their own (for the UMLS, that of the US National Library "
            "of Medicine).",
            "",
            "| language | terms | CUIs | relations | " + " | ".join(f"{name} examples" for name in data.NAMES) + " |",
            "|---" * (4 + len(TASKS)) + "|",
        ]
        for lang in languages:
            n = manifest["counts"][lang]
            cells = [n["terms"], n["cuis"], n["relations"], *(n["train"][task] for task in TASKS)]
            lines.append(f"| {lang} | " + " | ".join(f"{x:,}" for x in cells) + " |")
        sizes = {"layers": c.layers, "heads": c.heads, "hidden size": c.dim, "feed-forward": c.ffn}
        sizes |= {"vocabulary": c.vocab_size, "positions": c.max_positions}
        run = {"steps": f"{self.step:,} of {self.steps:,}", "effective batch": s.batch_size, "peak learning rate": s.lr}
        run |= {"warm-up steps": f"{self.warmup:,.0f}", "dropout": s.dropout, "MLM probability": s.mlm_probability}
        run |= {"weights of MLM, EP, LP, TC": " ".join(f"{w:.3f}" for w in self.weights), "seed": s.seed}
        lines += ["", "| setting | value |", "|---|---|", *(f"| {k} | {v} |" for k, v in (sizes | run).items())]
        path = self.out / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        valid = [r for r in records if "valid" in r]
        if valid:
            lines += ["", f"| held out, at step {valid[-1]['step']:,} | loss | accuracy |", "|---|---|---|"]
            for task, name in zip(TASKS, data.NAMES):
                if f"{task}_loss" in valid[-1]["valid"]:
                    loss, accuracy = (valid[-1]["valid"][f"{task}_{x}"] for x in ("loss", "accuracy"))
                    lines.append(f"| {name} | {loss:.3f} | {100 * accuracy:.1f} % |")
        return "\n".join(lines) + "\n"

    def diverged(self, what):
        path = self.out / "checkpoint.pt"
        kept = f"{path} is the last good checkpoint" if path.exists() else "there is no checkpoint yet"
        raise UserError(f"step {self.step}: {what}; {kept}. Try a lower --lr or --precision fp32")

    def resume(self):
        """Goes on from the last checkpoint that is whole; lines of metrics.jsonl after it are dropped."""
        lines, faults, state = [], [], None
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
                if state["identity"].get(key) != value:
                    raise UserError(
                        f"{path} was made with another '{key}' ({state['identity'].get(key)}, now {value}); "
                        f"use the same settings, another --out, or delete {self.out}"
                    )
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            if state["scaler"]:  # empty if that run had none
                self.scaler.load_state_dict(state["scaler"])
            self.step = state["step"]
            metrics = self.out / "metrics.jsonl"
            lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
            lines = [line for line in lines if step_of(line) <= self.step]
        elif (self.out / CHECKPOINTS[0]).exists() or len(faults) > 1:
            raise UserError(f"{faults[-1]}; no checkpoint is left to go on from: choose another --out")
        else:
            for name in ("config.json", "README.md", "tokenizer.json", *models.WEIGHTS):
                if (self.out / name).exists():
                    raise UserError(
                        f"{self.out} holds a {name}, but no checkpoint.pt to go on from; choose another --out"
                    )
        if self.rank == 0:
            self.out.mkdir(parents=True, exist_ok=True)
            write_atomic(self.out / "metrics.jsonl", lambda f: f.write("".join(lines).encode()))

    def optimizer_step(self):
        """One effective batch: forward and backward of every micro-batch, then the update.

        Loss, equation (2): per task the sum over all micro-batches and ranks divided by the number of
        targets in the whole effective batch, so that how it was cut does not matter.

        Returns: (statistics (4, 3): summed loss, right answers, targets of this rank; its real tokens).
        """
        s = self.s
        lr = learning_rate(self.step, self.steps, self.warmup, s.lr)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        batch = self.train.batch(*self.order(self.step), s.seed, s.mlm_probability)
        # DDP averages over the ranks; times world makes it the sum.
        scale = self.weights * self.world / torch.from_numpy(batch.counts).clamp(min=1)
        scale = scale.to(self.device, torch.float32)
        sums = torch.zeros(4, 2, device=self.device)
        micros = list(data.micro_batches(batch, self.budget, self.rank, self.world))
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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        counts = torch.from_numpy(batch.counts).to(self.device) / self.world
        return torch.cat([sums, counts[:, None]], dim=1), sum(int(m["length"].sum()) for m in micros)

    @torch.no_grad()
    def validate(self):
        """Loss and accuracy of each task over the whole validation part."""
        self.model.eval()
        total = torch.zeros(4, 3, device=self.device)
        n, size = len(self.valid), self.s.batch_size
        for i in range(0, n, size):
            rows = np.arange(i, min(i + size, n))
            batch = self.valid.batch(np.full(len(rows), VALID_EPOCH), rows, self.s.seed, self.s.mlm_probability)
            for micro in data.micro_batches(batch, self.budget, self.rank, self.world):
                with models.autocast(self.device, self.dtype):
                    total[:, :2] += self.model(*to_device(micro, self.device))
            total[:, 2] += torch.from_numpy(batch.counts).to(self.device) / self.world
        self.model.train()
        return self.summary(total)

    def summary(self, statistics):
        """(4, 3) sums of this rank -> {"loss": equation (2), "mlm_loss": .., "mlm_accuracy": .., ...}."""
        if self.world > 1:
            dist.all_reduce(statistics)
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

    def run(self):
        s, first = self.s, self.rank == 0
        self.resume()
        if first:
            size = sum(p.numel() for p in self.model.parameters())
            print(
                f"{self.out}: {size:,} parameters, {len(self.train):,} examples, "
                f"steps {self.step:,} to {self.steps:,} of {s.batch_size:,}, {self.world} x {self.device.type} "
                f"{str(self.dtype or torch.float32)[6:]}, weights 1 {' '.join(f'{w:.3f}' for w in self.weights[1:])}",
                flush=True,
            )
        if self.step == self.steps and first:  # the run may have been killed before this
            self.publish()
        if self.step == 0:
            record = self.validate()
            self.write({"step": 0, "valid": record})
            self.show(0, "valid", record)
        interval, tokens, since, shown = torch.zeros(4, 3, device=self.device), 0, time.time(), time.time()
        hidden = None if first else True  # None: a bar on a terminal, nothing elsewhere
        bar = tqdm(total=self.steps, initial=self.step, unit="step", disable=hidden, dynamic_ncols=True)
        while self.step < self.steps:
            statistics, count = self.optimizer_step()
            interval += statistics
            tokens += count
            bar.update()
            last = self.step == self.steps
            validate, save = self.step % self.valid_every == 0 or last, self.step % self.save_every == 0 or last
            if self.step % s.log_every == 0 or validate or save:
                record = self.summary(interval)
                seconds = time.time() - since
                record |= {"lr": self.optimizer.param_groups[0]["lr"], "tokens_per_s": tokens * self.world / seconds}
                if not record["loss"] < float("inf"):
                    self.diverged(f"the loss is {record['loss']}")
                epoch = self.step * s.batch_size / len(self.train)
                self.write({"step": self.step, "epoch": epoch, **record})
                bar.set_postfix_str(f"loss {record['loss']:.3f}, {record['tokens_per_s']:,.0f} tokens/s")
                if validate or time.time() - shown > 30:
                    self.show(self.step, "train", record)
                    shown = time.time()
                interval, tokens = torch.zeros_like(interval), 0
                if validate:
                    record = self.validate()
                    self.write({"step": self.step, "valid": record})
                    self.show(self.step, "valid", record)
                if save:
                    self.save()
                since = time.time()
        bar.close()
        if first:
            print(f"done: {self.out}", flush=True)
        if self.world > 1:
            # Leave together and at once. Everything is on disk; a rank that takes its threads down in the usual way
            # aborts now and then ("terminate called without an active exception"), and torchrun then kills the rest.
            dist.barrier()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)

    def show(self, step, what, record):
        """One line: losses and accuracies per task, and the rate."""
        if self.rank:
            return
        parts = [f"step {step:>6}/{self.steps} {what}", f"loss {record['loss']:.3f}"]
        for task in TASKS:
            if f"{task}_loss" in record:
                parts.append(f"{task} {record[f'{task}_loss']:.3f} ({100 * record[f'{task}_accuracy']:.1f} %)")
        if "lr" in record:
            parts.append(f"lr {record['lr']:.2e}, {record['tokens_per_s']:,.0f} tokens/s")
        tqdm.write("  ".join(parts), file=sys.stdout)
        sys.stdout.flush()


def main(argv):
    settings, _ = configs.load("train", argv, "python kgi.py [config.toml] [--key value ...]")
    Trainer(settings).run()


if __name__ == "__main__":
    configs.run(main)
