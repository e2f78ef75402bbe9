"""Pre-training: the loss of equation (2), what must not depend on the layout, and a run that was stopped or killed."""

import functools
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import configs
import data
import kgi
import model as models
from beyond import evaluate
from configs import UserError, command_line
from support import datasets, hardware, layouts, reports, runs
from support.arrays import concat_ranges
from tests.conftest import FEW, ROOT, build, command
from tests.test_evaluate import run_command
from tests.training import (
    args,
    call,
    free_ports,
    lines,
    one_step,
    run_in_ranks,
    same_end,
    same_weights,
    set_up,
    settings,
    train,
    training_lines,
    weights,
)

pytestmark = pytest.mark.usefixtures("known_machine")

MEASURE_MATMUL_FLOPS = hardware.measure_matmul_flops
MEASURED = {"tokens_per_s", "mfu", "padding", "memory_gb", "eta_s"}  # what is not the same on all layouts and days


def test_alphas_are_those_of_section_4_1():
    """Section 4.1 by hand, at Table 1's sizes for French: they sum to 1, and more examples weigh less."""
    ep, lp, tc = 100_000, 64_208, 200_000
    a = kgi.alphas([ep, lp, tc])
    assert a == pytest.approx([(lp + tc) / 728_416, (ep + tc) / 728_416, (ep + lp) / 728_416])
    assert sum(a) == pytest.approx(1) and a[1] > a[0] > a[2] and kgi.alphas([1, 1, 1]) == pytest.approx([1 / 3] * 3)
    assert kgi.alphas([ep, 0, tc]) == pytest.approx([2 / 3, 0, 1 / 3])  # two tasks: still 1 together
    assert kgi.alphas([0, lp, 0]) == [0, 1, 0] and kgi.alphas([0, 0, 0]) == [0, 0, 0]


def test_the_learning_rate_is_a_triangle():
    rate = [kgi.learning_rate(s, 100, 40, 2.0) for s in range(100)]
    assert rate[0] == pytest.approx(2 / 40) and max(rate) == rate[39] == rate[40] == 2.0
    assert rate[70] == pytest.approx(2.0 * 30 / 60) and 0 < rate[99] < 0.04
    assert all(b > a for a, b in zip(rate[:39], rate[1:40])) and all(b < a for a, b in zip(rate[40:], rate[41:]))


def test_loss_of_a_step_is_equation_2(dataset, tmp_path):
    """One step against a plain loop: each example alone, dense cross-entropy, no micro-batches."""
    run = set_up(dataset, tmp_path / "run", mlm_probability=0.3, batch_size=300, clip=0.0, log_every=9, valid_every=9)
    model, examples = run.model, run.train
    positions, epochs = data.EpochSampler(len(examples), 300, 0)(0)
    batch = examples.masked_batch(examples.rows[positions], epochs, 0, 0.3)
    heads = [model.mlm_head, model.mlm_head, model.relation_head, model.triple_head]
    sums, counts = [0.0] * 4, [0] * 4
    for task, offset, length in zip(batch.task, batch.offset, batch.length):
        ids, labels = (torch.from_numpy(x[offset : offset + length]) for x in (batch.ids, batch.labels))
        hidden = model.encoder(ids[None])[0]
        for j in (labels != layouts.IGNORE).nonzero().flatten():
            sums[task] = sums[task] + F.cross_entropy(heads[task](hidden[j]), labels[j])
            counts[task] += 1
    assert min(counts) > 0 and counts == batch.n_targets.tolist()
    alphas = kgi.alphas([examples.manifest["counts"]["en"]["train"][t] for t in ("ep", "lp", "tc")])
    loss = sum(w * s / n for w, s, n in zip([1.0, *alphas], sums, counts))
    loss.backward()
    norm = torch.linalg.vector_norm(torch.stack([p.grad.norm() for p in model.parameters()]))
    model.zero_grad()
    seen = {}
    run.optimizer.register_step_pre_hook(
        lambda *_: seen.update(norm=sum(p.grad.norm() ** 2 for p in model.parameters()) ** 0.5)
    )
    one_step(run)
    assert kgi.mixed_loss(run, run.state.sums)["loss"] == pytest.approx(loss.item(), rel=1e-5)
    assert seen["norm"].item() == pytest.approx(norm.item(), rel=1e-4)
    assert run.state.work["tokens"] == batch.length.sum()


