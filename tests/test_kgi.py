"""The trainer: the loss of equation (2), what must not depend on the layout, and going on after a stop."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import configs
import data
import kgi
import model as models
from configs import UserError
from tests.conftest import ROOT, build, command

TINY = {
    "layers": 2, "heads": 2, "dim": 32, "ffn": 64, "steps": 6, "batch_size": 40, "lr": 1e-3, "log_every": 1,
    "valid_every": 3, "device": "cpu", "dropout": 0.0,
}  # fmt: skip

MEASURED = {"tokens_per_s", "mfu", "padding", "memory_gb", "left_s"}  # what is not the same on all layouts and days


def settings(dataset, out, **more):
    return configs.Train(**{"data": str(dataset), "out": str(out)} | TINY | more)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def args(dataset, out, **more):
    s = {"data": dataset, "out": out} | TINY | more
    return [x for k, v in s.items() for x in (f"--{k}", str(v))]


def test_alphas():
    """Section 4.1 by hand, at Table 1's sizes for French: they sum to 1, and more examples weigh less."""
    ep, lp, tc = 100_000, 64_208, 200_000
    a = kgi.alphas([ep, lp, tc])
    assert a == pytest.approx([(lp + tc) / 728_416, (ep + tc) / 728_416, (ep + lp) / 728_416])
    assert sum(a) == pytest.approx(1) and a[1] > a[0] > a[2] and kgi.alphas([1, 1, 1]) == pytest.approx([1 / 3] * 3)
    assert kgi.alphas([ep, 0, tc]) == pytest.approx([2 / 3, 0, 1 / 3])  # two tasks: still 1 together
    assert kgi.alphas([0, lp, 0]) == [0, 1, 0] and kgi.alphas([0, 0, 0]) == [0, 0, 0]


def test_learning_rate():
    rate = [kgi.learning_rate(s, 100, 40, 2.0) for s in range(100)]
    assert rate[0] == pytest.approx(2 / 40) and max(rate) == rate[39] == rate[40] == 2.0
    assert rate[70] == pytest.approx(2.0 * 30 / 60) and 0 < rate[99] < 0.04
    assert all(b > a for a, b in zip(rate[:39], rate[1:40])) and all(b < a for a, b in zip(rate[40:], rate[41:]))


def test_loss_of_a_step_is_equation_2(dataset, tmp_path):
    """One step against a plain loop: each example alone, dense cross-entropy, no micro-batches."""
    trainer = kgi.Trainer(settings(dataset, tmp_path / "run", mlm_probability=0.3, batch_size=300))
    model, e = trainer.model, trainer.train
    batch = e.batch(*data.Order(len(e), 300, 0)(0), 0, 0.3)
    sums, counts = [0.0] * 4, [0] * 4
    for i in range(300):
        ids = torch.from_numpy(batch.ids[batch.start[i] : batch.start[i] + batch.length[i]])[None]
        hidden = model.encoder(ids)[0]
        for j in (batch.row == i).nonzero()[0]:
            task = int(batch.task[j])
            head = [model.vocabulary, model.vocabulary, model.link, model.triple][task]
            gold = torch.tensor(int(batch.label[j]))
            sums[task] = sums[task] + F.cross_entropy(head(hidden[batch.col[j]]), gold)
            counts[task] += 1
    assert min(counts) > 0 and counts == batch.counts.tolist()
    alphas = kgi.alphas([e.manifest["counts"]["en"]["train"][t] for t in ("ep", "lp", "tc")])
    loss = sum(w * s / n for w, s, n in zip([1.0, *alphas], sums, counts))
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
    model.zero_grad()
    seen = {}
    trainer.optimizer.register_step_pre_hook(
        lambda *_: seen.update(norm=sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5)
    )
    trainer.s.clip = 0
    statistics, _ = trainer.optimizer_step()
    assert trainer.summary(statistics)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert seen["norm"].item() == pytest.approx(norm.item(), rel=1e-4) and trainer.work["tokens"] == batch.length.sum()


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("kgi") / "one"
    kgi.Trainer(settings(dataset, out)).run()
    return out


def same_but_for_rounding(one, two):
    for a, b in zip(lines(one), lines(two), strict=True):
        a, b = (x.get("valid", {k: v for k, v in x.items() if k not in MEASURED}) for x in (a, b))
        assert a == pytest.approx(b, rel=2e-5, abs=2e-5)
    mine = weights(two)
    assert all((v - mine[k]).abs().max() < 2e-5 for k, v in weights(one).items())


@pytest.mark.parametrize("ranks, budget", [(1, 200), (4, 64)])
def test_only_the_speed_depends_on_the_layout(dataset, baseline, tmp_path, ranks, budget):
    """The same losses, accuracies and weights with any number of real processes and any micro-batch."""
    run = ["-m", "torch.distributed.run", "--nproc_per_node", ranks] if ranks > 1 else []
    p = command(*run, "kgi.py", *args(dataset, tmp_path, micro_tokens=budget))
    assert p.returncode == 0, p.stderr
    same_but_for_rounding(baseline, tmp_path)


