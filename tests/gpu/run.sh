#!/usr/bin/env bash
# All that this project checks and measures on a machine with an NVIDIA GPU, within nine minutes:
#     bash tests/gpu/run.sh
# Needs nvcc, python3 with PyTorch, NumPy, pytest, CMake, ninja, pybind11 and scikit-build-core, and
# no network: wheels of what is missing (safetensors, tqdm) are taken from the folder FLATSTEP_WHEELS,
# or ./wheels. No setting of the card is changed. Tests of the device run side by side, then
# benchmarks alone, then what takes longest.
# Stages go on after one that fails; a table comes last and, with the benchmarks and the ends of failed
# logs, in a file in $OUT or bench/results/.
#     bash tests/gpu/run.sh --rehearse
# goes through the same stages with the emulator, tiny sizes and no sanitizers, on any machine.
set -uo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
cd "$root" || exit
seconds_in_all=${FLATSTEP_GPU_SECONDS:-530}
build_limit=170 tests_limit=150
wheels=${FLATSTEP_WHEELS:-$root/wheels}
out=${OUT:-$root/bench/results}
rehearse=false
[ "${1:-}" = --rehearse ] && rehearse=true seconds_in_all=2400 build_limit=900 tests_limit=900

work=${FLATSTEP_GPU_WORK:-$(mktemp -d)}  # a folder given there is kept, with the built module in site/
[ -n "${FLATSTEP_GPU_WORK:-}" ] || trap 'rm -rf "$work"' EXIT
site=$work/site
mkdir -p "$site" "$work/logs" "$work/failed" "$out"
export PYTHONPATH=$site PATH=$site/bin:$PATH:/usr/local/cuda/bin PYTHONUNBUFFERED=1
began=$SECONDS

remaining() { echo $((seconds_in_all - (SECONDS - began))); }

note() { # name, result, seconds
  printf '%-28s %-44s %4s s\n' "$1" "$2" "$3" | tee -a "$work/table"
}

# stage NAME LIMIT COMMAND...: runs it with what is left of the time, at most LIMIT seconds.
stage() {
  local name=$1 limit=$2 left log result start status
  shift 2
  log=$work/logs/${name// /-}.log
  left=$(remaining)
  if [ "$left" -lt 5 ]; then
    note "$name" "not run: no time is left" 0
    return 1
  fi
  [ "$left" -lt "$limit" ] && limit=$left
  start=$SECONDS
  timeout -k 5 "$limit" "$@" > "$log" 2>&1
  status=$?
  case $status in
    0) result="passed$(grep -oE '[0-9]+ passed' "$log" | tail -1 | sed 's/^/, /')" ;;
    124 | 137) result="FAILED: not done after $limit s" ;;
    *) result="FAILED: status $status, $(grep -oE '[0-9]+ (failed|errors?)' "$log" | tail -1)" ;;
  esac
  [ $status -eq 0 ] || ln -s "$log" "$work/failed/"
  note "$name" "$result" $((SECONDS - start))
  return $status
}

card() {
  if $rehearse; then
    name=rehearsal architecture=
  else
    name=$(nvidia-smi --query-gpu=name --format=csv,noheader | head -1) || exit 1
    architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)
  fi
  slug=$(tr '[:upper:]' '[:lower:]' <<< "$name" | sed -E 's/[^a-z0-9]+/-/g; s/^-|-$//g')
  report=$out/$(date +%F)-cuda-$slug.txt
}

versions() {
  nvidia-smi --query-gpu=name,driver_version,memory.total,compute_cap --format=csv,noheader
  nvcc --version | grep release
  python3 -c 'import sys, torch, numpy; print(sys.version.split()[0], torch.__version__, numpy.__version__)'
  git -C "$root" log -1 --format=%H || true  # a copy without its history
}