@pytest.fixture(scope="module")
def baseline(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("kgi") / "one"
    train(dataset, out)
    return out


def same_but_for_rounding(one, two):
    for a, b in zip(lines(one), lines(two), strict=True):
        a, b = (x.get("valid", {k: v for k, v in x.items() if k not in MEASURED}) for x in (a, b))
        assert a == pytest.approx(b, rel=2e-5, abs=2e-5)
    other = weights(two)
    assert all((v - other[k]).abs().max() < 2e-5 for k, v in weights(one).items())


LAYOUTS = [(1, 200, "padded"), (4, 64, "padded"), (1, 10**6, "packed"), (2, 600, "packed")]


@pytest.fixture(scope="module")
def laid_out(dataset, tmp_path_factory):
    """{layout: a run folder}, all of them started by one process."""
    folder = tmp_path_factory.mktemp("layouts")
    found = {x: folder / "-".join(map(str, x)) for x in LAYOUTS}
    run_in_ranks([(x[0], args(dataset, out, max_tokens=x[1], layout=x[2])) for x, out in found.items()])
    return found


@pytest.mark.parametrize("ranks, max_tokens, layout", LAYOUTS)
def test_only_the_speed_depends_on_the_layout(baseline, laid_out, ranks, max_tokens, layout):
    """The same losses, accuracies and weights with any number of real processes, any micro-batch and packed rows."""
    same_but_for_rounding(baseline, laid_out[ranks, max_tokens, layout])


def test_a_run_resumes_in_another_layout(dataset, baseline, tmp_path):
    """Up to rounding; which layout it is belongs to the machine, not to the run."""
    run = set_up(dataset, tmp_path)
    runs.resume(run)
    kgi.begin(run)
    one_step(run)
    train(dataset, tmp_path, layout="packed")
    same_but_for_rounding(baseline, tmp_path)


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_encoder_computes_the_same(dataset, tmp_path):
    few = {"steps": 2, "layers": 1, "layout": "packed"}
    train(dataset, tmp_path / "eager", **few)
    train(dataset, tmp_path / "compiled", compile="on", **few)
    same_but_for_rounding(tmp_path / "eager", tmp_path / "compiled")


@pytest.fixture
def compiler(monkeypatch):
    """In the place of Inductor: keeps the graphs that it is given, and raises `fault` if a test sets it."""
    compiler = SimpleNamespace(graphs=[], fault=None)

    def backend(graph, _):
        if compiler.fault:
            raise compiler.fault
        compiler.graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(torch.nn.Module, "compile", functools.partialmethod(torch.nn.Module.compile, backend=backend))
    monkeypatch.setitem(layouts.ROW_MULTIPLE, "cpu", 1)
    torch._dynamo.reset()
    yield compiler
    torch._dynamo.reset()


def compiled_run(dataset, out, **more):
    """A run with packed rows as on a GPU, of no fixed number."""
    run = set_up(dataset, out, layout="packed", compile="on", max_tokens=10**6, layers=1, **more)
    out.mkdir(exist_ok=True)
    return run


@pytest.mark.parametrize("family", configs.ARCHITECTURES)
def test_two_graphs_serve_all_packed_rows(dataset, tmp_path, compiler, capsys, family):
    """One for training and one for validation, both compiled before anything is measured, whatever the height."""
    run = compiled_run(dataset, tmp_path, family=family)
    kgi.warm_up(run)
    assert len(compiler.graphs) == 2 and "encoder compiled in" in capsys.readouterr().out
    kgi.begin(run)
    kgi.training_loop(run)
    kgi.validate(run, run.valid.rows[:1])
    shapes = {run.batches.assemble(step)[0][0].ids.shape for step in range(6)}
    assert len(compiler.graphs) == 2 and len(shapes) > 1
    run.start_over()  # as after the steps of a time budget were measured
    assert run.state.compiled


def test_an_encoder_that_cannot_be_compiled_runs_uncompiled(dataset, tmp_path, compiler, capsys):
    """With `auto`, or if another rank cannot: one line, and the losses of an eager run. With `on` it is an error."""
    train(dataset, tmp_path / "eager", layout="packed", layers=1)
    compiler.fault = RuntimeError("Failed to find C compiler. Please specify via CC.\nMore")
    run = compiled_run(dataset, tmp_path / "on")
    with pytest.raises(
        UserError, match="compile = 'on', but torch.compile failed: Failed to find C compiler. .* CC. It"
    ):
        kgi.begin(run)
    for name, fault in (("alone", subprocess.CalledProcessError(1, ["gcc"] * 99)), ("another rank", None)):
        compiler.fault, out = fault, tmp_path / name
        run = compiled_run(dataset, out)
        run.s.compile = "auto"
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as m:
            if not fault:
                m.setattr(run.ranks, "world_size", 2)
                m.setattr(run.ranks, "all_reduce_sum", lambda numbers: numbers)  # of the other: 0
                m.setattr(run.model, "no_sync", nullcontext, raising=False)
            hardware.compile_encoder(run, run.batches.assemble(0)[0][0])
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith("the encoder runs uncompiled, as torch.compile failed: ") and len(line) < 400
        assert ("returned non-zero exit status 1." if fault else "not all ranks can.") in line
        run.optimizer.zero_grad()
        kgi.begin(run)
        kgi.training_loop(run)
        assert "compiled" not in capsys.readouterr().out and not run.state.compiled
        same_but_for_rounding(tmp_path / "eager", out)


def test_a_last_validation_that_is_made_up_for_needs_no_compiler(dataset, tmp_path, compiler, monkeypatch, capsys):
    train(dataset, tmp_path, layout="packed", layers=1, steps=1)
    content = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    content["state"]["validated"] = 0
    torch.save(content, tmp_path / "checkpoint.pt")
    compiler.fault = OSError("no gcc")
    run = compiled_run(dataset, tmp_path, steps=1)
    run.s.compile = "auto"
    monkeypatch.setattr(kgi, "set_up", lambda *_: run)
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        kgi.train(run.s)
    shown = capsys.readouterr().out
    assert (
        end.value.code == 0
        and "runs uncompiled" in shown
        and "first, the validation that a signal interrupted" in shown
    )
    assert [(r["step"], "valid" in r) for r in lines(tmp_path)] == [(0, True), (1, False), (1, True)]


def test_a_full_gpu_is_not_a_fault_of_the_compiler(dataset, tmp_path, compiler):
    compiler.fault = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    run = compiled_run(dataset, tmp_path)
    with pytest.raises(RuntimeError, match="out of memory"):
        kgi.begin(run)


def test_what_may_change_on_resume_is_what_the_readme_says(dataset, tmp_path, compiler, capsys):
    """All of it, and nothing else; a change of `compiled`, which other settings bring with them, is told."""
    run = set_up(dataset, tmp_path)
    before, may_change = runs.run_signature(run), set()
    for f in fields(configs.Train):
        value = getattr(run.s, f.name)
        changed = (
            value + ["x"] if type(value) is list else not value if type(value) is bool else value * 2 or type(value)(1)
        )
        other = replace(run, s=replace(run.s, **{f.name: changed}))
        if runs.run_signature(other) == before:
            may_change.add(f.name)
    readme = " ".join((ROOT / "README.md").read_text().split())
    (sentence,) = re.findall(r"You may change the number of ranks,(.*?)\.", readme)
    by_content = {"data", "out", "init"}  # their content counts, not their names
    assert may_change == set(re.findall("`(.*?)`", sentence)) | by_content
    for compile, change in (("off", None), ("on", "compiled, and was not up to here"), ("on", None),
                            ("off", "no longer compiled, and was up to here")):  # fmt: skip
        run = set_up(dataset, tmp_path, compile=compile, layout="packed")
        runs.resume(run)
        kgi.begin(run)
        one_step(run)
        told = f"the encoder is {change}: dropout masks differ from here on"
        assert (told in capsys.readouterr().out) if change else ("up to here" not in capsys.readouterr().out)


def test_validations_before_the_last_are_bounded(dataset, tmp_path):
    """They use one subset with the shares of the tasks; the last has all examples."""
    run = set_up(dataset, tmp_path, valid_examples=60)
    some = kgi.validation_rows(run)
    run.state.step = run.state.steps
    whole = kgi.validation_rows(run)
    assert len(some) == len(set(some.tolist())) == 60 and set(some.tolist()) <= set(whole.tolist())
    assert whole.tolist() == run.valid.rows.tolist()
    shares = [np.bincount(run.valid.task[rows], minlength=4) / len(rows) for rows in (some, whole)]
    assert np.abs(shares[0] - shares[1]).max() < 0.02
    train(dataset, tmp_path, valid_examples=60)
    train(dataset, tmp_path / "all", valid_examples=10**6)
    one, two = ([r["valid"] for r in lines(out) if "valid" in r] for out in (tmp_path, tmp_path / "all"))
    assert one[0] != two[0] and one[-1] == two[-1]


def test_a_gpu_without_kernels_is_one_clear_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "V100")
    for capability, built_for, runs_there in (
        ((7, 0), ["sm_75", "sm_80", "sm_90"], False), ((7, 0), ["sm_70", "sm_80"], True),
        ((8, 6), ["sm_80", "sm_90"], True), ((12, 0), ["sm_90", "compute_90"], True),
        ((9, 0), ["sm_90a"], True), ((12, 0), ["sm_90"], False),
    ):  # fmt: skip
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda c=capability: c)
        monkeypatch.setattr(torch.cuda, "get_arch_list", lambda b=built_for: b)
        if runs_there:
            hardware.check_kernels()
        else:
            with pytest.raises(UserError, match="has no kernels for V100"):
                hardware.check_kernels()


def test_attention_on_a_gpu_never_goes_to_cudnn(monkeypatch):
    """Whatever its capability; torch would choose it from 9.0 on."""
    found = {"is_available": True, "device_count": 1, "set_device": None, "get_device_capability": (9, 0)}
    for name, value in found.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    monkeypatch.setattr(hardware, "check_kernels", lambda: None)
    try:
        torch.backends.cuda.enable_cudnn_sdp(True)
        assert hardware.choose_device("auto", "auto") == (torch.device("cuda"), torch.bfloat16)
        assert not torch.backends.cuda.cudnn_sdp_enabled()
    finally:
        torch.backends.cuda.enable_cudnn_sdp(True)


