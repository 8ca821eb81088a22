# Runs in the container behind sealed_git.sh: says what of each repository exists nowhere else. Its arguments are the ways
# to each `.git`, and to each HEAD, which may be a bare repository's, or a submodule's. What lies in a directory that
# $kept names, a line each, is not lost with the rest. Where the current directory is a layer on one of the host's, $layer
# is what the layer has, and $host what the host has.
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
    tree=$(git config core.worktree) || [ $? = 1 ] || fail
    case $tree in '' | /*) ;; *) tree=$repo/$tree ;; esac
    [ -z "$tree" ] || [ ! -e "$tree/.git" ] || exit 0 # it is looked into there
    case $repo in */.git/modules/*) ;; *) [ ! -e "$repo/index" ] || look_at_files_elsewhere ;; esac
  else
    check
    look_at_files
  fi
  ! git rev-parse --quiet --verify refs/stash >/dev/null 2>&1 || say "stashed changes"
  look_at_remotes
  look_at_host
  # shellcheck disable=SC2086 # options without blanks
  local=$(git log --oneline --max-count=1 --exclude=refs/stash --exclude=refs/prefetch/* --exclude=refs/remotes/* \
    $fetched --all --not $elsewhere -- 2>&1) || fail
  [ -z "$local" ] || say "commits that were not pushed"
}
look_at_files() {
  changed=$(git status --porcelain --untracked-files=normal --ignore-submodules=dirty 2>&1) || fail # each is looked into
  changed=$(printf '%s\n' "$changed" | in_layer)
  [ -z "$changed" ] || say "uncommitted changes"
  flagged=$(git ls-files -v 2>&1) || fail
  ! printf '%s\n' "$flagged" | grep -q '^[a-zS] ' || look_at_overlooked
}
in_layer() { # of the lines of `git status`, the first that is not the host's work, to which it is not lost
  while IFS= read -r line; do
    path=${line#???}
    case $layer$path in [!/]* | *[!/]' -> '* | *'"') path= ;; esac
    if [ -n "$line" ] && { [ -z "$path" ] || [ -e "$layer/$repo/$path" ] || [ -L "$layer/$repo/$path" ]; }; then
      printf '%s\n' "$line"
      return
    fi
  done
}
look_at_host() { # adds to `elsewhere` what the host's own repository has
  own=$repo/${GIT_DIR:-.git}
  [ -n "$host" ] && [ -e "$host/$own" ] || return 0
  refs=$(git --git-dir="$host/$own" for-each-ref --format='%(objectname)') || fail
  head=$(git --git-dir="$host/$own" rev-parse --quiet --verify HEAD) || [ $? = 1 ] || fail
  # shellcheck disable=SC2086 # hashes, a line each
  elsewhere="$elsewhere $(printf '%s ' $refs $head)"
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
# A bare repository with an index has files somewhere: in $tree, if it says so. Who keeps a home's own files in one says
# it with each command. A submodule's that is not checked out has an index too, and no files.
look_at_files_elsewhere() {
  is_seen=$tree
  files=$(git ls-files | grep -c '')
  [ "$files" != 0 ] || return 0
  for place in "${tree:-$home}" "${tree:-${repo%/*}}"; do
    [ -d "$place" ] || continue
    changed=$(git --work-tree="$place" status --porcelain --untracked-files=no --ignore-submodules=dirty 2>&1) || fail
    [ "$(printf '%s\n' "$changed" | grep -c '^.D')" = "$files" ] || is_seen=yes
    ! printf '%s\n' "$changed" | grep -q "$WORK" || { say "uncommitted changes" && return; }
  done
  [ -n "$is_seen" ] || say "nobody knows where its files are, which may have changed"
}
# Sets options: `elsewhere` names what other places have, and `fetched` what came from there to names of its own. Ends the
# look into another's mirror.
look_at_remotes() {
  elsewhere='' fetched='' lost=' ' is_clear=yes
  remotes=$(git config --get-regexp '^(remote\..*\.(push)?url|remote\..*\.fetch|url\..*insteadof)$') || [ $? = 1 ] || fail
  remotes="$remotes
$rewritten"
  while read -r key value; do
    name=${key#*.}
    case $key in
      '' | remote.*.fetch) ;;
      *[!A-Za-z0-9._/:@~+-]*) is_clear= ;;
      url.*.*insteadof) ! is_lost "${name%.*}" || is_clear= ;; # any of them may mean it
      remote.*.pushurl | remote.*.url) ! is_lost "$value" || lost="$lost${name%.*} " ;;
      *) is_clear= ;;
    esac
  done <<LINES
$remotes
LINES
  [ -n "$is_clear" ] || return 0
  [ "$lost" != ' ' ] || case ${GIT_DIR:-}$remotes in
    .*'.fetch +refs/*:refs/*'* | .*'.fetch +refs/heads/*:refs/heads/*'*) exit 0 ;;
  esac
  for name in $lost; do
    elsewhere="$elsewhere --exclude=refs/remotes/$name/*"
  done
  while read -r key value; do
    name=${key#remote.}
    case $key in remote.*.fetch) ;; *) continue ;; esac
    case $value in ^*) continue ;; *:*) ;; *) continue ;; esac # names nothing here
    case $value in *[!A-Za-z0-9._/:@~+*-]*) elsewhere='' fetched='' && return ;; esac
    there=${value#*:}
    case $lost$there in
      *" ${name%.fetch} "*) elsewhere="$elsewhere --exclude=$there" ;;
      *' refs/heads/'* | *' refs/tags/'* | *' refs/notes/'* | *' refs/*') ;; # where work of one's own is, too
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
is_here() { # what begins with a host, and a user maybe: whether that is this machine, or another workspace
  host=${1%%/*}
  host=${host##*@}
  case $host in
    '' | :* | localhost | localhost[:.]* | ip6-localhost* | 127.* | 0.0.0.0* | '[::1]'* | workspace-*) ;;
    *) return 1 ;;
  esac
}
is_tracked() ( # of a bare repository: whether the one around it has it as its files
  name=${repo##*/}
  repo=${repo%/*}
  git ls-files --error-unmatch -- ":(literal)$name/HEAD" >/dev/null 2>&1
)
# What the home makes of URLs. Nothing else of what it configures counts here.
rewritten=$(
  repo=/
  for file in "$home/.gitconfig" "$home/.config/git/config"; do
    [ ! -f "$file" ] || git config --file "$file" --includes --get-regexp '^url\..*insteadof$' 2>/dev/null ||
      [ $? = 1 ] || echo unreadable
  done
)
for found; do
  (look "$found") || exit 1
done
