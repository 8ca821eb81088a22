#!/bin/sh
# Answers, in a hook of mmdebstrap, with the apt that it has set up: updates.sh DIRECTORY
# Each file in DIRECTORY lists installed packages, in dpkg's form; apt's list of newer versions takes its place. One that
# apt cannot read is removed: it is no reason to leave the others without an answer.
set -eu
export APT_CONFIG="$MMDEBSTRAP_APT_CONFIG"
for list in "$1"/*; do
  [ -e "$list" ] || continue
  if apt --option Dir::State::status="$list" list --upgradable >"$1.answer"; then
    mv "$1.answer" "$list"
  else
    rm "$list"
  fi
done