def test_two_nodes_are_as_one_process(dataset, tmp_path):
    """Two torchrun agents find each other (c10d, over loopback), as the README has it.

    Steps are of three examples: some lack a task, and one rank has a single example.
    """
    few = {"batch_size": 3, "steps": 16, "valid_every": 16, "dropout": 0.0}
    train(dataset, tmp_path / "one", **few)
    trained = [{t for t in data.TASK_NAMES if f"{t}_loss" in r} for r in training_lines(tmp_path / "one")]
    assert all(any(t not in step for step in trained) for t in data.TASK_NAMES)
    assert set.union(*trained) == set(data.TASK_NAMES)
    (port,) = free_ports(1)
    agent = ["--nnodes", "2", "--nproc_per_node", "1", "--rdzv_id", "7", "--rdzv_backend", "c10d"]
    agent += ["--rdzv_endpoint", f"localhost:{port}", "--start_method", "fork", "kgi.py"]
    agent += args(dataset, tmp_path / "two", **few)
    p = command("-c", f"from tests.training import *\nassert train_on_nodes(2, {agent}) == [0, 0]")
    assert p.returncode == 0 and p.stdout.count("done: ") == 1, p.stderr  # rank 0 alone prints
    same_but_for_rounding(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize("left_out", ["mlm", "ep", "lp", "tc"])
def test_a_task_left_out_changes_nothing_of_the_others(dataset, tmp_path, left_out):
    """Table 6: it is neither trained nor validated, the alphas are of what remains, the others' masks are the same."""
    tasks = [t for t in data.TASK_NAMES if t != left_out]
    train(dataset, tmp_path, tasks=tasks, steps=2)
    keys = {k for r in lines(tmp_path) for k in r.get("valid", r) if k.endswith("_loss")}
    assert keys == {f"{t}_loss" for t in tasks}
    run = set_up(dataset, tmp_path, tasks=tasks, steps=2)
    counts = run.train.manifest["counts"]["en"]["train"]
    n = [counts[t] for t in tasks if t != "mlm"]
    expected = {t: (sum(n) - counts[t]) / sum(n) / (len(n) - 1) for t in tasks if t != "mlm"}
    found = dict(zip(data.TASK_NAMES[1:], run.coefficients[1:].tolist()))
    assert {t: w for t, w in found.items() if w} == pytest.approx(expected)
    assert len(run.train) == sum(counts[t] for t in tasks)
    whole = data.PretrainingDataset(dataset, "train")
    all_masked, masked = (x.masked_batch(x.rows, np.zeros(len(x), int), 0, 0.15) for x in (whole, run.train))
    keep = np.flatnonzero(np.isin(whole.task, [data.TASK_NAMES.index(t) for t in tasks]))
    assert (all_masked.ids[concat_ranges(all_masked.offset[keep], all_masked.length[keep])] == masked.ids).all()


def test_masks_do_not_depend_on_the_layout(dataset, tmp_path):
    """What the model sees of each example of a step, whatever the ranks and micro-batches, also with dropout."""
    s, seen = settings(dataset, tmp_path, dropout=0.5), set()
    examples = data.PretrainingDataset(dataset, "train", ["mlm"])
    for world_size, max_tokens in ((1, 10**6), (1, 100), (2, 300), (4, 64)):
        rows = []
        for rank in range(world_size):
            ranks = SimpleNamespace(device=torch.device("cpu"), rank=rank, world_size=world_size)
            for x in kgi.Batches(s, examples, ranks, max_tokens).get(3)[0]:
                mask = torch.ones_like(x.ids, dtype=torch.bool) if x.mask is None else x.mask
                rows += [tuple(row[m].tolist()) for row, m in zip(x.ids, mask)]
        seen.add(tuple(sorted(rows)))
    assert len(seen) == 1 and len(rows) == 40


THREE_RANKS = """
import os, shutil, signal
import kgi
from support import reports
from tests.training import train_in_ranks

def killed_after_step_5():
    write_metrics = reports.write_metrics
    def die_after_step_5(run, record):
        write_metrics(run, record)
        if record["step"] == 5:
            os.kill(os.getpid(), signal.SIGKILL)
    reports.write_metrics = die_after_step_5

def signalled_before_step_4():
    training_loop = kgi.training_loop
    def signal_one_rank(run):
        if run.ranks.rank == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        training_loop(run)
    kgi.training_loop = signal_one_rank

def signalled_in_step_5():
    seed_dropout = kgi.seed_dropout
    def signal_one_rank(run, i):
        seed_dropout(run, i)
        if run.state.step == 4 and i == 0 and run.ranks.rank == 2:
            os.kill(os.getpid(), signal.SIGTERM)
    kgi.seed_dropout = signal_one_rank

ports = {ports!r}
assert train_in_ranks(3, {whole!r}, ports[0]) == [0, 0, 0]
assert train_in_ranks(3, {stopped!r}, ports[1], killed_after_step_5) != [0, 0, 0]
shutil.copy({metrics!r}, {metrics!r} + ".killed")
assert train_in_ranks(3, {stopped!r}, ports[2], signalled_before_step_4) == [75, 75, 75]
assert train_in_ranks(3, {stopped!r}, ports[3], signalled_in_step_5) == [75, 75, 75]
assert train_in_ranks(3, {stopped!r}, ports[4]) == [0, 0, 0]
"""


def test_three_ranks_resume_to_the_same_weights(dataset, tmp_path):
    """Killed after the checkpoint at step 3 and started again, with dropout: bit for bit the same.

    Then one rank alone gets a signal before its first step, and in the middle of step 5: all three drop that step and
    save the four before it. The sum over three ranks depends on its order, which that over two does not.
    """
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    script = THREE_RANKS.format(
        ports=free_ports(5), metrics=str(stopped / "metrics.jsonl"),
        whole=args(dataset, whole, dropout=0.1, max_tokens=128),
        stopped=args(dataset, stopped, dropout=0.1, max_tokens=128),
    )  # fmt: skip
    p = command("-c", script)
    assert p.returncode == 0 and "training steps 3 to 6, 40 examples each" in p.stdout, p.stderr
    for step in (3, 4):
        assert f"stopped by a signal to another rank after step {step}, saved" in p.stdout
    assert "training steps 4 to 6, 40 examples each" in p.stdout
    killed = [json.loads(line) for line in (stopped / "metrics.jsonl.killed").read_text().splitlines()]
    assert [r["step"] for r in killed if "valid" not in r] == [1, 2, 3, 4, 5]  # two were written after the checkpoint
    assert same_weights(whole, stopped)
    for x, y in zip(lines(whole), lines(stopped), strict=True):
        assert x.keys() == y.keys() and x["step"] == y["step"] and x.get("valid") == y.get("valid")
        assert x.get("loss") == y.get("loss")


SAVES_THAT_END = ["in the file", "between the two", "before the model"]
KILLED = """
import os, pathlib, random, signal, time
import torch
import torch._dynamo
from support import hardware, runs
from tests.training import call, exit_status, fork

hardware.measure_matmul_flops = lambda *_: 1e11

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

def train_and_die(argv, where, at=4):
    saves, save, replace = [0], torch.save, pathlib.Path.replace
    def save_half(content, f):
        saves[0] += 1
        save(content, f)
        if saves[0] == at:
            f.truncate(f.tell() // 2)
            f.flush()
            die()
    def replace_one(path, target):
        saves[0] += str(target).endswith("checkpoint.prev.pt")
        replace(path, target)
        if saves[0] == at - 1:
            die()
    if where == "in the file":
        torch.save = save_half
    if where == "between the two":
        pathlib.Path.replace = replace_one
    if where == "before the model":
        export = runs.export_checkpoint
        runs.export_checkpoint = lambda run: die() if run.state.step == at else export(run)
    call(*argv)

for where, argv in {saves!r}:
    assert exit_status(fork(train_and_die, argv, where)) == -9, where
for seed, (metrics, argv) in enumerate({moments!r}):
    child, rng, began = fork(call, *argv), random.Random(seed), time.time()
    while not os.path.exists(metrics) and time.time() - began < 60:
        time.sleep(0.01)
    time.sleep(rng.random() * 0.3)
    os.kill(child, signal.SIGKILL)
    exit_status(child)
"""


@pytest.fixture(scope="module")
def undisturbed(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("kgi") / "undisturbed"
    train(dataset, out, dropout=0.1, save_every=1)
    return out


@pytest.fixture(scope="module")
def killed(dataset, tmp_path_factory):
    """A folder with the run folders of runs that were killed in their fourth save, or at a random moment."""
    folder, few = tmp_path_factory.mktemp("killed"), {"dropout": 0.1, "save_every": 1}
    saves = [(where, args(dataset, folder / where, **few)) for where in SAVES_THAT_END]
    moments = [(str(folder / f"{k}" / "metrics.jsonl"), args(dataset, folder / f"{k}", **few)) for k in range(2)]
    p = command("-c", KILLED.format(saves=saves, moments=moments))
    assert p.returncode == 0, p.stderr
    return folder


@pytest.mark.parametrize("where", SAVES_THAT_END)
def test_killed_while_a_checkpoint_is_written(dataset, undisturbed, killed, capsys, where):
    """SIGKILL in the middle of the fourth save; the same command ends in the same weights, bit for bit."""
    out = killed / where
    train(dataset, out, dropout=0.1, save_every=1)
    shown, step = capsys.readouterr().out, 4 if where == "before the model" else 3
    assert f"training steps {step} to 6" in shown
    fell_back = f"no {out / 'checkpoint.pt'}; resuming from the previous checkpoint, of step 3" in shown
    assert fell_back == (where == "between the two")
    same_end(out, undisturbed)


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment(dataset, undisturbed, killed, seed):
    """SIGKILL at a random moment; the same command ends in the same weights, bit for bit."""
    train(dataset, killed / str(seed), dropout=0.1, save_every=1)
    same_end(killed / str(seed), undisturbed)


def test_dropout_differs_from_step_to_step(dataset, tmp_path):
    """At a rate of zero and with the same examples, the loss changes with the step alone."""
    run = set_up(dataset, tmp_path, dropout=0.5, lr=0.0)
    batch = run.batches.assemble(0)
    run.batches.get.function = lambda step: batch
    kgi.training_loop(run)
    losses = [r["loss"] for r in training_lines(tmp_path)]
    assert len(set(losses)) == 6
    run.state.step = 0
    one_step(run)
    assert training_lines(tmp_path)[-1]["loss"] == losses[0]


@pytest.mark.parametrize(
    "number,place,finished",
    [
        (signal.SIGTERM, "seed_dropout", 2),  # a micro-batch that others follow: the step is dropped
        (signal.SIGUSR1, "update", 3),  # too late to drop it
        (signal.SIGINT, "validation_rows", 6),  # the last validation is dropped, and made up for
    ],
)
def test_a_signal_saves_the_last_finished_step_and_exits(
    dataset, tmp_path, monkeypatch, capfd, number, place, finished
):
    """In the middle of an interval of the log: a line at once, status 75, and the same end, metrics.jsonl too."""
    few = {"dropout": 0.1, "log_every": 4, "valid_every": 6, "save_every": 6, "max_tokens": 256}
    whole, out = tmp_path / "whole", tmp_path / "run"
    train(dataset, whole, **few)
    original = getattr(kgi, place)

    def signalled(run, *rest, **more):
        if run.state.step == finished:
            os.kill(os.getpid(), number)
        return original(run, *rest, **more)

    with monkeypatch.context() as m, pytest.raises(SystemExit) as end:
        m.setattr(kgi, place, signalled)
        kgi.train(settings(dataset, out, **few))
    assert end.value.code == 75
    printed = capfd.readouterr()
    assert f"stopped by {number.name} after step {finished}, saved; the same command resumes" in printed.out
    assert f"{number.name} received: saving the last finished step; a second {number.name} exits" in printed.err
    assert [r["step"] for r in lines(out)] == ([0, 4, 6] if finished == 6 else [0])
    assert torch.load(out / "checkpoint.pt", weights_only=True)["state"]["step"] == finished
    assert signal.getsignal(number) == signal.SIG_DFL  # a second one would have ended it at once
    for _ in range(2):  # a run that is done stays as it is
        train(dataset, out, **few)
    assert same_weights(whole, out)
    for x, y in zip(lines(whole), lines(out), strict=True):
        assert {k: v for k, v in x.items() if k not in MEASURED} == {k: v for k, v in y.items() if k not in MEASURED}


def test_checkpoints_are_written_by_time_too(dataset, tmp_path, monkeypatch, capsys):
    """Each minute of the clock, which here moves 25 seconds a step; what one costs is told once."""
    saved, save = [], runs.write_checkpoint
    monkeypatch.setattr(
        runs, "write_checkpoint", lambda out, c, **k: (saved.append(c["state"]["step"]), save(out, c, **k))
    )
    run = set_up(dataset, tmp_path, steps=6, valid_every=6, save_minutes=1.0)
    tmp_path.mkdir(exist_ok=True)
    update = kgi.update
    monkeypatch.setattr(kgi, "update", lambda run, lr: (update(run, lr), setattr(run, "saved_at", run.saved_at - 25)))
    kgi.training_loop(run)
    assert saved == [3, 6]
    printed = capsys.readouterr().out
    assert printed.count("checkpoint: saved in") == 1 and "every 6 steps, at the latest after 1 minutes" in printed


SRUN = """#!{python}
# In the place of Slurm's: sends TERM to all tasks once the run is under way, if the file "limit" exists.
import os, pathlib, subprocess, sys, time
n = os.environ["N_TASKS"]
env = os.environ | dict(SLURM_NTASKS=n, SLURM_NTASKS_PER_NODE=n)
program = sys.argv.index("bash")
print("srun", *sys.argv[1:program], flush=True)
tasks = [subprocess.Popen(sys.argv[program:], env=env | dict(SLURM_PROCID=i, SLURM_LOCALID=i)) for i in "01"[: int(n)]]
while pathlib.Path("{limit}").exists() and all(t.poll() is None for t in tasks):
    time.sleep(0.02)
    if pathlib.Path("{metrics}").exists() and '"step": 1,' in pathlib.Path("{metrics}").read_text():
        for t in tasks:
            t.terminate()
        pathlib.Path("{limit}").unlink()
sys.exit(max(t.wait() for t in tasks))
"""
SCONTROL = "#!/bin/sh\n[ $1 = show ] && echo localhost || echo $* >> {}\n"


def test_the_slurm_script_queues_the_job_again(dataset, tmp_path):
    """At the time limit both ranks save and exit with 75, and the job is queued again. No other status queues it.

    The run then goes to its end, here with one rank and other micro-batches: as if it had done so from the start.
    """
    out, limit, queue, job = tmp_path / "run", tmp_path / "limit", tmp_path / "queue", str(os.getpid())
    bin = tmp_path / "bin"
    bin.mkdir()
    srun = SRUN.format(python=sys.executable, limit=limit, metrics=out / "metrics.jsonl")
    ends = "#!/bin/sh\necho rank $RANK of $WORLD_SIZE on $MASTER_ADDR:$MASTER_PORT: $*\nexit $STATUS\n"
    for name, text in (("srun", srun), ("scontrol", SCONTROL.format(queue)), ("ends", ends)):
        (bin / name).write_text(text)
        (bin / name).chmod(0o755)
    limit.touch()
    long = {"steps": 40, "valid_every": 40, "batch_size": 20}
    env = os.environ | {"PATH": f"{bin}:{os.environ['PATH']}", "SLURM_CPUS_PER_TASK": "8", "N_TASKS": "2"}

    def sbatch(*argv, **more):
        script = ["bash", "configs/slurm.sh", *map(str, argv)]
        more = env | {"SLURM_JOB_ID": job} | more
        return subprocess.run(script, cwd=ROOT, env=more, capture_output=True, text=True, timeout=120)

    first = sbatch(*args(dataset, out, **long), PYTHON=sys.executable)
    assert first.stdout.startswith("srun --cpus-per-task=8 --wait=60\n")  # srun takes no cores from sbatch since 22.05
    assert "stopped by SIGTERM after step" in first.stdout and queue.read_text() == f"requeue {job}\n", first.stderr
    for status in (0, 1):
        then = sbatch("a.toml", "--lr", "1 2", PYTHON="ends", STATUS=str(status), SLURM_JOB_ID="1234567")
        assert then.returncode == status and queue.read_text() == f"requeue {job}\n"
        ranks = [f"rank {rank} of 2 on localhost:24567: kgi.py a.toml --lr 1 2" for rank in (0, 1)]
        assert sorted(then.stdout.splitlines()) == [*ranks, "srun --cpus-per-task=8 --wait=60"]
    train(dataset, out, max_tokens=300, **long)
    assert [r["step"] for r in lines(out)] == [0, *range(1, 41), 40]
    train(dataset, tmp_path / "whole", **long)
    for a, b in zip(lines(tmp_path / "whole"), lines(out)):
        a, b = (x.get("valid", x)["loss"] for x in (a, b))
        assert a == pytest.approx(b, rel=1e-3)  # forty steps, rounding adds up


def test_a_run_ends_inside_its_time_budget(dataset, tmp_path, monkeypatch, clock):
    """On a clock that steps, validations and saves move; and the run is that of as many --steps."""
    for module, name, lasts in ((kgi, "update", 20), (kgi, "validate", 30), (runs, "save_checkpoint", 5)):
        monkeypatch.setattr(module, name, clock.slow(getattr(module, name), lasts))
    few = {"dropout": 0.1, "valid_every": 10, "save_every": 5, "batch_size": 10}
    train(dataset, tmp_path / "budget", steps=0, time_budget="20m", **few)
    state = runs.read_checkpoint(tmp_path / "budget" / "checkpoint.pt")["state"]
    assert 0.85 * 1200 < clock.now - 1000 <= 1200 and state["step"] == state["steps"] > 20
    train(dataset, tmp_path / "steps", steps=state["steps"], **few)
    assert same_weights(tmp_path / "budget", tmp_path / "steps")  # nothing is left of the steps that were measured
    again = set_up(dataset, tmp_path / "budget", steps=0, time_budget="20m", **few)
    runs.resume(again)
    assert again.state.steps == state["steps"]
    with pytest.raises(UserError, match=r"time_budget = 90s is too short for one step: give at least \d+s") as e:
        train(dataset, tmp_path / "short", steps=0, time_budget="90s", **few)
    train(dataset, tmp_path / "long", steps=0, time_budget=str(e.value).split()[-1], **few)
    assert 0 < runs.read_checkpoint(tmp_path / "long" / "checkpoint.pt")["state"]["steps"] < 5


@pytest.mark.parametrize("slow", [1, 2, 5])
def test_one_slow_step_does_not_spoil_a_time_budget(dataset, tmp_path, monkeypatch, clock, slow):
    """Such as one that compiles: steps of 2 s, but one of 200 s, leave room for some 400 in 20 minutes."""
    took = iter([2] * slow + [200] + [2] * 100)
    monkeypatch.setattr(kgi, "update", clock.slow(kgi.update, lambda *_: next(took)))
    run = set_up(dataset, tmp_path, steps=0, time_budget="20m", valid_every=1000)
    tmp_path.mkdir(exist_ok=True)
    kgi.begin(run)
    left = 1200 - (clock.now - 1000)
    assert 0.85 * left < 2 * run.state.steps < left and run.state.steps > 400


def test_killed_while_the_steps_of_a_time_budget_are_measured(dataset, tmp_path, monkeypatch, clock, capsys):
    """After the checkpoint that measures how long one takes: measured again, not a run of no steps.

    A signal in the second of these steps leaves nothing to save. Once they are known, they stay.
    """
    monkeypatch.setattr(kgi, "update", clock.slow(kgi.update, 5))
    few = {"steps": 0, "time_budget": "60s", "valid_every": 1000, "save_every": 1000}

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(kgi, "check_schedule", killed)
        kgi.train(settings(dataset, tmp_path, **few))
    assert runs.read_checkpoint(tmp_path / "checkpoint.pt")["state"]["steps"] == 0
    run, seed_dropout = set_up(dataset, tmp_path, **few), kgi.seed_dropout
    with monkeypatch.context() as m, pytest.raises(SystemExit) as end:
        m.setattr(kgi, "set_up", lambda *_: run)
        m.setattr(run.stop_signal, "number", 0)
        m.setattr(kgi, "seed_dropout", lambda run, i: (
            seed_dropout(run, i), setattr(run.stop_signal, "number", run.state.step and signal.SIGTERM)
        ))  # fmt: skip
        kgi.train(run.s)
    assert end.value.code == 75
    assert "stopped by SIGTERM before the first step, nothing to save\n" in capsys.readouterr().out
    few["time_budget"] = "50s"  # another budget may be given
    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(kgi, "training_loop", killed)
        kgi.train(settings(dataset, tmp_path, **few))
    known = runs.read_checkpoint(tmp_path / "checkpoint.pt")["state"]
    monkeypatch.setattr(kgi, "fit_steps_to_budget", lambda *_: pytest.fail("measured again"))
    train(dataset, tmp_path, **few)
    state = runs.read_checkpoint(tmp_path / "checkpoint.pt")["state"]
    assert known["step"] == 0 < known["steps"] == state["step"] == state["steps"]
    assert [r["step"] for r in lines(tmp_path)].count(0) == 1


def test_a_finished_run_is_a_checkpoint_folder(dataset, baseline, tmp_path):
    model = models.load(baseline)
    assert all(torch.equal(v, weights(baseline)[k]) for k, v in model.state_dict().items())
    assert (baseline / "tokenizer.json").read_bytes() == (dataset / "tokenizer.json").read_bytes()
    before = (baseline / "checkpoint.pt").read_bytes()
    train(dataset, baseline)  # nothing left to do
    assert (baseline / "checkpoint.pt").read_bytes() == before
    (baseline / "model.safetensors").unlink()  # as if killed before it was written
    train(dataset, baseline)
    more = set_up(dataset, tmp_path / "more", init=str(baseline), dropout=0.3)
    assert more.model.encoder.config.dropout == more.model.encoder.layers[0].dropout == 0.3
    assert all(torch.equal(v, weights(baseline)[k]) for k, v in more.model.state_dict().items())


def test_a_start_from_other_weights_must_fit_the_data_set(release, dataset, baseline, tmp_path):
    other = build(release, tmp_path / "other", vocab_size=300)
    with pytest.raises(UserError, match="has another tokenizer than .*; build one with: make data .*TOKENIZER="):
        set_up(other, tmp_path / "run", init=str(baseline))
    long = build(release, tmp_path / "long", tokenizer=str(baseline), seq_len=80)
    with pytest.raises(UserError, match="has 64 positions and .* sequences of up to 80 tokens"):
        set_up(long, tmp_path / "run", init=str(baseline))
    with pytest.raises(UserError, match="layers = 3, but .* has 2; leave it out"):
        set_up(dataset, tmp_path / "run", init=str(baseline), layers=3)
    with pytest.raises(UserError, match="--init and --out are both .*; to resume that run leave --init as it was"):
        set_up(dataset, baseline, init=str(baseline))


def test_validation_counts_every_target(dataset, tmp_path):
    """Over the whole split, in whatever pieces: the same losses."""
    a = kgi.validate(set_up(dataset, tmp_path, batch_size=40))
    b = kgi.validate(set_up(dataset, tmp_path, batch_size=1000, max_tokens=10**6))
    assert a == pytest.approx(b, rel=1e-5)
    assert set(a) == {"loss"} | {f"{t}_{x}" for t in data.TASK_NAMES for x in ("loss", "accuracy")}


@pytest.mark.parametrize("more, message", [
    ({"warmup": 10_770}, r"warmup = 10770 steps, but the run has only 6 \(steps = 6\); give a share"),
    ({"alphas": [0.5]}, "alphas = .*: there must be 3, for EP, LP, TC"),
    ({"heads": 5}, "heads = 5 does not divide dim = 32"),
    ({"precision": "int8"}, "precision = 'int8'"),
    ({"device": "tpu"}, "device = 'tpu'"),
    ({"precision": "fp16"}, "precision = 'fp16' needs a GPU; on the CPU give bf16 or fp32"),
    ({"dim": 2**14, "layers": 300}, "the model is too large for the memory: .* parameters take .* GB to train"),
    ({"tasks": ["mlm", "nsp"]}, "tasks = mlm nsp: choose some of mlm ep lp tc"),
    ({"time_budget": "1h"}, r"give one of them \(--steps 0"),
    ({"time_budget": "soon", "steps": 0}, "time_budget = 'soon' is not a length of time"),
    ({"data": "nowhere"}, "nowhere is not a data set"),
    ({"init": "nowhere"}, "is nowhere a checkpoint folder"),
    ({"mlm_probability": 0.0}, "mlm_probability = 0 leaves hardly a target; leave mlm out of --tasks"),
    ({"mlm_probability": 0.0, "steps": 0, "time_budget": "1h"}, "mlm_probability = 0 leaves hardly a target"),
    ({"mlm_probability": 1e-6, "tasks": ["mlm"]}, "mlm_probability = 1e-06 leaves hardly a target"),
    ({"tasks": ["ep", "tc"], "alphas": [0.0, 0.0]}, "alphas = .*: no task has a weight, so nothing would be trained"),
])  # fmt: skip
def test_bad_settings_are_refused_before_anything_is_written(dataset, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        command_line.check_values(more, configs.Train)
        set_up(dataset, tmp_path, **more)
    assert not any(tmp_path.iterdir())


def test_an_interval_without_targets_says_so(dataset, tmp_path, capsys):
    """It has no loss, in metrics.jsonl neither; nor has a validation."""
    few = {"tasks": ["mlm"], "mlm_probability": 0.005, "batch_size": 3, "steps": 12, "valid_every": 12}
    train(dataset, tmp_path / "run", **few)
    shown = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]
    examples = data.PretrainingDataset(dataset, "train", ["mlm"])
    n = []
    for step in range(12):
        positions, epochs = data.EpochSampler(len(examples), 3, 0)(step)
        n.append(examples.masked_batch(examples.rows[positions], epochs, 0, 0.005).n_targets.sum())
    assert 0 < n.count(0) < 12
    for targets, line, record in zip(n, shown, training_lines(tmp_path / "run"), strict=True):
        assert ("  no targets  " in line) == (targets == 0) and (" loss " in line) == (targets > 0)
        assert ("loss" in record) == ("mlm_loss" in record) == (targets > 0)
    reports.log_validation(set_up(dataset, tmp_path / "run", **few), {})
    assert "valid: no targets" in capsys.readouterr().out


def test_tasks_are_a_set(dataset, tmp_path):
    train(dataset, tmp_path, tasks=["ep", "mlm"], steps=1, warmup=1)
    runs.resume(set_up(dataset, tmp_path, tasks=["mlm", "ep", "ep"], steps=1, warmup=1))


def test_a_validation_that_is_not_finite_is_not_kept(dataset, tmp_path):
    """Weights can be finite and the loss not: the run is neither saved nor called done."""
    with pytest.raises(UserError, match="step 1: the validation loss is nan; there is no checkpoint yet"):
        train(dataset, tmp_path, steps=1, warmup=1, lr=1e9, clip=0.0)
    assert not (tmp_path / "checkpoint.pt").exists() and "NaN" not in (tmp_path / "metrics.jsonl").read_text()


def test_which_data_set(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data set under datasets/"):
        datasets.find_data("")
    for name in ("fr", "es"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
        (tmp_path / "datasets" / name / "manifest.json").write_text("{}")
        if name == "fr":
            assert str(datasets.find_data("")) == "datasets/fr"
    with pytest.raises(UserError, match="several data sets found; choose one with --data: datasets/es, datasets/fr"):
        datasets.find_data("")


def test_a_mistake_is_one_line(dataset, tmp_path):
    p = command("kgi.py", *args(dataset, tmp_path, lr="1e14", clip=0, precision="fp32"))
    assert p.returncode != 0 and "Traceback" not in p.stderr
    assert "step 2: the loss is nan; there is no checkpoint yet" in p.stderr
    with pytest.raises(UserError, match="step 1: the weights are not finite; there is no checkpoint yet"):
        train(dataset, tmp_path / "b", lr=1e39, clip=0.0, save_every=1, log_every=6)
    assert not (tmp_path / "b" / "checkpoint.pt").exists()


def test_bf16_autocast_on_cpu(dataset, baseline, tmp_path):
    train(dataset, tmp_path, precision="bf16")
    a, b = lines(baseline)[-1]["valid"], lines(tmp_path)[-1]["valid"]
    assert a["loss"] == pytest.approx(b["loss"], rel=0.02)


def test_a_run_begun_without_a_scaler_resumes_with_one(dataset, baseline):
    run = set_up(dataset, baseline)
    run.scaler = torch.amp.GradScaler("cpu")
    runs.resume(run)
    assert run.state.step == 6 and run.scaler.get_scale() == 65536.0


def test_an_fp16_step_that_overflows_is_skipped_and_counted(dataset, tmp_path):
    """The scaler's logic, on the CPU: the scale is halved, the weights stay, and the schedule goes on."""
    run = set_up(dataset, tmp_path, log_every=9, valid_every=9)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    one_step(run)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}

    def overflow(gradient):
        return gradient * float("inf") if run.scaler.get_scale() > 256 else gradient

    run.model.triple_head.bias.register_hook(overflow)
    for n in (1, 2):
        one_step(run)
        assert (run.state.step, run.state.skipped, run.state.overflows) == (1 + n, n, n)
        assert run.scaler.get_scale() == 1024 / 2**n
        assert all(torch.equal(v, before[k]) for k, v in run.model.state_dict().items())
    one_step(run)
    assert (run.state.step, run.state.skipped, run.state.overflows) == (4, 2, 0)
    assert not torch.equal(run.model.triple_head.bias, before["triple_head.bias"])
    assert [g["lr"] for g in run.optimizer.param_groups] == [kgi.learning_rate(3, 6, 3, 1e-3)]
    assert {int(x["step"]) for x in run.optimizer.state.values()} == {2}  # AdamW's own count of updates
    assert all(math.isfinite(x) for row in run.state.sums for x in row)
    again = set_up(dataset, tmp_path, log_every=9, valid_every=9)
    again.scaler = torch.amp.GradScaler("cpu")
    runs.resume(again)
    assert again.state == run.state and again.scaler.state_dict() == run.scaler.state_dict()
    assert again.scaler.get_scale() == 256.0


def test_overflow_without_end_stops_and_keeps_the_checkpoint(dataset, tmp_path):
    """Twenty times in a row, be it across a resume."""

    def overflowing():
        run = set_up(dataset, tmp_path, steps=40, save_every=8, valid_every=40)
        run.scaler = torch.amp.GradScaler("cpu")
        runs.resume(run)
        run.model.triple_head.bias.register_hook(lambda gradient: gradient * float("inf"))
        return run

    for _ in range(2):
        run = overflowing()
        with pytest.raises(UserError, match=r"step 20: the gradients overflowed fp16 20 times, .* last checkpoint"):
            kgi.training_loop(run)
        state = runs.read_checkpoint(tmp_path / "checkpoint.pt")["state"]
        assert (state["step"], state["skipped"], state["overflows"]) == (16, 16, 16)
    run = overflowing()
    run.model.relation_head.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 17: the loss is nan; .*checkpoint.pt is the last checkpoint"):
        kgi.training_loop(run)


def test_torchrun_shows_a_mistake_as_one_line():
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "kgi.py", "--lr", "fast"]
    p = subprocess.run(torchrun, cwd=ROOT, capture_output=True, text=True, timeout=120)
    line = "kgi.py: error: argument --lr: 'fast' is not a number"
    report, cause = p.stderr.split("Root Cause")
    assert p.returncode != 0 and cause.count(line) == 1  # at the end of the report, where it is seen
    assert sum(x.startswith(line) for x in report.splitlines()) <= 1  # and when it happens, from one rank


def test_a_finished_run_is_done_at_once(dataset, baseline, monkeypatch, capsys):
    """Nothing is measured or written; a model that is older than the checkpoint is."""
    monkeypatch.setattr(hardware, "measure_matmul_flops", None)
    before = {p.name: p.stat().st_mtime_ns for p in baseline.iterdir() if p.name != "metrics.jsonl"}
    train(dataset, baseline)
    want = [f"done: {baseline}", f"next:  python finetune.py {baseline} --corpus CORPUS --data FOLDER"]
    want += [f"       python -m beyond.{program} {baseline}" for program in ("evaluate", "plot")]
    assert capsys.readouterr().out.splitlines() == want
    assert {p.name: p.stat().st_mtime_ns for p in baseline.iterdir() if p.name != "metrics.jsonl"} == before
    other = models.load(baseline)
    other.mlm_bias.data += 1
    other.save(baseline)
    os.utime(baseline / "model.safetensors", ns=(0, before["checkpoint.pt"] - 1))
    train(dataset, baseline)
    assert torch.equal(models.load(baseline).mlm_bias, weights(baseline)["mlm_bias"])


def test_the_mfu_is_never_above_one(dataset, tmp_path):
    """The best rate counts, be it the run's own."""
    run = set_up(dataset, tmp_path)
    run.matmul_flops = 100.0
    for achieved in (50.0, 200.0, 100.0):
        run.state.work = {"seconds": 1.0, "tokens": 1.0, "computed": 1.0, "flops": achieved}
        reports.log_training(run, kgi.mixed_loss(run, run.state.sums), 1e-4, eta=0.0)
    assert [r["mfu"] for r in lines(tmp_path)] == [0.5, 1.0, 0.5]


def test_measuring_the_machine_leaves_the_random_state(dataset):
    state = torch.get_rng_state()
    assert MEASURE_MATMUL_FLOPS(torch.device("cpu"), None) > 0
    assert torch.equal(torch.get_rng_state(), state)


def test_a_clock_that_stands_still(dataset, tmp_path, monkeypatch):
    """No clock but the one that never steps back is asked, and nothing is divided by no seconds."""
    for module in (kgi, runs):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: 5.0))
    train(dataset, tmp_path, steps=2)
    measured = [(r["tokens_per_s"], r["mfu"], r["eta_s"]) for r in training_lines(tmp_path)]
    assert measured == [(0.0, 0.0, 0.0)] * 2


