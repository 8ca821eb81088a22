# Runs in the container behind sealed_git.sh, for the repositories that are its arguments: says what of each exists
# nowhere else.
say() { printf 'hutch-unsaved %s: %s\n' "$repo" "$1"; }
look() {
  [ -e "$1" ] || [ -L "$1" ] || exit 0 # it has gone meanwhile
  repo=${1%/.git}
  repo=${repo:-/}
  check
  changed=$(git status --porcelain --ignore-submodules=dirty 2>&1) || fail # they are looked into by themselves
  [ -z "$changed" ] || say "uncommitted changes"
  stashed=$(git stash list 2>&1) || fail
  [ -z "$stashed" ] || say "stashed changes"
  head=HEAD # which may be detached, or a branch that has no commit yet
  git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || head=
  local=$(git log --oneline --max-count=1 $head --branches --tags --not --remotes 2>&1) || fail
  [ -z "$local" ] || say "commits that were not pushed"
}
for found; do
  (look "$found") || exit 1
done
