# Runs in a workspace, as its login user, in the home: sends git work of the clone in the directory $1, as
# hutch.clones.refs reads it. $2 is "branches" for all of them, "branch" for the one that $3 names, or "work" for the
# files as they are. The standard input has the commits that the host has, one a line.
set -e
command -v git >/dev/null || exit 90
cd
cd -- "$1" 2>/dev/null && [ -e .git ] || exit 92
known=$(git cat-file --batch-check='%(objectname) %(objecttype)' | sed -n 's/^\([0-9a-f]*\) commit$/^\1/p')
format='%(objectname) %(refname)'
case $2 in
  branches)
    said=$(git for-each-ref --format="$format" refs/heads)
    if ! git symbolic-ref -q HEAD >/dev/null; then said=$(printf '%s\n%s HEAD' "$said" "$(git rev-parse HEAD)"); fi
    ;;
  branch) said=$(git for-each-ref --format="$format" "refs/heads/$3") ;;
  work)
    own=$(mktemp -d)
    trap 'rm -rf -- "$own"' EXIT
    index=$(git rev-parse --git-path index)
    [ ! -e "$index" ] || cp -p -- "$index" "$own/index"
    export GIT_INDEX_FILE="$own/index"
    git -c advice.addEmbeddedRepo=false add -A >&2
    said="$(git write-tree) tree"
    unset GIT_INDEX_FILE
    ;;
esac
said=$(printf '%s\n' "$said" | sed '/^$/d')
[ -z "$said" ] || printf '%s\n' "$said"
printf 'pack\n'
printf '%s\n%s\n' "$said" "$known" | sed -e '/^$/d' -e 's/ .*//' |
  git pack-objects --revs --thin --stdout --delta-base-offset -q
