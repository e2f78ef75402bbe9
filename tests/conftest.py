"""Fixtures: a small synthetic release and a data set built from it; a real release where there is one.

Tests marked `real` run when the environment variables UMLS and E3C name real folders, as `make data` takes them.
"""

import io
import os
import resource
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "2"

import torch  # noqa: E402

import configs  # noqa: E402
import data  # noqa: E402
import kgi  # noqa: E402
import model as models  # noqa: E402
from configs import command_line  # noqa: E402
from support import datasets, hardware, runs, tokenizers  # noqa: E402
from support.cache import read_release  # noqa: E402
from tests import synthetic_umls  # noqa: E402

SMALL = {
    "tc_examples": 1200,
    "ep_examples": 600,
    "lp_paths": 500,
    "vocab_size": 700,
    "seq_len": 64,
    "valid_fraction": 0.1,
}
FEW = {"lp_paths": 50, "tc_examples": 60, "ep_examples": 30}  # where the examples do not matter


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A folder as tests/synthetic_umls.py writes it."""
    folder = tmp_path_factory.mktemp("sample")
    terms = synthetic_umls.write_release(folder, 700)
    synthetic_umls.write_documents(folder, terms, 60)
    synthetic_umls.write_corpus(folder, terms, 40, 40)
    return folder


def build(release, out, **settings):
    s = configs.Data(
        **{"lang": "en", "umls": str(release), "e3c": str(release / "E3C"), "out": str(out)} | SMALL | settings
    )
    data.build(s)
    return out


def graph_of(release, lang="en", kept=("DISO", "ANAT", "CONC", "PROC"), **settings):
    """The graph of a release folder, read again."""
    s = configs.Data(semantic_types=list(kept), **settings)
    with tempfile.TemporaryDirectory() as place:
        found = read_release(release, [lang], s, Path(place), lambda _: None)
    return data.Graph(**vars(found.tables[0]))


@pytest.fixture(scope="session")
def dataset(release, tmp_path_factory):
    return build(release, tmp_path_factory.mktemp("built") / "en")


@pytest.fixture(scope="session")
def real():
    umls, e3c = os.environ.get("UMLS"), os.environ.get("E3C")
    if not umls or not e3c:
        pytest.skip("UMLS and E3C are not set")
    return Path(umls), Path(e3c)


def command(*args, cwd=ROOT, stdin=None):
    """Runs a command of the project as a user would; the finished process, output as text."""
    env = {k: v for k, v in os.environ.items() if k not in ("UMLS", "E3C")}
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, input=stdin
    )


def random_checkpoint(dataset, folder):
    """Saves a model initialised randomly, with the tokenizer of a data set. Returns: its folder."""
    manifest = datasets.read_manifest(dataset)
    torch.manual_seed(0)
    model = models.KGIBert(models.Config(manifest["vocab_size"], 64, 32, 1, 2, 64, 0.0, manifest["special"]["pad"]))
    for weight in model.encoder.parameters():
        weight.data *= 20 if weight.dim() > 1 else 1  # or all vectors at [CLS] would be the same but for rounding
    model.save(folder)
    tokenizers.save(datasets.read_tokenizer(dataset), folder, 64, model.encoder.config.type_vocab_size)
    return folder


def run_command(program, *argv):
    """What a program (a module) does with these arguments, in this process; its first command need not be named."""
    name = [*program.COMMANDS][0]
    function, settings = command_line.parse([*map(str, argv)], program.__doc__, program.COMMANDS, name)
    function(settings)


@pytest.fixture
def full_disk():
    """A block in which no file of this process can grow beyond a number of bytes, as on a disk that is full."""

    @contextmanager
    def limit(n_bytes):
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, before[1]))
        try:
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):  # pytest keeps them in files
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    return limit


class Clock:
    """In the place of the module time: it advances by a millisecond each time it is read, and by what a test adds."""

    def __init__(self):
        self.now = 1000.0

    def monotonic(self):
        self.now += 0.001
        return self.now

    def slow(self, function, seconds):
        """The function, lasting so many seconds more; seconds may be a function of its arguments."""

        def lasting(*args, **more):
            self.now += seconds(*args) if callable(seconds) else seconds
            return function(*args, **more)

        return lasting


@pytest.fixture
def clock(monkeypatch):
    """A Clock that kgi.py and support/runs.py read."""
    clock = Clock()
    for module in (kgi, runs):
        monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def known_machine(monkeypatch):
    """The handlers of signals are put back after a test, and the speed of the machine is not measured each time."""
    monkeypatch.setattr(hardware, "measure_matmul_flops", lambda *_: 1e11)
    handlers = [(n, signal.getsignal(n)) for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)]
    yield
    for n, handler in handlers:
        signal.signal(n, handler)
