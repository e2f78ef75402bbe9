"""The trainer: the loss of equation (2), what must not depend on the layout, and going on after a stop."""

import json
import random
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


@pytest.mark.parametrize("ranks, budget", [(1, 200), (2, 300), (4, 64)])
def test_only_the_speed_depends_on_the_layout(dataset, baseline, tmp_path, ranks, budget):
    """The same losses, accuracies and weights with any number of real processes and any micro-batch."""
    run = ["-m", "torch.distributed.run", "--nproc_per_node", ranks] if ranks > 1 else []
    p = command(*run, "kgi.py", *args(dataset, tmp_path, micro_tokens=budget))
    assert p.returncode == 0, p.stderr
    for a, b in zip(lines(baseline), lines(tmp_path), strict=True):
        a, b = (x.get("valid", {k: v for k, v in x.items() if k not in MEASURED}) for x in (a, b))
        assert a == pytest.approx(b, rel=2e-5, abs=2e-5)
    mine = weights(tmp_path)
    assert all((v - mine[k]).abs().max() < 2e-5 for k, v in weights(baseline).items())


STOP = """
import sys
sys.path.insert(0, {root!r})
import kgi
write = kgi.Trainer.write
def leave(trainer, record):
    write(trainer, record)
    if record["step"] == 5:
        sys.exit(9)
kgi.Trainer.write = leave
kgi.main({argv!r})
"""


@pytest.mark.parametrize("ranks", [1, 2])
def test_going_on_ends_in_the_same_weights(dataset, tmp_path, ranks):
    """Stopped after the checkpoint at step 3 and started again, with dropout: bit for bit the same."""
    run = ["-m", "torch.distributed.run", "--nproc_per_node", ranks] if ranks > 1 else []
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
    ({"data": "nowhere"}, "nowhere is not a data set"),
    ({"init": "nowhere"}, "is nowhere a checkpoint folder"),
])  # fmt: skip
def test_bad_settings(dataset, tmp_path, more, said):
    with pytest.raises(UserError, match=said):
        kgi.Trainer(settings(dataset, tmp_path, **more))
    assert not any(tmp_path.iterdir())


def test_which_data_set(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="no data set under datasets/"):
        kgi.find_data(configs.Train())
    for name in ("fr", "es"):
        (tmp_path / "datasets" / name).mkdir(parents=True)
        (tmp_path / "datasets" / name / "manifest.json").write_text("{}")
        if name == "fr":
            assert str(kgi.find_data(configs.Train())) == "datasets/fr"
    with pytest.raises(UserError, match="say --data with one of datasets/es, datasets/fr"):
        kgi.find_data(configs.Train())


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
    with pytest.raises(UserError, match=r"step 3: the gradients overflowed fp16 20 times, .* last good checkpoint"):
        trainer.optimizer_step()
    trainer.scaler = torch.amp.GradScaler("cpu")
    trainer.model.link.weight.data.fill_(float("nan"))
    with pytest.raises(UserError, match=r"step 3: the loss is nan; .*checkpoint.pt is the last good checkpoint"):
        trainer.optimizer_step()
    assert (tmp_path / "checkpoint.pt").read_bytes() == good and trainer.skipped == 20


def test_torchrun_as_the_readme_has_it(dataset, tmp_path):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "kgi.py", "--lr", "fast"]
    p = subprocess.run(torchrun, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert p.returncode != 0 and p.stderr.count("--lr: 'fast' is not a number") == 1
