#!/usr/bin/env bash
# Tests and benchmarks that need a GPU, on a machine that has one, the most wanted first:
#
#     benchmarks/gpu.sh [FOLDER [PART ...]]        all parts, or those named (see the end of this file)
#     benchmarks/gpu.sh packages                   on a machine with a network, before: see below
#
# Every table names its device. Rows are kept in FOLDER (gpu_results by default), so that the script
# goes on where it was stopped. Each part has its own limit of time, and all together SECONDS_IN_ALL
# (600); a part that fails or is stopped does not stop the others. PYTHON chooses another Python than
# .venv/bin/python, or python3 where that is missing.
#
# A machine without a network that has JAX, Flax, optax, orbax, chex, matplotlib, scikit-learn,
# scikit-image and pytest lacks a few small packages of pure Python: `packages` puts them into
# build/gpu_packages, which goes along with the checkout. Nothing is installed there.
set -uo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=$(command -v "${PYTHON:-python3}")
carried=build/gpu_packages
if [ "${1:-}" = packages ]; then
    rm -rf "$carried"
    exec "$python" -m pip install --quiet --no-deps --target "$carried" \
        ml-collections matfree blackjax tensorboardX mlxtend
fi
folder=${1:-gpu_results}
shift || true
wanted=" $* "
mkdir -p "$folder"
export PYTHONPATH=$PWD:$PWD/$carried PYTHONUNBUFFERED=1
end=$((SECONDS + ${SECONDS_IN_ALL:-600}))

"$python" - <<'CHECK' || exit 1
import os
import sys
import jax
if jax.default_backend() == "cpu" and not os.environ.get("REHEARSAL"):
    sys.exit("JAX sees no accelerator: install its plugin, for example pip install 'jax[cuda13]'")
print(f"{len(jax.devices())} x {jax.devices()[0].device_kind}, JAX {jax.__version__}")
CHECK

failed=()
part() { # name, seconds at most, arguments of python
    local name=$1 limit=$2
    shift 2
    case "$wanted" in "  " | *" $name "*) ;; *) return ;; esac
    local left=$((end - SECONDS))
    if ((left < 20)); then
        failed+=("$name (no time left)")
        return
    fi
    echo "== $name"
    timeout --kill-after=5 $((left < limit ? left : limit)) "$python" "$@" 2>&1 |
        tee "$folder/$name.txt" || failed+=("$name")
    echo "-- $name: until second $SECONDS"
}
hessian() { # name, seconds at most, channels, sizes
    part "$1" "$2" benchmarks/hessian_cost.py --features "$3" --json "$folder/hessian_cost_$3.json" \
        --methods "direct diagonal" "direct rank 50" "direct shared" jacfwd chunked hutchinson \
        --chunk 512 --gibibytes 40 --sizes "${@:4}"
}
run() { # name, seconds at most, flags: trains a run, tests it
    part "$1" "$2" main.py --run "$folder" --doc "$1" --ni --verbose warning "${@:3}"
    part "$1" 120 main.py --run "$folder" --doc "$1" --test
}

part tests 150 -m pytest tests/train -m gpu -n 0 -q -p no:cacheprovider
part train_wide 90 benchmarks/train_step.py --json "$folder/train_step.json" \
    --profile "$folder/profile" --settings "low rank photos, unet 128, shared, bfloat16, batch 512"
hessian hessian_3072 240 64 3072
part train_step 300 benchmarks/train_step.py --accelerator --json "$folder/train_step.json"
hessian hessian_784 240 64 784
part sampler_step 90 benchmarks/sampler_step_cost.py --ngf 64 --chains 256 \
    --json "$folder/sampler_step_cost.json"
run photos 260 --runner LowRankHybridRunner --config unet_cifar10 --noise 0.5 \
    --config.data.name=photos --config.model.name=unet --config.model.networks=shared \
    --config.model.data_std=0.5 --config.model.rank=16 --config.model.dtype=bfloat16 \
    --config.optim.lr=1e-3 --config.optim.schedule=cosine --config.optim.warmup=200 \
    --config.optim.clip=1 --config.optim.ema=0.999 --config.training.batch_size=128 \
    --config.training.steps="${PHOTO_STEPS:-4000}" --config.training.evaluate_every=2000 \
    --config.training.checkpoint_every=2000
run annealed 120 --runner DoubleDiagonalHybridRunner --config annealed_mnist5k
part annealed_samples 90 benchmarks/annealed_samples.py --run "$folder/annealed" \
    --json "$folder/annealed_samples.json" --figure "$folder/annealed_samples.png"
hessian hessian_128 300 128 3072 784
hessian hessian_large 300 64 12288 196608
part loss_cost 120 benchmarks/loss_cost.py --json "$folder/loss_cost.json"
if ((${#failed[@]})); then
    echo "failed or stopped: ${failed[*]}"
    exit 1
fi