def test_two_nodes(dataset, tmp_path):
    """Two torchrun agents that find each other (c10d, over loopback), as the README has it; steps of three examples,
    in which tasks are absent and a rank has one example: the same as one process."""
    few = {"batch_size": 3, "steps": 40, "valid_every": 40, "dropout": 0.0}
    kgi.Trainer(settings(dataset, tmp_path / "one", **few)).run()
    trained = [{t for t in data.TASKS if f"{t}_loss" in r} for r in lines(tmp_path / "one") if "valid" not in r]
    assert all(any(t not in step for step in trained) for t in data.TASKS) and set.union(*trained) == set(data.TASKS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    agent = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "7"]
    agent += ["--rdzv_backend", "c10d", "--rdzv_endpoint", f"localhost:{port}", "kgi.py"]
    agent += args(dataset, tmp_path / "two", **few)
    nodes = [subprocess.Popen(agent, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert sorted("done: " in out for out in told) == [False, True]  # rank 0 alone prints
    same_but_for_rounding(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("left_out", ["mlm", "ep", "lp", "tc"])
def test_a_task_left_out(dataset, tmp_path, left_out):
    """Table 6: nothing of it is trained or validated, the alphas are of what remains, the others' masks the same."""
    tasks = [t for t in data.TASKS if t != left_out]
    trainer = kgi.Trainer(settings(dataset, tmp_path, tasks=tasks, steps=2))
    trainer.run()
    assert {k for r in lines(tmp_path) for k in r.get("valid", r) if k.endswith("_loss")} == {
        f"{t}_loss" for t in tasks
    }
    counts = trainer.train.manifest["counts"]["en"]["train"]
    n = [counts[t] for t in tasks if t != "mlm"]
    expected = {t: (sum(n) - counts[t]) / sum(n) / (len(n) - 1) for t in tasks if t != "mlm"}
    assert {t: w for t, w in zip(data.TASKS[1:], trainer.weights[1:].tolist()) if w} == pytest.approx(expected)
    assert len(trainer.train) == sum(counts[t] for t in tasks)
    whole = kgi.Trainer(settings(dataset, tmp_path / "whole"))
    for t in (whole, trainer):
        t.everything = t.train.batch(np.zeros(len(t.train), int), t.train.rows, 0, 0.15)
    keep = np.flatnonzero(np.isin(whole.train.task, [data.TASKS.index(t) for t in tasks]))
    start, length = whole.everything.start[keep], whole.everything.length[keep]
    assert (whole.everything.ids[data.ragged(start, length)] == trainer.everything.ids).all()


def test_masks_do_not_depend_on_the_layout(dataset, tmp_path):
    """What the model sees of each example of a step, whatever the ranks and micro-batches, also with dropout."""
    seen = set()
    for world, budget in ((1, 10**6), (1, 100), (2, 300), (4, 64)):
        rows = []
        for rank in range(world):
            trainer = kgi.Trainer(settings(dataset, tmp_path, dropout=0.5, micro_tokens=budget, tasks=["mlm"]))
            trainer.rank, trainer.world = rank, world
            micros, _, _ = trainer.assemble(3)
            for ids, mask, *_ in micros:
                mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
                rows += [tuple(row[m].tolist()) for row, m in zip(ids, mask)]
        seen.add(tuple(sorted(rows)))
    assert len(seen) == 1 and len(rows) == 40


STOP = """
import os, signal, sys
sys.path.insert(0, {root!r})
import kgi
write = kgi.Trainer.write
def leave(trainer, record):
    write(trainer, record)
    if record["step"] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
kgi.Trainer.write = leave
kgi.main({argv!r})
"""


def test_two_ranks_go_on_to_the_same_weights(dataset, tmp_path):
    """Killed after the checkpoint at step 3 and started again, with dropout: bit for bit the same."""
    run = ["-m", "torch.distributed.run", "--nproc_per_node", 2]
    whole = tmp_path / "whole"
    p = command(*run, "kgi.py", *args(dataset, whole, dropout=0.1))
    assert p.returncode == 0, p.stderr
    stopped = tmp_path / "stopped"
    (tmp_path / "stop.py").write_text(STOP.format(root=str(ROOT), argv=args(dataset, stopped, dropout=0.1)))
    assert command(*run, tmp_path / "stop.py").returncode != 0
    assert [r["step"] for r in lines(stopped) if "valid" not in r] == [1, 2, 3, 4, 5]  # written after the checkpoint
    p = command(*run, "kgi.py", *args(dataset, stopped, dropout=0.1))
    assert p.returncode == 0 and "steps 3 to 6" in p.stdout, p.stderr
    a, b = weights(whole), weights(stopped)
    assert all(torch.equal(a[k], b[k]) for k in a)
    for x, y in zip(lines(whole), lines(stopped), strict=True):
        assert x.keys() == y.keys() and x["step"] == y["step"] and x.get("valid") == y.get("valid")
        assert x.get("loss") == y.get("loss")


KILL = """
import os, signal, sys
sys.path.insert(0, {root!r})
import pathlib
import torch
import kgi, configs
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
saves, save, replace = [0], torch.save, pathlib.Path.replace
if {where!r} == "in the file":
    def half(state, f):
        saves[0] += 1
        save(state, f)
        if saves[0] == {at}:
            f.truncate(f.tell() // 2)
            f.flush()
            die()
    torch.save = half
if {where!r} == "between the two":
    def one(path, target):
        saves[0] += str(target).endswith("before.pt")
        replace(path, target)
        if saves[0] == {at} - 1:
            die()
    pathlib.Path.replace = one
if {where!r} == "before the model":
    def published(trainer):
        if trainer.step == {at}:
            die()
    kgi.Trainer.publish = published
kgi.main({argv!r})
"""


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("kgi") / "undisturbed"
    kgi.Trainer(settings(dataset, out, dropout=0.1, save_every=1)).run()
    return out


def same_end(out, undisturbed):
    a, b = weights(undisturbed), weights(out)
    assert a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())
    for x, y in zip(lines(undisturbed), lines(out), strict=True):  # neither a gap nor a line twice
        assert x["step"] == y["step"] and x.get("valid") == y.get("valid") and x.get("loss") == y.get("loss")
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())


@pytest.mark.parametrize("where", ["in the file", "between the two", "before the model"])
def test_killed_while_a_checkpoint_is_written(dataset, undisturbed, tmp_path, where):
    """SIGKILL in the middle of the fourth save; the same command ends in the same weights, bit for bit."""
    argv = args(dataset, tmp_path / "run", dropout=0.1, save_every=1)
    (tmp_path / "kill.py").write_text(KILL.format(root=str(ROOT), argv=argv, where=where, at=4))
    assert command(tmp_path / "kill.py").returncode == -9
    p = command("kgi.py", *argv)
    step = 4 if where == "before the model" else 3
    assert p.returncode == 0 and f"steps {step} to 6" in p.stdout, p.stdout + p.stderr
    assert ("no " in p.stdout and "going on from the one before it, of step 3" in p.stdout) == (
        where == "between the two"
    )
    same_end(tmp_path / "run", undisturbed)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment(dataset, undisturbed, tmp_path, seed):
    out = tmp_path / "run"
    argv = [sys.executable, "kgi.py", *args(dataset, out, dropout=0.1, save_every=1)]
    p = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.DEVNULL)
    rng, began = random.Random(seed), time.time()
    while not (out / "metrics.jsonl").exists() and time.time() - began < 60:
        time.sleep(0.01)
    time.sleep(rng.random() * 0.6)
    p.kill()
    p.wait()
    assert command(*argv[1:]).returncode == 0
    same_end(out, undisturbed)


