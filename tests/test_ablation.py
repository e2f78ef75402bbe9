"""The grid of Table 6 (make ablation, configs/ablation.sh): what it runs, in which order, and what it keeps."""

import os
import subprocess
import sys

import pytest

from tests.conftest import ROOT

# Stands for Python: notes what it is called with, and leaves the files that a program would leave.
FAKE = """#!{python}
import json, os, sys
from pathlib import Path
argv = sys.argv[1:]
if argv[0] == "-c":
    os.execv("{python}", ["{python}", *argv])
with open("calls.txt", "a") as f:
    f.write(" ".join(argv) + "\\n")
if "broken" in argv:
    sys.exit(1)
if argv[0] == "finetune.py" and argv[1] != "tables":
    path, n = Path(argv[argv.index("--out") + 1], "scores.json"), int(argv[argv.index("--runs") + 1])
elif argv[:2] == ["-m", "beyond.evaluate"]:
    path, n = Path("results", Path(argv[2]).name, "knowledge-fr.json"), 0
elif argv[0] == "kgi.py":
    path, n = Path(argv[argv.index("--out") + 1], "model.safetensors"), 0
    if path.exists():
        sys.exit()
else:
    sys.exit()
path.parent.mkdir(parents=True, exist_ok=True)
path.write_text(json.dumps({{"runs": [0] * n}}))
"""


@pytest.fixture
def ablation(tmp_path):
    """Calls the script and returns (its exit status, the calls of the programs)."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(FAKE.format(python=sys.executable))
    (tmp_path / "bin" / "python").chmod(0o755)

    def call(*argv, **variables):
        given = {"CONFIG": "configs/drbert-fr.toml", "DATA": "datasets/fr", "LANGUAGE": "fr", "SEEDS": "0 4"}
        given |= {"CORPORA": "e3c=x/y meddocan=z", "BIN": str(tmp_path / "bin")} | variables
        (tmp_path / "calls.txt").write_text("")
        script = [str(ROOT / "configs" / "ablation.sh"), *argv]
        p = subprocess.run(script, cwd=tmp_path, env=os.environ | given, capture_output=True, text=True)
        return p.returncode, (tmp_path / "calls.txt").read_text().splitlines()

    return call


def test_each_subset_of_tasks_and_seed_once(ablation):
    code, calls = ablation("--init", "DrBERT-4GB")
    assert code == 0 and calls[:2] == [f"-m beyond.check --corpus {c}" for c in ("e3c --data x/y", "meddocan --data z")]
    assert calls[-1] == "finetune.py tables"
    assert len(calls) == 3 + 2 * 5 * 4 == len({*calls})
    run, config = "drbert-fr-ep-lp-s4", "configs/drbert-fr.toml"
    assert [call for call in calls if run in call] == [
        f"kgi.py {config} configs/ablation-ep-lp.toml --data datasets/fr --seed 4 --out runs/{run} --init DrBERT-4GB",
        f"finetune.py runs/{run} {config} --corpus e3c --data x/y --runs 1 --out results/{run}/e3c-fr",
        f"finetune.py runs/{run} {config} --corpus meddocan --data z --runs 1 --out results/{run}/meddocan",
        f"-m beyond.evaluate runs/{run} --data datasets/fr",
    ]
    assert all((ROOT / call.split()[2]).is_file() for call in calls if "ablation-" in call)


def test_started_again_it_continues(ablation, tmp_path):
    """A run is asked again, for it knows whether it is done. Results stay unless seeds lack or the model is newer."""
    ablation(SEEDS="0")
    calls = ablation(SEEDS="0")[1]
    assert sum("--seed" in call for call in calls) == 5 and len(calls) == 3 + 5
    calls = ablation(SEEDS="0", RUNS="2")[1]
    assert sum("--runs 2" in call for call in calls) == 10 and not any("evaluate" in call for call in calls)
    model = tmp_path / "runs" / "drbert-fr-all-s0" / "model.safetensors"
    os.utime(model, (model.stat().st_mtime + 1000,) * 2)
    calls = ablation(SEEDS="0", RUNS="2")[1]
    again = [call for call in calls if "runs/drbert-fr-all-s0 " in call and "--seed" not in call]
    assert len(again) == 3 and len(calls) == 3 + 5 + 3


def test_the_language_is_in_the_name_of_a_run(ablation):
    _, calls = ablation(CONFIG="configs/demo.toml", SEEDS="0", CORPORA="")
    assert any("--out runs/demo-fr-mlm-s0" in call for call in calls)


def test_a_broken_corpus_is_found_before_any_training(ablation):
    code, calls = ablation(CORPORA="e3c=x broken=y")
    assert code != 0 and len(calls) == 2 and not any("kgi.py" in call for call in calls)


def make(*argv):
    p = subprocess.run(["make", "-n", *argv], cwd=ROOT, capture_output=True, text=True)
    return p.stdout.replace("\\\n", "")


def test_make_calls_the_script():
    shown = make("ablation", "LANG=fr", "SEEDS=0 4", "CORPORA=e3c=x/y", "ARGS=--init DrBERT-4GB")
    assert 'CONFIG="configs/v1-fr.toml" DATA="datasets/fr" LANGUAGE="fr"' in shown
    assert 'SEEDS="0 4"' in shown and 'CORPORA="e3c=x/y"' in shown and "configs/ablation.sh --init DrBERT-4GB" in shown
    assert "needs LANG=fr" in make("ablation") and 'test -n ""' in make("ablation")