def test_the_speed_counts_the_time_until_the_results_are_there(dataset, tmp_path, monkeypatch, clock):
    """A GPU computes while the program goes on: only where the sums are read has the step ended."""
    run = set_up(dataset, tmp_path, steps=1, warmup=1)
    tmp_path.mkdir(exist_ok=True)
    run.ranks.all_reduce_sum = clock.slow(run.ranks.all_reduce_sum, lambda numbers: 10.0 * (len(numbers) > 1))
    monkeypatch.setattr(kgi, "validate", lambda *_: {"loss": 1.0})
    kgi.training_loop(run)
    tokens = run.batches.get(0)[1].length.sum()
    assert training_lines(tmp_path)[0]["tokens_per_s"] == pytest.approx(tokens / 10, rel=1e-2)


def test_a_data_set_built_again_meanwhile_changes_nothing(release, tmp_path):
    """The tokenizer that is exported is that of the examples."""
    folder = build(release, tmp_path / "en")
    tokenizer = (folder / "tokenizer.json").read_bytes()
    run = set_up(folder, tmp_path / "run")
    build(release, folder, vocab_size=300)
    assert (folder / "tokenizer.json").read_bytes() != tokenizer
    runs.resume(run)
    kgi.training_loop(run)
    assert (tmp_path / "run" / "tokenizer.json").read_bytes() == tokenizer


