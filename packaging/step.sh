#!/bin/bash
# Runs a command, and says before what it is for and after it how long it took: step.sh WHAT COMMAND...
set -euo pipefail
what=$1
shift

echo "== $what"
SECONDS=0
"$@"
echo "   took $SECONDS s"
