"""Measurements that anyone can repeat; each prints ratios of things measured side by side in one run.

    python tests/bench.py data [--folder .cache/2022AB] [--scale 1] [--repeat 3]      (make bench-data)

data: makes a release as large as 2022AB once (kept in the folder), then in turn reads the needed columns with
pyarrow.csv (the floor: no build can do without reading) and builds the English data set at the sizes of Table 1,
with the time and the peak memory of each stage. Last, another seed on the tables that were kept.
"""

import argparse
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import data  # noqa: E402
from tests import sample  # noqa: E402

NEEDED = {
    "MRSTY": ["CUI", "TUI", "STN"],
    "MRCONSO": "CUI LAT TS STT ISPREF AUI SAB TTY STR SUPPRESS".split(),
    "MRREL": ["CUI1", "REL", "CUI2", "SUPPRESS"],
}
FLOOR = """
import sys, pyarrow as pa
from pyarrow import csv
path, names, needed = sys.argv[1], sys.argv[2].split(), sys.argv[3].split()
names.append("")
convert = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=needed)
read = csv.ReadOptions(column_names=names, block_size=8 << 20)
parse = csv.ParseOptions(delimiter="|", quote_char=False)
print(sum(len(batch) for batch in csv.open_csv(path, read, parse, convert)))
"""


def floor(folder):
    """Seconds that pyarrow.csv takes to stream the needed columns of the three files."""
    seconds = 0
    for name, needed in NEEDED.items():
        argv = [str(folder / "META" / f"{name}.RRF"), " ".join(data.RRF[name]), " ".join(needed)]
        began = time.time()
        subprocess.run([sys.executable, "-c", FLOOR, *argv], check=True, capture_output=True)
        seconds += time.time() - began
    return seconds


def build(folder, out, seed=0):
    """Stages of an English build: [(what, seconds, peak GB)]."""
    argv = f"build --lang en --umls {folder} --e3c {folder}/E3C --out {out} --seed {seed}".split()
    child = subprocess.Popen([sys.executable, str(ROOT / "data.py"), *argv], stdout=subprocess.PIPE, text=True)
    peak, done = [0.0], threading.Event()

    def watch():
        while not done.wait(0.02):
            try:
                status = Path(f"/proc/{child.pid}/status").read_text()
                peak[0] = max(peak[0], int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1e6)
            except (OSError, TypeError):  # it has ended, or this is not Linux
                pass

    watcher = threading.Thread(target=watch)
    watcher.start()
    stages, before = [], 0.0
    for line in child.stdout:
        if match := re.match(r"\[ *([\d.]+) s\] (.*)", line):
            stages.append((match[2], float(match[1]) - before, peak[0]))
            before, peak[0] = float(match[1]), 0.0
    done.set()
    watcher.join()
    if child.wait():
        sys.exit(child.returncode)
    return stages


def bench_data(folder, scale, repeat):
    out = folder.parent / "dataset"
    made = folder / f"made-{scale:g}"
    if not made.is_file():
        began = time.time()
        shutil.rmtree(folder, ignore_errors=True)
        sample.write_full(folder, scale)
        made.touch()
        print(f"made {folder} in {time.time() - began:.0f} s")
    floors, runs = [], []
    for _ in range(repeat):
        shutil.rmtree(out.parent / "tables", ignore_errors=True)
        floors.append(floor(folder))
        runs.append(build(folder, out))
    again = build(folder, out, seed=1)

    print(f"\n{'stage':<72}{'seconds':>9}{'peak GB':>9}   (medians of {repeat})")
    medians = [statistics.median(run[k][1] for run in runs) for k in range(len(runs[0]))]
    for k, (what, _, _) in enumerate(runs[0]):
        print(f"{what[:70]:<72}{medians[k]:>9.1f}{max(run[k][2] for run in runs):>9.2f}")
    last = next(k for k, (what, *_) in enumerate(runs[0]) if what.startswith("samples"))
    first = next(k for k, (what, *_) in enumerate(runs[0]) if what.startswith("MRSTY"))
    tables = statistics.median(sum(s for _, s, _ in run[first : last + 1]) for run in runs)
    ratio = statistics.median(sum(s for _, s, _ in run[first : last + 1]) / f for run, f in zip(runs, floors))
    total = statistics.median(sum(s for _, s, _ in run) for run in runs)
    print(f"\nfloor: pyarrow.csv reading the needed columns {statistics.median(floors):>25.1f} s")
    print(f"tables and samplers {tables:>51.1f} s   {ratio:.2f} x the floor")
    print(f"the whole build {total:>55.1f} s   {max(p for run in runs for _, _, p in run):.2f} GB")
    print(f"another seed on the tables kept {sum(s for _, s, _ in again):>39.1f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["data"])
    parser.add_argument("--folder", type=Path, default=Path(".cache/2022AB"))
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    bench_data(args.folder, args.scale, args.repeat)