def test_lines_of_the_log_fit_120_columns(dataset, tmp_path, capsys):
    run = set_up(dataset, tmp_path)
    run.state.step, run.state.steps = 123_456, 650_000
    run.state.sums = [[12_345.0, 1000, 1000]] * 4
    run.state.work = {"seconds": 1.0, "tokens": 1.2e6, "computed": 1.3e6, "flops": 1e10}
    reports.log_training(run, kgi.mixed_loss(run, run.state.sums), 1e-4, eta=10.9 * 86_400)
    reports.log_validation(run, kgi.mixed_loss(run, [[12_345.0, 1000, 1000]] * 4))
    training, validation = capsys.readouterr().out.splitlines()
    assert "mlm 12.345 " in training and "1,200,000 tokens/s  left 10 days, 21:36:00" in training
    assert "mlm 12.345 (100.0 %)" in validation
    assert max(len(training), len(validation)) <= 120


def test_an_interval_without_a_task_shows_no_sum(dataset, tmp_path, capsys):
    """A sum over some of the tasks cannot be compared with one over all."""
    few = {"batch_size": 3, "steps": 12, "valid_every": 12, "tasks": ["mlm", "lp"]}
    train(dataset, tmp_path, **few)
    shown = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]
    records, n_partial = training_lines(tmp_path), 0
    for line, record in zip(shown, records, strict=True):
        losses = {key: record.get(f"{key}_loss") for key in few["tasks"]}
        parts = [f"{key} -" if x is None else f"{key} {x:.3f}" for key, x in losses.items()]
        is_whole = None not in losses.values()
        n_partial += not is_whole
        assert "  ".join([f"loss {record['loss']:.3f}" if is_whole else "loss -", *parts]) in line
    assert 0 < n_partial < 12