@pytest.mark.parametrize("damage", ["cut", "one bit", "empty", "other"])
def test_a_damaged_checkpoint_is_told_and_the_one_before_it_used(dataset, undisturbed, tmp_path, damage, capsys):
    out = tmp_path / "run"
    kgi.Trainer(settings(dataset, out, dropout=0.1, save_every=1)).run()
    last, before = out / "checkpoint.pt", out / "checkpoint.before.pt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes({"cut": content[:3000], "one bit": content, "empty": b"", "other": b"hello" * 100}[damage])
    capsys.readouterr()
    trainer = kgi.Trainer(settings(dataset, out, dropout=0.1, save_every=1))
    trainer.run()
    assert f"{last}: damaged; going on from the one before it, of step 5" in capsys.readouterr().out
    same_end(out, undisturbed)
    assert kgi.read_checkpoint(before)["step"] == 5  # the good one, not the damaged
    for path in (last, before):
        path.write_bytes(content[:3000])
    with pytest.raises(UserError, match="checkpoint.before.pt: damaged; no checkpoint is left to go on from"):
        kgi.Trainer(settings(dataset, out, dropout=0.1, save_every=1)).run()


def test_dropout_differs_from_step_to_step(dataset, tmp_path):
    trainer = kgi.Trainer(settings(dataset, tmp_path, dropout=0.5, lr=0.0, batch_size=40))
    order = trainer.order(0)
    trainer.order = lambda step: order
    a, b = (trainer.optimizer_step()[0][:, 0].sum().item() for _ in range(2))
    trainer.step = 0
    assert a != b and trainer.optimizer_step()[0][:, 0].sum().item() == a


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_saves_and_leaves(dataset, undisturbed, tmp_path, monkeypatch, capfd, number):
    """In the middle of an interval of the log: a line at once, status 75, and the same end, metrics.jsonl too."""
    few = {"dropout": 0.1, "log_every": 4, "valid_every": 6, "save_every": 6}
    whole, out = tmp_path / "whole", tmp_path / "run"
    kgi.Trainer(settings(dataset, whole, **few)).run()
    step = kgi.Trainer.optimizer_step

    def signalled(trainer):
        if trainer.step == 1:
            os.kill(os.getpid(), number)
        return step(trainer)

    monkeypatch.setattr(kgi.Trainer, "optimizer_step", signalled)
    monkeypatch.setattr(kgi.Trainer, "asked", 0)
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    try:
        with pytest.raises(SystemExit) as left:
            kgi.main(args(dataset, out, **few))
        assert left.value.code == 75
        told = capfd.readouterr()
        assert f"stopped by {number.name} after step 2, saved" in told.out
        assert f"{number.name} received: saving after this step; a second {number.name} exits immediately\n" in told.err
        assert [r["step"] for r in lines(out)] == [0]
        assert signal.getsignal(number) == signal.SIG_DFL  # a second one would have ended it at once
        kgi.Trainer.asked = 0
        with pytest.raises(SystemExit) as left:
            kgi.main(args(dataset, out, **few))
        assert left.value.code == 0
    finally:
        for n, handler in handlers:
            signal.signal(n, handler)
    a, b = weights(whole), weights(out)
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    for x, y in zip(lines(whole), lines(out), strict=True):
        assert {k: v for k, v in x.items() if k not in MEASURED} == {k: v for k, v in y.items() if k not in MEASURED}


SRUN = """#!{python}
# Stands in for Slurm's: TERM to all tasks when the run is under way, if the file "limit" is there.
import os, pathlib, subprocess, sys, time
n = os.environ["TASKS"]
env = os.environ | dict(SLURM_NTASKS=n, SLURM_NTASKS_PER_NODE=n)
tasks = [subprocess.Popen(sys.argv[1:], env=env | dict(SLURM_PROCID=i, SLURM_LOCALID=i)) for i in "01"[: int(n)]]
while pathlib.Path("{limit}").exists() and all(t.poll() is None for t in tasks):
    time.sleep(0.05)
    if pathlib.Path("{metrics}").exists() and '"step": 2,' in pathlib.Path("{metrics}").read_text():
        for t in tasks:
            t.terminate()
        pathlib.Path("{limit}").unlink()
sys.exit(max(t.wait() for t in tasks))
"""
SCONTROL = "#!/bin/sh\n[ $1 = show ] && echo localhost || echo $* >> {}\n"


