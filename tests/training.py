"""Small trainings in this process, which several test files share."""

import json
import os
import signal
import socket
import sys

import pytest
import torch

import configs
import kgi
from configs import command_line
from support import hardware, runs
from tests.conftest import command

TINY = {
    "layers": 2, "heads": 2, "dim": 32, "ffn": 64, "steps": 6, "batch_size": 40, "lr": 1e-3, "log_every": 1,
    "valid_every": 3, "device": "cpu", "dropout": 0.0,
}  # fmt: skip


def settings(dataset, out, **more):
    return configs.Train(**{"data": str(dataset), "out": str(out)} | TINY | more)


def args(dataset, out, **more):
    s = {"data": dataset, "out": out} | TINY | more
    return [x for k, v in s.items() for x in (f"--{k}", str(v))]


def call(*argv, program=kgi):
    """Runs a command of a program that trains in this process."""
    function, s = command_line.parse(list(map(str, argv)), program.__doc__, program.COMMANDS, "train")
    function(s)


def train(dataset, out, **more):
    """Trains to the end, as the command does."""
    with pytest.raises(SystemExit) as end:
        kgi.train(settings(dataset, out, **more))
    assert end.value.code == 0


def fork(function, *arguments):
    """Calls a function in a process of its own, which ends as a program does. Returns: its id.

    It has what this process has imported. This one must not have computed: torch's threads do not survive a fork.
    """
    sys.stdout.flush()
    if child := os.fork():
        return child
    status = 1
    try:
        function(*arguments)
        status = 0
    except SystemExit as end:
        status = end.code
        if isinstance(status, str):
            print(status, file=sys.stderr)
            status = 1
    finally:
        sys.stdout.flush()
        os._exit(status)


def exit_status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def train_in_ranks(n, argv, port, before=lambda: None, program=kgi):
    """Runs a program with n ranks, each in a process of its own that first calls `before`. Returns: their statuses."""
    import torch._dynamo  # noqa: F401, else each rank imports it at its first step

    torch.set_num_threads(1)
    hardware.measure_matmul_flops = lambda *_: 1e11

    def rank(k):
        os.environ |= {"RANK": str(k), "LOCAL_RANK": str(k), "WORLD_SIZE": str(n), "LOCAL_WORLD_SIZE": str(n)}
        os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": port}
        before()
        call(*argv, program=program)

    return [exit_status(child) for child in [fork(rank, k) for k in range(n)]]


def train_on_nodes(n, argv):
    """Runs n of torchrun's agents with these arguments, each in a process of its own. Returns: their statuses.

    Their ranks are forked too, so that none of all these processes has to import torch again.
    """
    import torch._dynamo  # noqa: F401, else each rank imports it at its first step
    from torch.distributed import run
    from torch.distributed.launcher import elastic_launch

    hardware.measure_matmul_flops = lambda *_: 1e11

    def rank(*argv):
        assert exit_status(fork(call, *argv)) == 0  # a program ends its process, of which an agent expects a result

    def agent():
        config, _, (_, _, *argv_of_kgi) = run.config_from_args(run.parse_args(argv))  # after -u kgi.py
        elastic_launch(config, rank)(*argv_of_kgi)

    return [exit_status(child) for child in [fork(agent) for _ in range(n)]]


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for s in sockets:
        s.bind(("localhost", 0))
    ports = [str(s.getsockname()[1]) for s in sockets]
    for s in sockets:
        s.close()
    return ports


def run_in_ranks(trainings):
    """Runs [(ranks, arguments of kgi.py)]; their parent is a process that has computed nothing. All must end well."""
    code = "from tests.training import *\nfor n, argv, port in {!r}: assert train_in_ranks(n, argv, port) == [0] * n"
    p = command("-c", code.format([(*x, port) for x, port in zip(trainings, free_ports(len(trainings)))]))
    assert p.returncode == 0, p.stderr


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
    runs.save_checkpoint(run)


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
