#!/bin/bash
# Runs apt-get on Debian trixie, non-free and sources included, of whatever release the machine is: trixie.sh FOLDER ARCH ARGUMENTS...
# Nothing is installed: FOLDER has this apt's state, and after `install --download-only` the packages in cache/archives.
set -euo pipefail
folder=$1 arch=$2

if [ ! -e "$folder/apt.conf" ]; then
  mirror=$(cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | grep -oE 'https?://[^ ]+/debian/?( |$)' | head -1) || true
  if [ -z "$mirror" ]; then
    echo "trixie.sh: apt has no mirror of Debian, must have one" >&2
    exit 1
  fi
  mkdir -p "$folder"/{state/lists/partial,cache/archives/partial}
  touch "$folder/state/status"
  sed 's/^/deb-src /p; s/^deb-src /deb /' <<<"[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $mirror trixie main non-free" > "$folder/sources.list"
  cat > "$folder/apt.conf" <<CONF
APT::Architecture "$arch";
APT::Architectures { "$arch"; };
APT::Sandbox::User "root";
APT::Install-Recommends "false";
APT::Update::Post-Invoke-Success {};
Dir::Etc::sourcelist "$folder/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::State "$folder/state";
Dir::State::status "$folder/state/status";
Dir::Cache "$folder/cache";
CONF
  APT_CONFIG=$folder/apt.conf apt-get -qq update
fi
APT_CONFIG=$folder/apt.conf exec apt-get -qq --yes "${@:3}"