def test_the_slurm_script(dataset, tmp_path):
    """At the time limit both ranks save and leave with 75 and the job is queued again; it then runs to its end, here
    with one rank and other micro-batches: the same as if it had done so from the start."""
    out, limit, queue = tmp_path / "run", tmp_path / "limit", tmp_path / "queue"
    bin = tmp_path / "bin"
    bin.mkdir()
    srun = SRUN.format(python=sys.executable, limit=limit, metrics=out / "metrics.jsonl")
    for name, text in (("srun", srun), ("scontrol", SCONTROL.format(queue))):
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    limit.touch()
    long = {"steps": 60, "valid_every": 60}
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "PYTHON": sys.executable, "SLURM_JOB_ID": "41"}
    script = ["bash", "configs/slurm.sh", *map(str, args(dataset, out, **long))]
    tasks = {"TASKS": "2"}
    first = subprocess.run(script, cwd=ROOT, env=env | tasks, capture_output=True, text=True, timeout=120)
    assert "stopped by SIGTERM after step" in first.stdout and queue.read_text() == "requeue 41\n", first.stderr
    tasks, script = {"TASKS": "1"}, [*script, "--micro_tokens", "300"]
    then = subprocess.run(script, cwd=ROOT, env=env | tasks, capture_output=True, text=True, timeout=120)
    assert then.returncode == 0 and "done: " in then.stdout and queue.read_text() == "requeue 41\n"
    assert [r["step"] for r in lines(out)] == [0, *range(1, 61), 60]
    kgi.Trainer(settings(dataset, tmp_path / "whole", **long)).run()
    for a, b in zip(lines(tmp_path / "whole"), lines(out)):
        a, b = (x.get("valid", x)["loss"] for x in (a, b))
        assert a == pytest.approx(b, rel=1e-3)  # sixty steps, rounding adds up


def test_a_budget(dataset, tmp_path, monkeypatch):
    """On a clock that steps, validations and saves move: the run ends inside the budget, and is that of --steps."""
    now = [1000.0]

    def clock():
        now[0] += 0.001
        return now[0]

    monkeypatch.setattr(kgi.time, "perf_counter", clock)

    def slow(what, lasts):
        def run(*args):
            now[0] += lasts
            return what(*args)

        return run

    for name, lasts in (("optimizer_step", 20), ("validate", 30), ("save", 5)):
        monkeypatch.setattr(kgi.Trainer, name, slow(getattr(kgi.Trainer, name), lasts))
    few = {"dropout": 0.1, "valid_every": 10, "save_every": 5, "batch_size": 10}
    trainer = kgi.Trainer(settings(dataset, tmp_path / "budget", steps=0, budget="20m", **few))
    trainer.run()
    assert 0.85 * 1200 < now[0] - 1000 <= 1200 and trainer.step == trainer.steps > 20
    plain = kgi.Trainer(settings(dataset, tmp_path / "steps", steps=trainer.steps, **few))
    plain.run()
    a, b = weights(tmp_path / "budget"), weights(tmp_path / "steps")
    assert all(torch.equal(v, b[k]) for k, v in a.items())  # of the warm-up nothing is left
    again = kgi.Trainer(settings(dataset, tmp_path / "budget", steps=0, budget="20m", **few))
    again.resume()
    assert again.steps == trainer.steps and again.warmup == trainer.warmup
    with pytest.raises(UserError, match="budget = 90s is not enough for one step"):
        kgi.Trainer(settings(dataset, tmp_path / "short", steps=0, budget="90s", **few)).run()
    for text in ("", "24", "1x", "h", "0m"):
        with pytest.raises(UserError, match="is not a length of time such as 24h"):
            kgi.seconds(text)
    assert [kgi.seconds(t) for t in ("24h", "1h30m", "2d", "45s")] == [86400, 5400, 172800, 45]


def test_stopped_while_the_budget_is_planned(dataset, tmp_path, monkeypatch):
    """Killed after the checkpoint that measures how long one takes: planned anew, not a run of no steps."""
    few = {"steps": 0, "budget": "3s", "valid_every": 1000, "save_every": 1000}

    def killed(trainer, steps):
        raise KeyboardInterrupt

    with monkeypatch.context() as m:
        m.setattr(kgi.Trainer, "schedule", killed)
        with pytest.raises(KeyboardInterrupt):
            kgi.Trainer(settings(dataset, tmp_path, **few)).run()
    assert kgi.read_checkpoint(tmp_path / "checkpoint.pt")["steps"] == 0
    trainer = kgi.Trainer(settings(dataset, tmp_path, **few))
    assert trainer.run() and trainer.step == trainer.steps > 0
    assert [r["step"] for r in lines(tmp_path)].count(0) == 1


def test_out_of_memory_names_the_setting(dataset, tmp_path, monkeypatch):
    def full(trainer):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(kgi.Trainer, "optimizer_step", full)
    with pytest.raises(
        SystemExit, match="out of memory with micro-batches of 2,048 tokens. Give half, --micro_tokens 1024"
    ):
        kgi.Trainer(settings(dataset, tmp_path)).run()
    with pytest.raises(SystemExit, match="with micro-batches of 100 tokens. Give a smaller model"):
        kgi.Trainer(settings(dataset, tmp_path, micro_tokens=100)).run()


def test_plot(baseline, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    kgi.main(["plot", str(baseline), str(baseline), "--out", "two.png"])
    assert capsys.readouterr().out == "two.png\n" and (tmp_path / "two.png").read_bytes()[1:4] == b"PNG"
    for argv, said in (([], "usage: "), (["nowhere"], "nowhere/metrics.jsonl not found"), (["--in"], "usage: ")):
        with pytest.raises(UserError, match=said):
            kgi.plot(argv)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match="needs matplotlib: pip install -r requirements-plot.txt"):
        kgi.plot([str(baseline)])


