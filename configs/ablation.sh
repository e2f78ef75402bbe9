#!/usr/bin/env bash
# The grid of Table 6 and MLM alone: trains, fine-tunes and evaluates each subset of the tasks, for each seed.
#
#   CONFIG=configs/drbert-fr.toml DATA=datasets/fr-DrBERT-4GB LANGUAGE=fr SEEDS="0 1 2" RUNS=4 RANKS=4 \
#     CORPORA="cas-pos=DIR quaero-medline=DIR" configs/ablation.sh --init DrBERT-4GB
#
# `make ablation` calls it; the arguments are settings of kgi.py. Runs are runs/<config>-<tasks>-s<seed>. Started again,
# it continues: kgi.py resumes or refuses other settings, and results that are newer than their model are kept.
set -euo pipefail
: "${CONFIG:?}" "${DATA:?}" "${LANGUAGE:?}" "${SEEDS:=0}" "${RUNS:=1}" "${RANKS:=1}" "${CORPORA:=}" "${BIN:=.venv/bin}"

n_runs() { # how many seeds a scores.json holds
  "$BIN/python" -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["runs"]))' "$1" 2>/dev/null || echo 0
}

n=0 total=$((5 * $(wc -w <<<"$SEEDS"))) # of runs
train=("$BIN/python")
[ "$RANKS" = 1 ] || train=("$BIN/torchrun" --nproc_per_node "$RANKS")
base=$(basename "$CONFIG" .toml)
[[ $base == *-"$LANGUAGE" ]] || base=$base-$LANGUAGE
for corpus in $CORPORA; do # what is wrong with a corpus is found out first
  "$BIN/python" -m beyond.check --corpus "${corpus%%=*}" --data "${corpus#*=}" >/dev/null
done
for seed in $SEEDS; do
  for tasks in mlm ep-lp ep-tc tc-lp all; do
    run=$base-$tasks-s$seed
    n=$((n + 1))
    echo "run $n of $total: runs/$run"
    "${train[@]}" kgi.py "$CONFIG" "configs/ablation-$tasks.toml" --data "$DATA" --seed "$seed" --out "runs/$run" "$@"
    for corpus in $CORPORA; do
      name=${corpus%%=*} out=results/$run/${corpus%%=*}
      [ "$name" != e3c ] || out=$out-$LANGUAGE
      if [ "$(n_runs "$out/scores.json")" -lt "$RUNS" ] || [ ! "$out/scores.json" -nt "runs/$run/model.safetensors" ]; then
        "$BIN/python" finetune.py "runs/$run" "$CONFIG" --corpus "$name" --data "${corpus#*=}" --runs "$RUNS" --out "$out"
      fi
    done
    if [ ! "results/$run/knowledge-$(basename "$DATA").json" -nt "runs/$run/model.safetensors" ]; then
      "$BIN/python" -m beyond.evaluate "runs/$run" --data "$DATA"
    fi
  done
done
[ -n "$CORPORA" ] || echo "no CORPORA given: nothing was fine-tuned"
"$BIN/python" finetune.py tables
