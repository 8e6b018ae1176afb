#!/usr/bin/env bash
# One entry point for newcomers. See usage() below or README.md.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: ./run.sh [COMMAND] [ARGUMENTS]

  quickstart [centerx|plain_detr]   (default) set up, train on the embedded data set, evaluate, draw
  setup                             create .venv and install everything
  train   --config-file F ...       tools/train_net.py
  eval    --config-file F ...       tools/train_net.py --eval-only
  demo    --config-file F ...       tools/demo.py
  test    [PYTEST ARGUMENTS]        set up, lint, check format and types, run the test suite
  help                              this text

An active environment (venv or conda) that already has detectron2 is used as it is.
The suite runs in as many processes as there are cores, at most four; -n NUMBER says otherwise (-n 0: in one).
Environment variables: PYTHON (interpreter for .venv, default python3), VENV (default .venv).
TEXT
}

VENV=${VENV:-.venv}

have_detectron2() { "$1" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("detectron2") is None)' 2>/dev/null; }

install_detectron2() { # pure-Python wheel; the options make any Python 3 accept its cp310 tag
  local site
  site=$("$1" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  local had_tools=no
  [ -e "$site/tools" ] && had_tools=yes
  "$1" -m pip install --quiet --no-deps --only-binary=:all: --python-version 3.10 --implementation cp --abi none \
    --require-hashes --upgrade --target "$site" -r requirements-detectron2.txt
  [ "$had_tools" = yes ] || rm -rf "$site/tools" # the wheel drops a stray top-level package of that name
}

setup() {
  if [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ] && have_detectron2 python; then
    PY=python
    return
  fi
  PY=$VENV/bin/python
  # The stamp is written last and holds what was installed from, so an interrupted or outdated set-up is redone.
  local wanted
  wanted=$(cat setup.py constraints.txt requirements-detectron2.txt | cksum)
  if [ -x "$PY" ] && [ "$(cat "$VENV/.installed" 2>/dev/null)" = "$wanted" ]; then return; fi
  echo "[setup] installing into $VENV (a few minutes the first time) ..."
  if ! "$PY" -c '' 2>/dev/null; then
    rm -rf "$VENV"
    "${PYTHON:-python3}" -m venv "$VENV"
  fi
  rm -f "$VENV/.installed"
  "$PY" -m pip install --quiet -c constraints.txt -e '.[dev]'
  have_detectron2 "$PY" || install_detectron2 "$PY"
  "$PY" -c 'import detectron2, torchvision' || { echo "[setup] the installation is broken; remove $VENV and retry" >&2; exit 1; }
  echo "$wanted" >"$VENV/.installed"
  echo "[setup] done"
}

command=${1:-quickstart}
[ $# -gt 0 ] && shift
case "$command" in
  help | -h | --help) usage ;;
  setup) setup ;;
  quickstart) setup && exec "$PY" tools/quickstart.py "$@" ;;
  train) setup && exec "$PY" tools/train_net.py "$@" ;;
  eval) setup && exec "$PY" tools/train_net.py --eval-only "$@" ;;
  demo) setup && exec "$PY" tools/demo.py "$@" ;;
  test)
    setup
    "$PY" -m ruff check .
    "$PY" -m ruff format --check .
    "$PY" -m pyright --pythonpath "$("$PY" -c 'import sys; print(sys.executable)')"
    cores=$("$PY" -c 'import os; print(min(4, len(getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count()))(0))))')
    exec "$PY" -m pytest -n "$cores" --dist loadgroup "$@" # of two -n the last one counts
    ;;
  *)
    usage >&2
    echo "unknown command: $command" >&2
    exit 2
    ;;
esac
