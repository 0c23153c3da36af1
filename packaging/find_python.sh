#!/bin/bash
# Prints a Python of this version, the command's or pyenv's: find_python.sh 3.12. Fails where there is none.
set -euo pipefail
for candidate in "python$1" "$HOME"/.pyenv/versions/"$1"*/bin/python; do
  if [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
    echo "$candidate"
    exit
  fi
done
exit 1