def test_a_data_set_without_documents_has_a_sum(release, tmp_path, capsys):
    train(build(release, tmp_path / "built", e3c="none", **FEW), tmp_path / "run", steps=2, valid_every=2)
    shown = [line for line in capsys.readouterr().out.splitlines() if "tokens/s" in line]
    for line, record in zip(shown, training_lines(tmp_path / "run"), strict=True):
        assert f"loss {record['loss']:.3f}  ep {record['ep_loss']:.3f}" in line


def test_a_log_file_shows_the_first_validation_before_it_is_made(dataset, tmp_path, monkeypatch, capsys):
    """With how long it may take: here at a third of 1e11 operations a second."""
    run = set_up(dataset, tmp_path)
    tmp_path.mkdir(exist_ok=True)
    monkeypatch.setattr(hardware, "training_flops", lambda c, length, n: 6e9 * len(length))
    monkeypatch.setattr(kgi, "validate", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        kgi.begin(run)
    n = len(kgi.validation_rows(run))
    last = capsys.readouterr().out.splitlines()[-1]
    seconds = round(6e9 * n / 3 / (reports.VALID_MFU * 1e11))
    assert seconds > 5
    what = f"validation: {n:,} held-out examples before the first step"
    assert last == f"{what}, in about {seconds} s; the accuracy of ep is of tokens"


def test_a_finished_run_says_what_comes_next_and_remembers_its_config(dataset, tmp_path, capsys):
    """The corpus of the config's [finetune] is named by the file, and its settings are kept for fine-tuning."""
    config = tmp_path / "my config.toml"
    config.write_text("[train]\nlayers = 1\nsteps = 1\nwarmup = 1\n[finetune]\ndata = 'ner'\nlr = 5e-4\nepochs = 2\n")
    sizes = ["--heads", 2, "--dim", 32, "--ffn", 64, "--batch_size", 9, "--device", "cpu"]
    with pytest.raises(SystemExit) as end:
        call(config, "--data", dataset, "--out", tmp_path / "run", *sizes)
    shown = capsys.readouterr().out.splitlines()
    assert end.value.code == 0
    assert shown[-3:] == [
        f"next:  python finetune.py {tmp_path / 'run'} '{config}'",
        f"       python -m beyond.evaluate {tmp_path / 'run'}",
        f"       python -m beyond.plot {tmp_path / 'run'}",
    ]
    said = datasets.read_run(tmp_path / "run")
    assert said["data"] == str(dataset) and said["finetune"] == {"lr": 5e-4, "epochs": 2}
    assert said["sha256"] == datasets.read_manifest(dataset)["sha256"]


def test_the_tasks_stay_with_the_model(dataset, baseline, tmp_path):
    """In config.json, through load and save, and with those of the checkpoint that a run began with."""
    train(dataset, tmp_path / "lp", tasks=["lp"], steps=1, warmup=1.0, valid_every=1)
    models.load(tmp_path / "lp").save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text())["kgi_tasks"] == ["lp"]
    run = set_up(dataset, tmp_path / "then", tasks=["mlm"], init=str(tmp_path / "lp"))
    assert run.model.encoder.config.extra_config["kgi_tasks"] == ["mlm", "lp"]


