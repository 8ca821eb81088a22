# Runs in the container behind sealed_git.sh: says what has changed in repositories since the moment $1, in Unix time.
# The other arguments are the ways to each `.git`, and to each HEAD, which may be a bare repository's. Commits count by
# the time that they tell themselves; whether a repository is new is told by the times of the host's kernel.
line() { printf 'hutch-changed %s %s\n' "$1" "$(printf '%s' "$2" | tr '\001-\037\177' '?')"; }
say() { line problem "$1"; }
# The lines of a command of git's, but no more than $2 of them; and a line that says so where it fails.
lines() {
  kind=$1 most=$2
  shift 2
  { git -c core.quotepath=false "$@" 2>/dev/null || printf '!\n'; } | head -n "$most" | sed "s/^/hutch-changed $kind /"
}
# When the entries of a git directory have changed that git obeys. There may be more hooks than fit into an argument list.
moments() {
  stat -c %Z -- "$1" "$1/HEAD" "$1/config" "$1/hooks" 2>/dev/null
  find "$1/hooks" -maxdepth 1 -print0 2>/dev/null | xargs -0 stat -c %Z -- 2>/dev/null
}
look() {
  [ -e "$1" ] || [ -L "$1" ] || exit 0 # it has gone meanwhile
  repo=${1%/*}
  own=$1
  if [ "${1##*/}" = HEAD ]; then
    if [ ! -d "$repo/objects" ] || [ ! -d "$repo/refs" ]; then exit 0; fi
    own=$repo
  fi
  line repository "$repo"
  moments "$own" | while read -r time; do
    if [ "$time" -ge "$since" ]; then
      line touched "$repo"
      break
    fi
  done
  [ "$own" != "$repo" ] || exit 0
  check
  base=
  if git rev-parse --quiet --verify HEAD >/dev/null 2>&1; then
    base=$(git rev-list --max-count=1 --before="$since" HEAD 2>/dev/null) || fail
    line commits "$(git rev-list --count HEAD ${base:+"^$base"} 2>/dev/null)"
  fi
  [ -n "$base" ] || base=$(git hash-object -t tree /dev/null 2>/dev/null) || fail
  lines file 1001 diff --numstat --no-ext-diff --no-textconv --no-renames --ignore-submodules=all "$base" --
  lines untracked 201 ls-files --others --exclude-standard
}
export GIT_WORK_TREE=. # whatever the repository calls its own: the whole root, say
since=$1
shift
for found; do
  (look "$found") || exit 1
done
