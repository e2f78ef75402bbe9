"""Fixtures: a small synthetic release and a data set built from it; a real release where there is one.

Tests marked `real` run when the environment variables UMLS and E3C name real folders, as `make data` takes them.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ["OMP_NUM_THREADS"] = "2"

import configs  # noqa: E402
import data  # noqa: E402
from tests import sample  # noqa: E402

SMALL = {"classification": 1200, "prediction": 600, "paths": 500, "vocab_size": 700, "seq_len": 64, "valid": 0.1}


@pytest.fixture(scope="session")
def release(tmp_path_factory):
    """A folder as tests/sample.py writes it."""
    folder = tmp_path_factory.mktemp("sample")
    terms = sample.write_release(folder, 700)
    sample.write_documents(folder, terms, 60)
    sample.write_corpus(folder, terms, 40, 40)
    return folder


def build(release, out, **settings):
    s = configs.Data(
        **{"lang": "en", "umls": str(release), "e3c": str(release / "E3C"), "out": str(out)} | SMALL | settings
    )
    data.build(s)
    return out


def graph_of(release, lang="en", kept=("DISO", "ANAT", "CONC", "PROC"), **settings):
    """The graph of a release folder, read anew."""
    s = configs.Data(semantic_types=list(kept), **settings)
    with tempfile.TemporaryDirectory() as tables:
        return data.read_graphs(release, [lang], s, Path(tables), lambda _: None, data.save_tables)[0][0]


@pytest.fixture(scope="session")
def dataset(release, tmp_path_factory):
    return build(release, tmp_path_factory.mktemp("built") / "en")


@pytest.fixture(scope="session")
def real():
    umls, e3c = os.environ.get("UMLS"), os.environ.get("E3C")
    if not umls or not e3c:
        pytest.skip("UMLS and E3C are not set")
    return Path(umls), Path(e3c)


def command(*args, cwd=ROOT):
    """Runs a command of the project as a user would; the finished process, output as text."""
    env = {k: v for k, v in os.environ.items() if k not in ("UMLS", "E3C")}
    return subprocess.run(
        [sys.executable, *map(str, args)], cwd=cwd, env=env, capture_output=True, text=True, timeout=300
    )