def test_evaluation_decides_by_the_tokenizer(dataset, baseline, tmp_path, monkeypatch, capsys):
    """A model may have more embeddings than its tokenizer has entries, as many on the hub do."""
    monkeypatch.chdir(tmp_path)
    model = models.load(baseline)
    models.resize_token_embeddings(model, [], model.encoder.config.vocab_size + 62)
    model.encoder.config.extra_config.pop("kgi_tasks", None)
    model.save(tmp_path / "wide")
    (tmp_path / "wide" / "tokenizer.json").write_bytes((baseline / "tokenizer.json").read_bytes())
    run_command(evaluate, tmp_path / "wide", baseline, "--data", dataset, "--terms", 200, "--device", "cpu")
    assert "synonyms alone" not in capsys.readouterr().out
    wide, own = (
        json.loads((tmp_path / "results" / name / f"knowledge-{dataset.name}.json").read_text())
        for name in ("wide", baseline.name)
    )
    assert wide["lp"] == own["lp"] and own["tasks"] == list(data.TASK_NAMES) and "tasks" not in wide


def test_a_data_set_that_cannot_be_read(dataset, baseline, tmp_path, monkeypatch):
    """It does not hide another one, and is named where none can be found."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "datasets" / "broken").mkdir(parents=True)
    (tmp_path / "datasets" / "broken" / "manifest.json").write_text("{")
    assert datasets.find_data(str(dataset), str(baseline)) == dataset
    with pytest.raises(UserError, match=r"no data set under datasets/ has the tokenizer of .*; datasets/broken/mani"):
        datasets.find_data("", str(baseline))
    (tmp_path / "datasets" / "en").symlink_to(dataset)
    assert str(datasets.find_data("", str(baseline))) == "datasets/en"
    exists = datasets.Path.exists

    def forbidden(path, **more):
        if path.parent.name == "broken":
            raise PermissionError(13, "Permission denied", str(path))
        return exists(path, **more)

    monkeypatch.setattr(datasets.Path, "exists", forbidden)
    assert str(datasets.find_data("")) == "datasets/en"


PYTHON = """#!/bin/sh
# In the place of the one of .venv: prints what it is called with.
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
        shown.append(p.stdout)
        called = [line for line in p.stdout.splitlines() if line.startswith("called ")]
        return p.returncode, [line.removeprefix("called ") for line in called if "v1-fr" in line]

    (tmp_path / "env" / "bin").mkdir(parents=True)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-plot.txt", "env/.ready"):
        (tmp_path / name).touch()
    shown = []
    code, called = make()
    assert code == 0 and len(called) == 15
    names = [f"runs/v1-fr-{tasks}-s0" for tasks in ("mlm", "ep-lp", "ep-tc", "tc-lp", "all")]
    of_runs = [line for line in shown[0].splitlines() if line.startswith("run ")]
    assert of_runs == [f"run {i} of 5: {name}" for i, name in enumerate(names, 1)]
    assert [line for line in shown[0].splitlines() if line.startswith("called ")][-1] == "called finetune.py tables"
    assert called[0] == (
        "kgi.py configs/v1-fr.toml configs/ablation-mlm.toml --data datasets/fr --seed 0 --out runs/v1-fr-mlm-s0 --lr 1"
    )
    assert called[1].startswith("finetune.py runs/v1-fr-mlm-s0 ") and called[2].startswith("-m beyond.evaluate runs/v1")
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


