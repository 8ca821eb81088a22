# The beginning of each look that git takes into what a guest wrote; what follows it says `say`. Nothing that a
# repository or the home configures is run, and a look that does not come to its end has failed.
fail() { say "git cannot read it"; exit; }
export HOME=/nowhere XDG_CONFIG_HOME=/nowhere GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1
export GIT_NO_LAZY_FETCH=1 GIT_ALLOW_PROTOCOL=none
has_git=$(command -v git)
# shellcheck disable=SC3045 # not of POSIX, and known to every shell that guests have as sh
ulimit -v 4194304 # KiB; a link to something without end would take all memory
git() {
  timeout -k 1 20 git -c core.fsmonitor=false -c core.hooksPath=/dev/null -c core.attributesFile=/dev/null \
    -c log.showSignature=false -c safe.directory="*" -c core.packedGitWindowSize=32m -c core.packedGitLimit=256m \
    -C "$repo" "$@"
}
# Ends the look into $repo, and says why, where git would wait for ever, or run something. Of a bare repository, the
# argument, all is git's.
check() {
  [ -n "$has_git" ] || { say "there is no git in the image to look into it"; exit; }
  every=-false
  [ -z "${1:-}" ] || every=-true
  odd=$(find "$repo" -xdev '(' -path '*/.git/*' -o -name '.git*' -o $every ')' ! -xtype f ! -xtype d ! -xtype l -print -quit \
    2>/dev/null)
  [ -z "$odd" ] || { say "git would wait for ever for what is in it, a pipe or a device"; exit; }
  filters=$(git config --name-only --get-regexp '^filter\.') || [ $? = 1 ] || fail
  [ -z "$filters" ] || { say "git would run filters of its own to look into it"; exit; }
}
