"""Small trainings in this process, which several test files share."""

import json
import signal

import pytest
import torch

import configs
import kgi
from support import runs

TINY = {
    "layers": 2, "heads": 2, "dim": 32, "ffn": 64, "steps": 6, "batch_size": 40, "lr": 1e-3, "log_every": 1,
    "valid_every": 3, "device": "cpu", "dropout": 0.0,
}  # fmt: skip


def settings(dataset, out, **more):
    return configs.Train(**{"data": str(dataset), "out": str(out)} | TINY | more)


def args(dataset, out, **more):
    s = {"data": dataset, "out": out} | TINY | more
    return [x for k, v in s.items() for x in (f"--{k}", str(v))]


def call(*argv):
    """Runs a command of kgi.py in this process."""
    function, s = configs.parse(list(map(str, argv)), kgi.__doc__, kgi.COMMANDS, "train")
    function(s)


def train(dataset, out, **more):
    """Trains to the end, as the command does."""
    with pytest.raises(SystemExit) as end:
        kgi.train(settings(dataset, out, **more))
    assert end.value.code == 0


def set_up(dataset, out, **more):
    return kgi.set_up(settings(dataset, out, **more))


def one_step(run):
    """A step of the training loop, at whose end a signal comes; it is saved."""
    run.out.mkdir(exist_ok=True)
    update = kgi.update

    def signalled(run, lr):
        run.stop_signal.number = signal.SIGTERM
        update(run, lr)

    with pytest.MonkeyPatch.context() as m, pytest.raises(runs.Interrupted):
        m.setattr(kgi, "update", signalled)
        kgi.training_loop(run)
    run.stop_signal.number = 0
    kgi.save_checkpoint(run)


def lines(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def training_lines(out):
    return [record for record in lines(out) if "valid" not in record]


def weights(out):
    return torch.load(out / "checkpoint.pt", weights_only=True)["model"]


def same_weights(one, two):
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


def same_end(out, undisturbed):
    assert same_weights(undisturbed, out)
    for x, y in zip(lines(undisturbed), lines(out), strict=True):  # neither a gap nor a line twice
        assert x["step"] == y["step"] and x.get("valid") == y.get("valid") and x.get("loss") == y.get("loss")
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