def test_a_demo_that_was_stopped_goes_on(tmp_path):
    """What is there stays, to be resumed; a demo that came to its end is made again, and files of a user stay."""
    (tmp_path / "env" / "bin").mkdir(parents=True)
    stub = PYTHON.format(python=sys.executable, fails="configs/demo.toml --out") + "mkdir -p demo\n"
    for name in ("requirements.txt", "requirements-dev.txt", "requirements-plot.txt", "env/.ready"):
        (tmp_path / name).touch()

    def make(stub):
        (tmp_path / "env" / "bin" / "python").write_text(stub)
        (tmp_path / "env" / "bin" / "python").chmod(0o755)
        return subprocess.run(["make", "-f", ROOT / "Makefile", "demo", "VENV=env"], cwd=tmp_path, capture_output=True)

    assert make(stub).returncode != 0  # in fine-tuning
    checkpoint, mine = tmp_path / "demo" / "kgi-fr" / "checkpoint.pt", tmp_path / "demo" / "notes.txt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    mine.touch()
    assert make(stub).returncode != 0 and checkpoint.exists()
    assert make(stub.replace("--out", "nothing")).returncode == 0 and checkpoint.exists()
    assert make(stub.replace("--out", "nothing")).returncode == 0 and not checkpoint.exists()
    assert mine.exists()
