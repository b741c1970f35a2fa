#!/usr/bin/env bash
# The benchmarks of cost and the tests that need an accelerator, on a machine that has one:
#
#     benchmarks/gpu.sh [FOLDER]        PYTHON=... chooses another Python than .venv/bin/python
#
# Every table names the device. Rows are kept in FOLDER (gpu_results by default), so that the script
# goes on where it was stopped; a part that fails does not stop the others.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-gpu_results}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$folder"

"$python" - <<'CHECK' || exit 1
import sys
import jax
if jax.default_backend() == "cpu":
    sys.exit("JAX sees no accelerator: install its plugin, for example pip install 'jax[cuda13]'")
print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, JAX {jax.__version__}")
CHECK

failed=()
part() {
    local name=$1
    shift
    echo "== $name"
    PYTHONPATH=$PWD "$python" "$@" 2>&1 | tee "$folder/$name.txt" || failed+=("$name")
}
part tests -m pytest tests/train -m gpu -n 0 -q
part hessian_cost benchmarks/hessian_cost.py --json "$folder/hessian_cost.json"
part loss_cost benchmarks/loss_cost.py --json "$folder/loss_cost.json"
part train_step benchmarks/train_step.py --run-all --json "$folder/train_step.json"
if ((${#failed[@]})); then
    echo "failed: ${failed[*]}"
    exit 1
fi
