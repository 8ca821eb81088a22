# Runs for each repository $1, in the container: says what of it exists nowhere else.
repo=${1%/.git}
say() { printf 'hutch-unsaved %s: %s\n' "$repo" "$1"; }
command -v git >/dev/null || { say "there is no git in the image to look into it"; exit; }
odd=$(find "$repo" -xdev '(' -path '*/.git/*' -o -name '.git*' ')' ! -xtype f ! -xtype d ! -xtype l -print -quit \
  2>/dev/null)
[ -z "$odd" ] || { say "git would wait for ever for what is in it, a pipe or a device"; exit; }
# shellcheck disable=SC3045 # not of POSIX, and known to every shell that guests have as sh
ulimit -v 4194304 # KiB; a link to something without end would take all memory
git() {
  timeout -k 1 20 git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c safe.directory="*" \
    -c core.packedGitWindowSize=32m -c core.packedGitLimit=256m -C "$repo" "$@"
}
fail() { say "git cannot read it"; exit; }
changed=$(git status --porcelain 2>&1) || fail
[ -z "$changed" ] || say "uncommitted changes"
stashed=$(git stash list 2>&1) || fail
[ -z "$stashed" ] || say "stashed changes"
head=HEAD  # which may be detached, or a branch that has no commit yet
git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || head=
local=$(git log --oneline --max-count=1 $head --branches --tags --not --remotes 2>&1) || fail
[ -z "$local" ] || say "commits that were not pushed"
