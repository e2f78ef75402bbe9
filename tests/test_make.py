"""make setup: what it makes, what it leaves alone, and when it installs again. A script stands for Python and pip."""

import os
import shutil
import subprocess

import pytest

from tests.conftest import ROOT

FAKE = """#!/bin/sh
here=$(dirname "$0")
echo "$@" >>"$LOG"
case "$1 $2 $3" in
  "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
  "-m pip --version") ;;
  "-m pip install") packages=$(cat); echo "$packages" >"$LOG.packages"
    [ -z "$FAIL" ] && for p in $packages; do case $p in torch==*) echo "${p#torch==}" >"$here/torch" ;; esac; done ;;
  *importlib.metadata*) cat "$here/torch" ;;
esac
"""


@pytest.fixture
def setup(tmp_path):
    """Calls make setup there, with requirements of today; returns (its status, its output, what pip was given)."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements-dev.txt").write_text("-r requirements.txt\n-r requirements-plot.txt\npytest==9\n")
    (tmp_path / "requirements-plot.txt").write_text("matplotlib==3\n")
    (tmp_path / "python").write_text(FAKE)
    (tmp_path / "python").chmod(0o755)

    def call(torch="2.13.0", venv=".venv", **more):
        for name in ("log", "log.packages"):
            (tmp_path / name).unlink(missing_ok=True)
        (tmp_path / "requirements.txt").write_text(f"# what is needed\ntorch=={torch}\nnumpy==2\n")  # newer than .ready
        argv = ["make", "setup", f"VENV={venv}", f"PYTHON={tmp_path / 'python'}"]
        env = os.environ | {"LOG": str(tmp_path / "log")} | more
        p = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True)
        packages = tmp_path / "log.packages"
        given = [x for x in packages.read_text().splitlines() if x[0] != "#"] if packages.exists() else []
        return p.returncode, p.stdout, given

    return call


ALL = ["torch==2.13.0", "numpy==2", "pytest==9", "matplotlib==3"]


def test_an_environment_is_made_once_and_then_only_added_to(setup, tmp_path):
    (tmp_path / ".venv").mkdir()  # an empty folder is fine
    assert setup()[::2] == (0, ALL)
    (tmp_path / ".venv" / "mine").write_text("mine")
    status, _, given = setup(torch="2.14.0")
    assert (status, given) == (0, ["torch==2.14.0", *ALL[1:]])  # that which make installed follows its pin
    assert (
        "venv" not in (tmp_path / "log").read_text().replace("/.venv/", "") and (tmp_path / ".venv" / "mine").exists()
    )


@pytest.mark.parametrize("there", ["foreign", "link", "nothing", "spaces"])
def test_what_make_has_not_made_is_left_alone(setup, tmp_path, there):
    """A folder of a user, a link (here to an environment of make), and VENV= without a name."""
    setup()
    (tmp_path / "env").mkdir()
    (tmp_path / "env" / "pyvenv.cfg").write_text("theirs")
    (tmp_path / "link").symlink_to(".venv")
    status, shown, given = setup(venv={"foreign": "env", "link": "link", "nothing": "", "spaces": "my env"}[there])
    assert status == 2 and "not a folder that make setup has made" in shown and given == []
    assert not (tmp_path / "log").exists() and [p.name for p in (tmp_path / "env").iterdir()] == ["pyvenv.cfg"]


@pytest.mark.parametrize("theirs", ["2.13.0+cu126", "2.10.0"])
def test_the_torch_of_a_v100_stays_when_the_requirements_change(setup, tmp_path, theirs):
    setup()
    (tmp_path / ".venv" / "bin" / "torch").write_text(f"{theirs}\n")  # as the README says
    for pin in ("2.13.0", "2.14.0"):
        status, shown, given = setup(torch=pin)
        assert (status, given) == (0, ALL[1:]) and f"torch {theirs} stays" in shown
        assert (tmp_path / ".venv" / "bin" / "torch").read_text() == f"{theirs}\n"
    (tmp_path / ".venv" / ".ready").write_text("")  # that of an older make setup
    assert setup()[2] == ALL[1:]


def test_an_interrupted_setup_is_taken_up_again(setup, tmp_path):
    assert setup(FAIL="1")[0] == 2 and (tmp_path / ".venv" / ".ready").exists()
    assert setup()[::2] == (0, ALL)
    (tmp_path / ".venv" / "bin" / "python").unlink()  # that of the system has gone
    assert setup()[::2] == (0, ALL)
