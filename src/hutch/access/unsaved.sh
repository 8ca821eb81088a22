# Runs in the container behind sealed_git.sh: says what of each repository exists nowhere else. Its arguments are the ways
# to each `.git`, and to each HEAD, which may be a bare repository's, or a submodule's. What lies in a directory that
# $kept names, a line each, is not lost with the rest. $is_home says whether the current directory is a home, "yes" or "".
# Where it is a layer on one of the host's, $layer is what the layer has, and $host what the host has.
set -f
say() { printf 'hutch-unsaved %s: %s\n' "$repo" "$1"; }
look() {
  [ -e "$1" ] || [ -L "$1" ] || exit 0 # it has gone meanwhile
  repo=${1%/*}
  repo=${repo:-/}
  own=$repo/.git
  [ "${1##*/}" != HEAD ] || own=$repo/.
  [ -z "$host" ] || [ ! -e "$host/$own" ] || theirs=$host/$own
  if [ "${1##*/}" = HEAD ]; then
    if [ ! -d "$repo/objects" ] || [ ! -d "$repo/refs" ] || is_tracked; then exit 0; fi
    export GIT_DIR=. # and no other one around it
    check bare
    case $repo in */.git/modules/*) ;; *) [ ! -e "$repo/index" ] || look_at_files_elsewhere ;; esac
  else
    check
    # A file `.git` may stand for a bare repository, whose worktrees lie beside it, and which has no index.
    index=$(git rev-parse --path-format=absolute --git-path index 2>/dev/null)
    if [ -e "$index" ] || [ "$(git rev-parse --is-bare-repository 2>/dev/null)" != true ]; then look_at_files; fi
  fi
  stash=$(git rev-parse --quiet --verify refs/stash 2>/dev/null)
  [ -z "$stash" ] || [ "$stash" = "$(git_of_host rev-parse --quiet --verify refs/stash 2>/dev/null)" ] ||
    say "stashed changes"
  # Of a rebase that stands still, or of mail that is half applied, a part is only there.
  place=$(git rev-parse --absolute-git-dir) || fail
  [ -z "$layer" ] || place=$layer/$own
  for name in rebase-merge rebase-apply MERGE_AUTOSTASH; do
    [ ! -e "$place/$name" ] || say "an unfinished rebase, or a series of patches"
  done
  look_at_remotes
  look_at_host
  # What git, or jj, keeps for itself is nobody's work; nor is what came from a remote.
  # shellcheck disable=SC2086 # options without blanks
  local=$(git log --format=%S --max-count=1 --exclude=refs/stash --exclude=refs/prefetch/* --exclude=refs/bisect/* \
    --exclude=refs/original/* --exclude=refs/replace/* --exclude=refs/jj/* --exclude=refs/notes/* \
    --exclude=refs/remotes/* $fetched --all --not $elsewhere -- 2>&1) || fail
  case $local in
    '') ;;
    refs/heads/* | [!r]*) say "commits that were not pushed" ;;
    *) say "commits that were not pushed, at $local" ;;
  esac
  # shellcheck disable=SC2086 # options without blanks
  notes=$(git log --format=%S --max-count=1 $shared --glob=refs/notes/* --not $elsewhere -- 2>&1) || fail
  [ -z "$notes" ] || say "notes that were not pushed"
}
look_at_files() {
  untracked=normal
  # A home that is kept in git has more than is in it.
  [ "$repo$is_home" != .yes ] || [ "$(git config status.showUntrackedFiles)" != no ] || untracked=no
  changed=$(status_of_files --untracked-files=$untracked 2>&1) || fail
  [ -z "$changed" ] || [ -z "$layer" ] ||
    changed=$(status_of_files -z --no-renames --untracked-files=all | tr '\n\0' '\001\n' | in_layer)
  [ -z "$changed" ] || say "uncommitted changes"
  flagged=$(git ls-files -v 2>&1) || fail
  ! printf '%s\n' "$flagged" | grep -q '^[a-zS] ' || look_at_overlooked
}
status_of_files() { # submodules are each looked into
  set -- status --porcelain --ignore-submodules=dirty "$@"
  git config core.excludesFile >/dev/null 2>&1 || set -- -c core.excludesFile="$ignored" "$@"
  git "$@"
}
in_layer() { # the first of these lines of `git status` that is not the host's work alone, which is not lost
  while IFS= read -r line; do
    path=${line#???}
    case $path in *"$NEWLINE"*) path=. ;; esac
    if [ -e "$layer/$repo/$path" ] || [ -L "$layer/$repo/$path" ] || is_only_staged "$line"; then
      printf '%s\n' "$line"
      return
    fi
  done
}
is_only_staged() { # a line of `git status`: whether the index has what neither the file nor the host's index has
  case $1 in [' ?'D]* | ?' '*) return 1 ;; esac
  staged=$(git ls-files --stage -- ":(literal)$path")
  [ -n "$staged" ] && [ "$staged" != "$(git_of_host ls-files --stage -- ":(literal)$path" 2>/dev/null)" ]
}
NEWLINE=$(printf '\001') # in place of one
git_of_host() { # git in the host's own repository, where there is one
  [ -z "$theirs" ] || git --git-dir="$theirs" "$@"
}
look_at_host() { # adds to `elsewhere` what the host's own repository has
  [ -n "$theirs" ] || return 0
  heads=$(git_of_host worktree list --porcelain | sed -n 's/^HEAD //p') || fail
  refs=$(git_of_host for-each-ref --format='%(objectname)') || fail
  # Not all of it needs to be there in what lies above.
  # shellcheck disable=SC2086 # hashes, a line each
  known=$(printf '%s\n' $heads $refs | git cat-file --batch-check='%(objectname) %(objecttype)' |
    sed -n 's/ \(commit\|tag\)$//p') || fail
  # shellcheck disable=SC2086 # hashes, a line each
  elsewhere="$elsewhere $(printf '%s ' $known)"
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
  ! printf '%s\n' "$changed" | grep -q "$WORK" || say "changes that git was told to overlook"
}
WORK='^[^ ]\|^ [^D]' # in the lines of `git status`: more than a file that is not there
# A bare repository with an index has files somewhere. Who keeps a home's own files in one says where with each command,
# or has it say so. What is neither bare nor says so belongs to a `.git` elsewhere.
look_at_files_elsewhere() {
  tree=$(git config core.worktree) || [ $? = 1 ] || fail
  case $tree in '' | /*) ;; *) tree=$repo/$tree ;; esac
  untracked=$(git config status.showUntrackedFiles)
  [ -n "$tree$untracked" ] || [ "$(git config --type=bool core.bare)" = true ] || return 0
  work=$WORK # of another bare one, an index only tells what it once was
  [ -n "$tree$untracked" ] || work='^ [^D]'
  files=$(git ls-files 2>/dev/null) || fail
  files=$(printf '%s' "$files" | grep -c '')
  is_seen=
  for place in "${tree:-$home}" "${tree:-${repo%/*}}"; do
    place=$(cd -- "$place" 2>/dev/null && pwd -P) || continue
    changed=$(git --work-tree="$place" status --porcelain --untracked-files=no --ignore-submodules=dirty 2>&1) || fail
    [ "$(printf '%s\n' "$changed" | grep -c '^.D')" = "$files" ] || is_seen=yes
    ! printf '%s\n' "$changed" | grep -q "$work" || { say "uncommitted changes" && return; }
  done
  [ -n "$is_seen" ] || [ "$files" = 0 ] || [ -z "$untracked" ] ||
    say "nobody knows where its files are, which may have changed"
}
settings() { # a key, a tab and a value on each line, as `git config` tells them for these words
  git config "$@" >/dev/null 2>&1 || [ $? = 1 ] || return 1
  git config -z "$@" | tr '\n\0' '\t\n'
}
# Sets options: `elsewhere` names what other places have, `fetched` what came from there to names of its own, and `shared`
# the notes that are fetched. Ends the look into another's mirror.
look_at_remotes() {
  elsewhere='' fetched='' shared='' lost=' ' is_clear=yes
  remotes=$(settings --get-regexp '^(remote\..*\.(push)?url|remote\..*\.fetch|url\..*insteadof)$') || fail
  while IFS=$TAB read -r key value; do
    name=${key#*.}
    name=${name%.*}
    case $key in *.pushurl) case $value in */*) ;; *) [ -e "$repo/$value" ] || continue ;; esac ;; esac # "no_push"
    case $key in
      url.*) ! is_lost "$name" || is_clear= ;; # any of them may mean it
      *.fetch | '') ;;
      *) ! is_lost "$value" || case $name in *[!A-Za-z0-9._/+-]*) is_clear= ;; *) lost="$lost$name " ;; esac ;;
    esac
  done <<LINES