build() {
  if compgen -G "$wheels/*.whl" > /dev/null; then
    python3 -m pip install -q --no-index --no-deps --target "$site" "$wheels"/*.whl || return
  fi
  local options=(-Cbuild-dir="$work/build" -Ccmake.define.FLATSTEP_CUDA=ON
                 -Ccmake.define.CMAKE_CUDA_ARCHITECTURES="$architecture-real"
                 -Ccmake.define.CMAKE_CUDA_FLAGS=-lineinfo)
  $rehearse && options=(-Cbuild-dir="$work/build" -Ccmake.define.FLATSTEP_CUDA=EMULATED)
  CMAKE_BUILD_PARALLEL_LEVEL=$(nproc) python3 -m pip install -q --no-index --no-deps \
    --no-build-isolation --no-cache-dir --target "$site" "${options[@]}" .
}

info() {
  python3 -c 'import flatstep; cuda = flatstep.info()["cuda"]; print(cuda); assert cuda["devices"]'
}

# Several processes where pytest-xdist is there; other plugins might warn, which is an error.
pytests() {
  local processes=()
  if python3 -c 'import xdist' 2> /dev/null; then
    processes=(-n $(($(nproc) / 2 + 1)))
  fi
  python3 -m pytest -q -p no:benchmark -p no:cacheprovider "${processes[@]}" "$@"
}

# A sanitizer that finds nothing must first find what is there.
planted() {
  nvcc -arch="sm_$architecture" -lineinfo -o "$work/planted" tests/gpu/planted.cu || return
  "$work/planted" none || return
  compute-sanitizer --tool memcheck --error-exitcode 9 "$work/planted" overrun
  [ $? -eq 9 ] || return 1
  compute-sanitizer --tool racecheck --error-exitcode 9 "$work/planted" race
  [ $? -eq 9 ] || return 1
  compute-sanitizer --tool memcheck --error-exitcode 9 "$work/planted" none &&
    compute-sanitizer --tool racecheck --error-exitcode 9 "$work/planted" none
}

sanitized() { # tool
  compute-sanitizer --tool "$1" --error-exitcode 9 --target-processes all \
    python3 tests/gpu/calls.py --once
}

sanitizers() {
  if ! command -v compute-sanitizer > /dev/null; then
    note sanitizers "not run: no compute-sanitizer" 0
  elif stage "planted faults" 60 bash -c planted; then
    stage memcheck "$tests_limit" bash -c 'sanitized memcheck' &
    stage racecheck "$tests_limit" bash -c 'sanitized racecheck' &
    wait
  fi
}

# benchmark NAME LIMIT ARGUMENTS...
benchmark() {
  local name=$1 limit=$2
  shift 2
  if $rehearse; then
    case $name in
      cross_entropy) set -- --device cpu --classes 96 --gigabytes 0.0001 --no-compile ;;
      optimizer) set -- --device cpu --cases tiny ;;
      *) set -- --device cpu --shapes 8x16x40 --workspace-mib 1 --no-compile ;;
    esac
  fi
  stage "benchmark $name" "$limit" python3 "bench/cuda_$name.py" "$@"
}

table() {
  printf '%s, %s, %s seconds\n\n' "$name" "$(date -u +'%F %H:%M')" $((SECONDS - began))
  cat "$work/table"
}

export -f versions build info pytests planted sanitized
export root site work wheels rehearse
card
export architecture
$rehearse || stage versions 30 bash -c versions
if stage build "$build_limit" bash -c build && stage devices 30 bash -c info; then
  stage "tests on the device" "$tests_limit" bash -c 'pytests tests/cuda' &
  if ! $rehearse; then
    stage "beside PyTorch" "$tests_limit" \
      bash -c 'pytests tests/parity/cuda tests/parity/test_torch_state_cuda.py' &
    sanitizers &
  fi
  wait
  benchmark cross_entropy 100 --seconds 0.1 --compile-classes 50257
  benchmark linear_cross_entropy 60 --seconds 0.1
  benchmark optimizer 50 --seconds 0.1
  runs=20
  $rehearse && runs=2
  # The time that is left.
  stage "same bits, $runs runs" 250 python3 tests/gpu/calls.py --runs $runs &
  if ! $rehearse; then
    stage "whole suite" 250 bash -c 'pytests --ignore tests/cuda --ignore tests/parity' &
  fi
  wait
fi

{
  table
  for log in "$work"/logs/versions.log "$work"/logs/benchmark*.log; do
    [ -f "$log" ] && printf '\n== %s\n' "$(basename "$log" .log)" && cat "$log"
  done
  for log in "$work"/failed/*.log; do
    [ -f "$log" ] && printf '\n== the end of %s\n' "$(basename "$log")" && tail -60 "$log"
  done
} > "$report"
printf '\n'
table
printf '\n%s\n' "$report"
[ -z "$(ls "$work/failed")" ]