def test_a_finished_run_is_a_checkpoint_folder(dataset, baseline, tmp_path):
    model = models.load(baseline)
    assert all(torch.equal(v, weights(baseline)[k]) for k, v in model.state_dict().items())
    assert (baseline / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()
    before = (baseline / "checkpoint.pt").read_bytes()
    kgi.Trainer(settings(dataset, baseline)).run()  # nothing left to do
    assert (baseline / "checkpoint.pt").read_bytes() == before
    (baseline / "model.safetensors").unlink()  # as if killed before it was written
    kgi.Trainer(settings(dataset, baseline)).run()
    more = kgi.Trainer(settings(dataset, tmp_path / "more", init=str(baseline), dropout=0.3))
    assert more.model.encoder.config.dropout == more.model.encoder.layers[0].dropout == 0.3
    assert all(torch.equal(v, weights(baseline)[k]) for k, v in more.model.state_dict().items())


def test_a_start_from_other_weights_must_fit_the_data_set(release, dataset, baseline, tmp_path):
    other = build(release, tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match="has another tokenizer than .*; build one with: make data .*TOKENIZER="):
        kgi.Trainer(settings(other, tmp_path / "run", init=str(baseline)))
    long = build(release, tmp_path / "long", tokenizer=str(baseline), seq_len=80)
    with pytest.raises(UserError, match="has 64 positions and .* sequences of up to 80 tokens"):
        kgi.Trainer(settings(long, tmp_path / "run", init=str(baseline)))


def test_validation_counts_every_target(dataset, tmp_path):
    """Over the whole part, in whatever pieces: the same losses."""
    a = kgi.Trainer(settings(dataset, tmp_path, batch_size=40)).validate()
    b = kgi.Trainer(settings(dataset, tmp_path, batch_size=1000, micro_tokens=10**6)).validate()
    assert a == pytest.approx(b, rel=1e-5) and set(a) == {"loss"} | {
        f"{t}_{x}" for t in data.TASKS for x in ("loss", "accuracy")
    }


def test_what_a_run_cannot_go_on_with(dataset, baseline, tmp_path):
    for more, said in (
        ({"lr": 5e-4}, "another 'lr'"),
        ({"seed": 1}, "another 'seed'"),
        ({"steps": 9}, "another 'steps'"),
    ):
        with pytest.raises(UserError, match=said):
            kgi.Trainer(settings(dataset, baseline, **more)).run()
    models.save(models.load(baseline), tmp_path / "model")
    with pytest.raises(UserError, match="holds a config.json, but no checkpoint.pt"):
        kgi.Trainer(settings(dataset, tmp_path / "model")).run()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.md").write_text("mine")
    with pytest.raises(UserError, match="holds a README.md, but no checkpoint.pt"):
        kgi.Trainer(settings(dataset, tmp_path / "mine")).run()
    assert [(p.name, p.read_text()) for p in (tmp_path / "mine").iterdir()] == [("README.md", "mine")]
    for text in ('{"step": 3, "reward": 0.5}\n', "a diary\n", '{"step": 0, "valid": {}}\n[1]\n'):
        (tmp_path / "theirs").mkdir(exist_ok=True)
        (tmp_path / "theirs" / "metrics.jsonl").write_text(text)
        with pytest.raises(UserError, match="holds a metrics.jsonl, but no checkpoint.pt"):
            kgi.Trainer(settings(dataset, tmp_path / "theirs")).run()
        assert (tmp_path / "theirs" / "metrics.jsonl").read_text() == text
    torch.save([1], tmp_path / "checkpoint.pt")
    with pytest.raises(UserError, match="not a checkpoint of this program"):
        kgi.Trainer(settings(dataset, tmp_path)).run()
    (tmp_path / "checkpoint.pt").write_bytes((baseline / "checkpoint.pt").read_bytes()[:1000])
    with pytest.raises(UserError, match="checkpoint.pt: damaged"):
        kgi.Trainer(settings(dataset, tmp_path)).run()


@pytest.mark.parametrize("more, said", [
    ({"warmup": 10_770}, r"warmup = 10770 steps, but the run has only 6"),
    ({"alphas": [0.5]}, "there must be three"),
    ({"heads": 5}, "heads = 5 does not divide dim = 32"),
    ({"precision": "int8"}, "precision = 'int8'"),
    ({"device": "tpu"}, "device = 'tpu'"),
    ({"precision": "fp16"}, "precision = 'fp16' needs a GPU; on the CPU give bf16 or fp32"),
    ({"dim": 2**24}, "the model is too large for the memory: .* parameters take .* GB to train"),
    ({"layers": 1000, "dim": 2**16}, "the model is too large for the memory"),
    ({"tasks": ["mlm", "nsp"]}, "tasks = mlm nsp: choose some of mlm ep lp tc"),
    ({"tasks": []}, "tasks = : choose some of"),
    ({"budget": "1h"}, r"give one of them \(--steps 0"),
    ({"budget": "soon", "steps": 0}, "budget = 'soon' is not a length of time"),
    ({"data": "nowhere"}, "nowhere is not a data set"),
    ({"init": "nowhere"}, "is nowhere a checkpoint folder"),
])  # fmt: skip
def test_bad_settings(dataset, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        kgi.Trainer(settings(dataset, tmp_path, **more))
    assert not any(tmp_path.iterdir())


def test_one_process_a_run_folder(dataset, tmp_path):
    """And it is free again when that has ended, however it did."""
    first, second = (kgi.Trainer(settings(dataset, tmp_path / "run", steps=1)) for _ in range(2))
    with first.alone(), pytest.raises(UserError, match="run: another process is training into it"):
        second.run()
    first.order = None
    with pytest.raises(TypeError):
        first.run()
    assert second.run()


def test_ranks_that_see_different_checkpoints(dataset, tmp_path):
    trainer = kgi.Trainer(settings(dataset, tmp_path))
    trainer.over_ranks = lambda numbers: [n + 7 for n in numbers]  # another rank is at step 7
    with pytest.raises(UserError, match="the ranks see different checkpoints in .*; all nodes must share the folder"):
        trainer.run()


def test_tasks_are_a_set(dataset, tmp_path):
    kgi.Trainer(settings(dataset, tmp_path, tasks=["ep", "mlm"], steps=1, warmup=1)).run()
    kgi.Trainer(settings(dataset, tmp_path, tasks=["mlm", "ep", "ep"], steps=1, warmup=1)).resume()


def test_a_validation_that_is_not_finite_is_not_kept(dataset, tmp_path):
    """Weights can be finite and the loss not: neither saved nor called done."""
    trainer = kgi.Trainer(settings(dataset, tmp_path, steps=1, warmup=1, lr=1e9, clip=0.0))
    with pytest.raises(UserError, match="step 1: the validation loss is nan; there is no checkpoint yet"):
        trainer.run()
    assert not (tmp_path / "checkpoint.pt").exists() and "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_which_data_set(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data set under datasets/"):
        kgi.find_data("")
    for name in ("fr", "es"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
        (tmp_path / "datasets" / name / "manifest.json").write_text("{}")
        if name == "fr":
            assert str(kgi.find_data("")) == "datasets/fr"
    with pytest.raises(UserError, match="say --data with one of datasets/es, datasets/fr"):
        kgi.find_data("")


def test_a_mistake_is_one_line(dataset, tmp_path):
    p = command("kgi.py", "--data", dataset, "--learning_rate", "1")
    assert p.returncode != 0 and p.stderr.startswith("kgi.py: error: --learning_rate: unknown setting")
    p = command("kgi.py", *args(dataset, tmp_path, lr="1e14", clip=0, precision="fp32"))
    assert p.returncode != 0 and "Traceback" not in p.stderr
    assert "step 2: the loss is nan; there is no checkpoint yet" in p.stderr
    with pytest.raises(UserError, match="step 1: the weights are not finite; there is no checkpoint yet"):
        kgi.Trainer(settings(dataset, tmp_path / "b", lr=1e39, clip=0.0, save_every=1, log_every=6)).run()
    assert not (tmp_path / "b" / "checkpoint.pt").exists()


def test_bf16_autocast_on_cpu(dataset, baseline, tmp_path):
    kgi.Trainer(settings(dataset, tmp_path, precision="bf16")).run()
    a, b = lines(baseline)[-1]["valid"], lines(tmp_path)[-1]["valid"]
    assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_going_on_in_fp16_what_was_begun_without(dataset, baseline):
    trainer = kgi.Trainer(settings(dataset, baseline))
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.resume()
    assert trainer.step == 6 and trainer.scaler.get_scale() == 65536.0


def test_fp16_overflow_is_done_again(dataset, tmp_path):
    """The scaler's logic, on the CPU: an overflow halves the scale and the step is done again, to the same end."""
    plain = kgi.Trainer(settings(dataset, tmp_path / "plain"))
    for _ in range(4):
        plain.optimizer_step()
    trainer = kgi.Trainer(settings(dataset, tmp_path))
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    trainer.optimizer_step()
    before = {k: v.clone() for k, v in trainer.model.state_dict().items()}
    kept = []

    def overflow(gradient):
        kept.append(all(torch.equal(v, before[k]) for k, v in trainer.model.state_dict().items()))
        return gradient * float("inf") if trainer.scaler.get_scale() > 256 else gradient

    hook = trainer.model.triple.bias.register_hook(overflow)
    trainer.optimizer_step()
    assert trainer.scaler.get_scale() == 256.0 and trainer.skipped == 2 and trainer.step == 2
    assert all(kept)  # skipped: the weights stay as they were
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [kgi.learning_rate(1, 6, trainer.warmup, 1e-3)]
    assert {int(s["step"]) for s in trainer.optimizer.state.values()} == {2}  # AdamW's own count of updates
    hook.remove()
    for _ in range(2):
        trainer.optimizer_step()
    assert np.allclose(trainer.interval, plain.interval, rtol=1e-5)
    for k, v in plain.model.state_dict().items():
        assert (v - trainer.model.state_dict()[k]).abs().max() < 2e-6
    trainer.save()
    again = kgi.Trainer(settings(dataset, tmp_path))
    again.scaler = torch.amp.GradScaler("cpu")
    again.resume()
    assert (
        again.scaler.get_scale() == 256.0 and again.skipped == 2 and again.scaler.state_dict()["_growth_tracker"] == 3
    )


def test_overflow_without_end_stops_and_keeps_the_checkpoint(dataset, tmp_path):
    trainer = kgi.Trainer(settings(dataset, tmp_path, save_every=1, steps=2))
    trainer.run()
    good = (tmp_path / "checkpoint.pt").read_bytes()
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.model.triple.bias.register_hook(lambda g: g * float("inf"))
    with pytest.raises(UserError, match=r"step 3: the gradients overflowed fp16 20 times, .* last checkpoint"):
        trainer.optimizer_step()
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.model.link.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 3: the loss is nan; .*checkpoint.pt is the last checkpoint"):
        trainer.optimizer_step()
    assert (tmp_path / "checkpoint.pt").read_bytes() == good and trainer.skipped == 20


def test_torchrun_as_the_readme_has_it(dataset, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "kgi.py", "--lr", "fast"]
    p = subprocess.run(torchrun, cwd=ROOT, capture_output=True, text=True, timeout=120)
    line = "kgi.py: error: --lr: 'fast' is not a number"
    report, cause = p.stderr.split("Root Cause")
    assert p.returncode != 0 and cause.count(line) == 1  # at the end of the report, where it is seen
    assert sum(x.startswith(line) for x in report.splitlines()) <= 1  # and when it happens, from one rank


def test_a_run_that_ended_before_its_first_checkpoint_begins_again(dataset, baseline, tmp_path):
    for n in (0, 1, 3):
        (tmp_path / "run").mkdir(exist_ok=True)
        first = (baseline / "metrics.jsonl").read_text().splitlines(keepends=True)[:n]
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(first))
        kgi.Trainer(settings(dataset, tmp_path / "run")).resume()
        assert (tmp_path / "run" / "metrics.jsonl").read_text() == ""


DAMAGE = [b"\xff\xfe", b'{"step": "two", "loss": 1.0}', b"[1, 2]", b'{"step": 4, "lo', b"null", b'{"step": -1}',
          b'{"step": 5, "valid": 7}', b'{"step": 5, "valid": {"mlm_loss": "x"}}']  # fmt: skip


def test_damaged_lines_of_metrics_are_dropped(dataset, baseline, tmp_path, capsys):
    """Going on, the model card and the plot: told in one line, and the rest is kept byte for byte."""
    out = tmp_path / "run"
    kgi.Trainer(settings(dataset, out)).run()
    whole = (out / "metrics.jsonl").read_bytes()
    (out / "metrics.jsonl").write_bytes(b"\n".join([*DAMAGE, whole]))
    capsys.readouterr()
    trainer = kgi.Trainer(settings(dataset, out))
    assert "held out, at step 6" in trainer.card()
    kgi.plot([str(out), "--out", str(tmp_path / "x.png")])
    assert f"{out / 'metrics.jsonl'}: damaged lines left out: {len(DAMAGE)}" in capsys.readouterr().out
    trainer.resume()
    assert f"{out / 'metrics.jsonl'}: damaged lines dropped: {len(DAMAGE)}\n" == capsys.readouterr().out
    assert (out / "metrics.jsonl").read_bytes() == whole


def test_a_finished_run_is_done_at_once(dataset, baseline, monkeypatch, capsys):
    """Nothing is measured or written; a model that is not that of the checkpoint is."""
    monkeypatch.setattr(models, "matrix_rate", None)
    before = {p.name: p.stat().st_mtime_ns for p in baseline.iterdir() if p.name != "metrics.jsonl"}
    trainer = kgi.Trainer(settings(dataset, baseline))
    assert trainer.run() and capsys.readouterr().out == f"done: {baseline}\n"
    assert {p.name: p.stat().st_mtime_ns for p in baseline.iterdir() if p.name != "metrics.jsonl"} == before
    other = models.load(baseline)
    other.vocab_bias.data += 1
    models.save(other, baseline)
    assert kgi.Trainer(settings(dataset, baseline)).run()
    assert torch.equal(models.load(baseline).vocab_bias, weights(baseline)["vocab_bias"])


def test_mfu_is_never_above_one(dataset, tmp_path, monkeypatch):
    """The best rate counts, be it the run's own or one that was measured later; the random state stays as it is."""
    trainer = kgi.Trainer(settings(dataset, tmp_path))
    trainer.rate, trainer.measured = 100.0, time.perf_counter()
    assert [trainer.mfu(x) for x in (50.0, 200.0, 100.0)] == [0.5, 1.0, 0.5]
    state = torch.get_rng_state()
    models.matrix_rate.__wrapped__(trainer.device, None, repeat=1)
    assert torch.equal(torch.get_rng_state(), state)
    monkeypatch.setattr(models.matrix_rate, "__wrapped__", lambda *_, repeat: 400.0)
    assert trainer.mfu(100.0) == 0.5  # not yet
    trainer.measured -= 61
    assert trainer.mfu(100.0) == 0.25 and time.perf_counter() - trainer.measured < 60


def test_a_clock_that_stands_still(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(kgi.time, "perf_counter", lambda: 5.0)
    models.matrix_rate.cache_clear()
    kgi.Trainer(settings(dataset, tmp_path, steps=2)).run()
    models.matrix_rate.cache_clear()
    trained = [r for r in lines(tmp_path) if "valid" not in r]
    assert [(r["tokens_per_s"], r["mfu"], r["left_s"]) for r in trained] == [(0.0, 0.0, 0.0)] * 2


def test_a_budget_too_short_is_known_early(dataset, tmp_path, monkeypatch):
    """In the middle of the first validation, or before the first step."""
    now = [0.0]
    monkeypatch.setattr(kgi.time, "perf_counter", lambda: now[0])
    forward = models.KGIBert.forward

    def slow(model, *args):
        now[0] += 10
        assert now[0] <= 100 and not model.training
        return forward(model, *args)

    monkeypatch.setattr(models.KGIBert, "forward", slow)
    few = {"steps": 0, "micro_tokens": 100}
    with pytest.raises(UserError, match=r"budget = 1m is not enough for validations before and after .*at least \d+s"):
        kgi.Trainer(settings(dataset, tmp_path / "a", budget="1m", **few)).run()
    assert now[0] == 40  # more than half of it
    now[0] = 0.0
    monkeypatch.setattr(kgi.Trainer, "validate", lambda *_: now.__setitem__(0, 20.0))
    with pytest.raises(UserError, match=r"validations before .*\(20.0 s each\) and one step \(\d+.\d s or more\)"):
        kgi.Trainer(settings(dataset, tmp_path / "b", budget="1m", batch_size=2000, **few)).run()
    assert not (tmp_path / "a" / "checkpoint.pt").exists()


@pytest.mark.parametrize("tasks, text, graph", [(["mlm"], True, False), (["ep", "lp"], False, True)])
def test_the_model_card_says_what_is_true(dataset, tmp_path, tasks, text, graph):
    card = kgi.Trainer(settings(dataset, tmp_path, tasks=tasks)).card()
    assert "clinical text" not in card and ("on documents" in card, "fill-mask" in card) == (text, text)
    assert all((x in card) == graph for x in ("knowledge graph", "- umls", "| CUIs |", "for the UMLS"))
    for task, name in zip(data.TASKS, data.NAMES):
        assert (f"{name} examples" in card) == (f"{task.upper()} " in card.split("weights of")[1]) == (task in tasks)


def test_the_tasks_stay_with_the_model(dataset, baseline, tmp_path):
    """In config.json, through load and save, and with those of the checkpoint that a run began with."""
    few = {"steps": 1, "warmup": 1.0, "valid_every": 1}
    kgi.Trainer(settings(dataset, tmp_path / "lp", tasks=["lp"], **few)).run()
    models.save(models.load(tmp_path / "lp"), tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["kgi_tasks"] == ["lp"]
    then = kgi.Trainer(settings(dataset, tmp_path / "then", tasks=["mlm"], init=str(tmp_path / "lp")))
    assert then.model.encoder.config.handed_on["kgi_tasks"] == ["mlm", "lp"]


def test_evaluation_decides_by_the_tokenizer(dataset, baseline, tmp_path, monkeypatch, capsys):
    """A model may have more embeddings than its tokenizer has entries, as many on the hub do."""
    monkeypatch.chdir(tmp_path)
    model = models.load(baseline)
    models.grow(model, [], model.encoder.config.vocab_size + 62)
    model.encoder.config.handed_on.pop("kgi_tasks", None)
    models.save(model, tmp_path / "wide")
    (tmp_path / "wide" / "tokenizer.json").write_bytes((baseline / "tokenizer.json").read_bytes())
    few = ["--data", str(dataset), "--terms", "200", "--device", "cpu"]
    kgi.main(["--evaluate", str(tmp_path / "wide"), str(baseline), *few])
    assert "synonyms alone" not in capsys.readouterr().out
    wide, own = (
        json.loads((tmp_path / "results" / name / f"knowledge-{dataset.name}.json").read_text())
        for name in ("wide", baseline.name)
    )
    assert wide["lp"] == own["lp"] and own["tasks"] == list(data.TASKS) and "tasks" not in wide


def test_a_data_set_that_cannot_be_read(dataset, baseline, tmp_path, monkeypatch):
    """It does not stand in the way of another one, and is named where none can be found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets" / "broken").mkdir(parents=True)
    (tmp_path / "datasets" / "broken" / "manifest.json").write_text("{")
    assert kgi.find_data(str(dataset), str(baseline)) == dataset
    with pytest.raises(UserError, match=r"no data set under datasets/ has the tokenizer of .*; datasets/broken/mani"):
        kgi.find_data("", str(baseline))
    (tmp_path / "datasets" / "en").symlink_to(dataset)
    assert str(kgi.find_data("", str(baseline))) == "datasets/en"
    exists = kgi.Path.exists

    def forbidden(path, **more):
        if path.parent.name == "broken":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **more)

    monkeypatch.setattr(kgi.Path, "exists", forbidden)
    assert str(kgi.find_data("")) == "datasets/en"


PYTHON = """#!/bin/sh
# Stands in for the one of .venv: says what it is called with.
[ "$1" != -c ] || exec {python} "$@"
echo "called $*"
case "$*" in *"{fails}"*) exit 1;; esac
"""


def test_make_ablation_asks_the_run_what_is_left_to_do(tmp_path):
    """kgi.py always, and it may refuse; fine-tuning and evaluation where there is no result newer than the model."""

    def make(fails="nothing"):
        (tmp_path / "env" / "bin" / "python").write_text(PYTHON.format(python=sys.executable, fails=fails))
        (tmp_path / "env" / "bin" / "python").chmod(0o755)
        argv = ["make", "-f", ROOT / "Makefile", "ablation", "VENV=env", "LANG=fr", "CORPORA=x=y", "ARGS=--lr 1"]
        p = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        return p.returncode, [x.removeprefix("called ") for x in p.stdout.splitlines() if "v1-fr" in x]

    (tmp_path / "env" / "bin").mkdir(parents=True)
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-plot.txt", "env/.ready"):
        (tmp_path / name).touch()
    code, called = make()
    assert code == 0 and len(called) == 15
    assert called[0] == (
        "kgi.py configs/v1-fr.toml configs/ablation-mlm.toml --data datasets/fr --seed 0 --out runs/v1-fr-mlm-s0 --lr 1"
    )
    assert called[1].startswith("finetune.py runs/v1-fr-mlm-s0 ") and called[2].startswith("kgi.py --evaluate runs/v1")
    model = tmp_path / "runs" / "v1-fr-mlm-s0" / "model.safetensors"
    scores, knowledge = (tmp_path / "results" / "v1-fr-mlm-s0" / x for x in ("x/scores.json", "knowledge-fr.json"))
    for path, text in ((model, ""), (scores, '{"runs": [{}]}'), (knowledge, "{}")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        os.utime(path, (1, 1 + (path != model)))
    assert [x for x in make()[1] if "v1-fr-mlm" in x] == called[:1]
    os.utime(model, (1, 3))
    assert [x for x in make()[1] if "v1-fr-mlm" in x] == called[:3]
    code, called = make(fails="runs/v1-fr-mlm-s0 --lr 1")  # made with other settings
    assert code != 0 and len(called) == 1
