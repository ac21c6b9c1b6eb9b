#!/usr/bin/env bash
# Run the released programs and cl-bench on all runs of the parity suite in parallel on this machine's GPUs.
#
#   bash tools/parity/side_by_side.sh AUTHORS OUT [SECONDS]
#
# AUTHORS holds the checkouts sdlora, inflora and coda; CL_BENCH_DATA is the folder with CIFAR-100. Records are written
# to OUT/authors and OUT/runs, logs to OUT/logs. Runs are stopped after SECONDS (default: 530); a second call only repeats
# unfinished runs. PYTHON, SUITE and SEEDS override the interpreter, the suite and the seeds; OPTIONS (such as limits) is
# passed to both sides.
set -u
authors=$1 out=$2 limit=${3:-530}
python=${PYTHON:-python} suite=${SUITE:-tools/parity/cifar100.yaml} seeds=${SEEDS:-0 1 2 3 4} options=${OPTIONS:-}
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
device=cuda
[ "$gpus" -gt 0 ] || { gpus=1 device=cpu; }
# One thread each: with one or two cores per process, more threads would only wait for each other.
export OMP_NUM_THREADS=1 PYTHONPATH=.${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out/authors" "$out/runs" "$out/logs"
number=0
for program in sdlora inflora coda; do
  for seed in $seeds; do
    compgen -G "$out/authors/$program-s$seed-*.json" >/dev/null && continue
    # shellcheck disable=SC2086
    CUDA_VISIBLE_DEVICES=$((number % gpus)) timeout "$limit" "$python" -W ignore -m tools.parity.run \
      "$authors/$program" "$program" --suite "$suite" --seed "$seed" --out "$out/authors" --device "$device" \
      $options >"$out/logs/$program-$seed.log" 2>&1 &
    number=$((number + 1))
  done
done
for seed in $seeds; do
  # shellcheck disable=SC2086
  CUDA_VISIBLE_DEVICES=$((number % gpus)) timeout "$limit" "$python" -m cl_bench.cli run --suite "$suite" \
    --seeds "$seed" --results "$out/runs" --device "$device" $options >"$out/logs/cl-bench-$seed.log" 2>&1 &
  number=$((number + 1))
done
wait
grep -H "acc .*, aaa" "$out"/logs/*.log
"$python" -m tools.parity.report --authors "$out/authors" --results "$out/runs"
