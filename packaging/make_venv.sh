#!/bin/bash
# Makes a virtual environment that can build the package: make_venv.sh PYTHON FOLDER.
# Debian keeps two parts of Python in packages of their own.
set -euo pipefail
python=$1 venv=$2

if ! "$python" -c 'import ensurepip, pathlib, sysconfig
pathlib.Path(sysconfig.get_path("include"), "Python.h").stat()' 2>/dev/null; then
  echo "$python has no ensurepip or no Python.h, must have both (Debian: apt install python3-venv python3-dev)" >&2
  exit 1
fi

"$python" -m venv "$venv"
"$venv/bin/python" -m pip --quiet install 'pip>=25.1'