$remotes
$rewritten
LINES
  [ -n "$is_clear" ] || return 0
  [ "$lost" != ' ' ] || case ${GIT_DIR:-}$remotes in
    .*".fetch$TAB+refs/*:refs/*"* | .*".fetch$TAB+refs/heads/*:refs/heads/*"*) exit 0 ;;
  esac
  for name in $lost; do
    elsewhere="$elsewhere --exclude=refs/remotes/$name/*"
  done
  while IFS=$TAB read -r key value; do
    case $key in *.fetch) ;; *) continue ;; esac
    case $value in ^*) continue ;; *:*) ;; *) continue ;; esac # names nothing here
    name=${key#remote.}
    there=${value#*:}
    case $there in *[!A-Za-z0-9._/@+*-]*) continue ;; esac # no name of a ref
    case $lost$there in
      *" ${name%.fetch} "*) elsewhere="$elsewhere --exclude=$there" ;;
      *' refs/heads/'* | *' refs/tags/'* | *' refs/*') ;; # where work of one's own is, too
      *' refs/notes/'*) shared="$shared --exclude=$there" ;; # nothing here tells which of them the other side has
      *) fetched="$fetched --exclude=$there" ;;
    esac
  done <<LINES
$remotes
LINES
  elsewhere="$elsewhere --glob=refs/remotes/*"
}
is_lost() { # URL of a remote: whether what it names goes with the rest
  case $1 in
    file://*) ;;
    *://*) is_here "${1#*://}" && return; return 1 ;;
    *) case ${1%%/*} in *:*) is_here "$1" && return; return 1 ;; esac ;;
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
is_here() { # what begins with a host, and a user maybe: whether that is this workspace
  machine=${1%%/*}
  machine=${machine##*@}
  case $machine in
    '' | :* | localhost | localhost[:.]* | ip6-localhost* | 127.* | 0.0.0.0* | '[::1]'*) ;;
    "workspace-$me" | "workspace-$me":*) ;;
    *) return 1 ;;
  esac
}
is_tracked() ( # of a bare repository: whether the one around it has it as its files
  name=${repo##*/}
  repo=${repo%/*}
  git ls-files --error-unmatch -- ":(literal)$name/HEAD" >/dev/null 2>&1
)
TAB=$(printf '\t')
theirs=
me=$(uname -n)
me=${me%-look} # the name of a workspace, also where a container of its image looks
# What the home makes of URLs, and ignores. Nothing else of what it configures counts here.
rewritten=$(
  repo=/ HOME=$home
  for file in "$home/.gitconfig" "$home/.config/git/config"; do
    [ ! -f "$file" ] || settings --file "$file" --includes --get-regexp '^url\..*insteadof$' || printf 'url./.insteadof\t\n'
  done
)
ignored=$(
  repo=/ HOME=$home
  for file in "$home/.config/git/config" "$home/.gitconfig"; do
    [ ! -f "$file" ] || git config --file "$file" --includes --type=path core.excludesFile
  done | tail -n 1
)
ignored=${ignored:-$home/.config/git/ignore}
[ -f "$ignored" ] || ignored=/dev/null
for found; do
  (look "$found") || exit 1
done
