# Runs in the container behind sealed_git.sh: says what of each repository exists nowhere else. Its arguments are the ways
# to each `.git`, and to each HEAD, which may be a bare repository's. What lies in a directory that $kept names, a line
# each, is not lost with the rest.
set -f
say() { printf 'hutch-unsaved %s: %s\n' "$repo" "$1"; }
look() {
  [ -e "$1" ] || [ -L "$1" ] || exit 0 # it has gone meanwhile
  repo=${1%/*}
  repo=${repo:-/}
  if [ "${1##*/}" = HEAD ]; then
    if [ ! -d "$repo/objects" ] || [ ! -d "$repo/refs" ] || is_tracked; then exit 0; fi
    export GIT_DIR=. # and no other one around it
    check bare
  else
    check
    look_at_files
  fi
  head=HEAD # which may be detached, or a branch that has no commit yet
  git rev-parse --quiet --verify HEAD >/dev/null 2>&1 || { [ $? = 1 ] && head=; } || fail
  remotes=$(git config --get-regexp '^(remote\..*\.(push)?url|remote\..*\.fetch|url\..*insteadof)$') || [ $? = 1 ] || fail
  look_at_remotes
  # shellcheck disable=SC2086 # options without blanks
  local=$(git log --oneline --max-count=1 $head --branches --tags --not $elsewhere -- 2>&1) || fail
  [ -z "$local" ] || say "commits that were not pushed"
}
look_at_files() {
  changed=$(git status --porcelain --untracked-files=normal --ignore-submodules=dirty 2>&1) || fail # each is looked into
  [ -z "$changed" ] || say "uncommitted changes"
  flagged=$(git ls-files -v 2>&1) || fail
  ! printf '%s\n' "$flagged" | grep -q '^[a-zS] ' || look_at_overlooked
  stashed=$(git stash list 2>&1) || fail
  [ -z "$stashed" ] || say "stashed changes"
}
look_at_overlooked() { # files that git is told to overlook; an index of our own says otherwise
  index=$(mktemp) || fail
  trap 'rm -f -- "$index" "$index.names"' EXIT
  cp -- "$(git rev-parse --path-format=absolute --git-path index)" "$index" || fail
  git ls-files -v -z | sed -n -z 's/^[a-zS] //p' >"$index.names" || fail
  export GIT_INDEX_FILE="$index"
  for flag in assume-unchanged skip-worktree; do
    git update-index -z --no-$flag --stdin <"$index.names" 2>/dev/null || fail
  done
  changed=$(git status --porcelain --untracked-files=no --ignore-submodules=dirty 2>&1) || fail
  unset GIT_INDEX_FILE
  # A file that is not there is no work, and in a sparse checkout most are not.
  ! printf '%s\n' "$changed" | grep -q '^[^ ]\|^ [^D]' || say "changes that git was told to overlook"
}
look_at_remotes() { # sets `elsewhere`, options that name what other places have; ends the look into another's mirror
  elsewhere=
  while read -r key value; do
    name=${key#remote.}
    case $key in
      url.*) is_rewritten=yes ;;
      *.pushurl) ! is_lost "$value" || elsewhere="$elsewhere --exclude=${name%.pushurl}/*" ;;
      *.url) ! is_lost "$value" || elsewhere="$elsewhere --exclude=${name%.url}/*" ;;
    esac
  done <<LINES
$remotes
LINES
  if [ -n "${is_rewritten:-}" ]; then elsewhere='' && return; fi # by which a name may mean a place that goes with the rest
  [ -n "$elsewhere" ] || case ${GIT_DIR:-}$remotes in
    .*'.fetch +refs/*:refs/*'* | .*'.fetch +refs/heads/*:refs/heads/*'*) exit 0 ;;
  esac
  elsewhere="$elsewhere --remotes"
}
is_lost() { # URL of a remote: whether it is a directory that goes with the rest
  case ${1%%/*} in
    *:*) case $1 in file://*) ;; *) return 1 ;; esac ;;
  esac
  case /$1/ in */../*) return 0 ;; esac
  while read -r directory; do
    [ -n "$directory" ] || continue
    case ${1#file://} in "$directory" | "$directory"/*) return 1 ;; esac
  done <<LINES
$kept
LINES
  return 0
}
is_tracked() ( # of a bare repository: whether the one around it has it as its files
  name=${repo##*/}
  repo=${repo%/*}
  git ls-files --error-unmatch -- ":(literal)$name/HEAD" >/dev/null 2>&1
)
for found; do
  (look "$found") || exit 1
done
