#!/bin/sh
# Carries a connection of ssh to the sshd of a workspace on an Incus server: ssh-proxy NAME REMOTE PROJECT UID CONF
# It runs for whoever runs ssh, by that user's own client of Incus. hutch reaches the server by the client of UID, with
# its configuration in CONF, and so does root's ssh. What comes beside the connection the guest may have written, so
# no more than a line of it is shown, in printable characters. Where nobody is found at the address of REMOTE, the
# connection goes by another member of its cluster (addresses.py has these); the client reads nothing before it is made.
set -u
export INCUS_ALIASES=1 # the client looks for no alias, which could make anything of a word
name=$1 remote=$2 project=$3 account=$4 conf=$5
NOBODY=9 # the code of `explain` where the client has found nobody to connect to, and there is another way
newline='
'

say() { printf 'hutch: %s\n' "$1" >&2; }
fail() { say "$1"; exit 1; }

# Tells in one sentence why the client has failed. The first line that comes is the client's process. The rest are the
# words by which setpriv runs something as the user.
explain() {
  read -r client
  said='' is_watched=''
  case $client in
    "" | *[!0-9]*) said=$client ;; # it could not be started
    *) [ -n "$is_last" ] || is_watched=yes ;;
  esac
  if [ -n "$is_watched" ]; then
    setsid -- setpriv --pdeathsig KILL "$@" sh -c "$watch" sh "$client" >/dev/null 2>&1 &
  fi
  said=$({ printf '%s\n' "$said"; head -c 4096; } | LC_ALL=C tr -cd '[:print:]\n' |
    grep -v -e '^ *$' -e '^Error while executing alias expansion: ') # as the client says before each error, of no alias
  if [ -n "$is_watched" ]; then
    kill $! 2>/dev/null
    wait $! 2>/dev/null && return "$NOBODY"
    case $said in
      *"$newline"*) ;; # more than the client's own word
      "Error: "*'": Unable to connect to'* | "Error: "*'": lookup '*) return "$NOBODY" ;;
      "Error: "*'": tls: failed to verify certificate: x509: '* | "Error: "*'": x509: '*) return "$NOBODY" ;;
    esac
  fi
  said=$(printf '%s\n' "$said" | tail -n 1 | cut -c 1-300)
  case $said in
    "") ;;
    "Error: "*"is not running"*) say "$name does not run; \`hutch start $name\` starts it" ;;
    "Error: "*"is frozen"*) say "$name is suspended; \`incus resume --project $project $remote:$name\` lets it go on" ;;
    "Error: "*) say "$whose Incus client does not reach $name in the project $project of $remote: ${said#Error: }" ;;
    *) say "$name says: $said" ;;
  esac
}

# Kills the client, process $1, where it waits for a connection to be made after more than a second, in which TCP asks
# twice; it would wait for 20. A client that begins late, on a busy host, is looked at again. Runs as the user: who
# tells the process is that user's, too. In a session of its own, without root's terminal.
watch=$(cat <<'WATCH'
for _ in 1 2 3; do
  setpriv --pdeathsig KILL sleep 1.2
  find "/proc/$1/fd" -lname 'socket:*' -printf '%l\n' | awk '
    NF == 1 { own[$1] }
    $4 == "02" && "socket:[" $10 "]" in own { found = 1 }
    END { exit !found }' - "/proc/$1/net/tcp" "/proc/$1/net/tcp6" && kill -KILL "$1" && exit 0
done
exit 1
WATCH
)

# ssh hangs up when it ends. The client ends by itself then; one that nobody answers is killed with this shell.
hang_up() {
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    jobs >/dev/null # takes note of those that have ended
    kill -0 "$carrying" 2>/dev/null || break
    sleep 0.2
  done
  exit 1
}

command -v incus >/dev/null || fail "$name is on the Incus server $remote, and there is no incus client on this host"
# sshd starts itself anew, by its whole path. Its directory is there only while a service of sshd's is.
# shellcheck disable=SC2016 # the guest's shell expands it
inside='mkdir -p -m 0755 /run/sshd; exec "$(command -v sshd || echo /usr/sbin/sshd)" -i'
# Runs as the user whose client it is. In a session of its own: what is typed on ssh's terminal interrupts ssh, and not
# the guest's sshd.
# shellcheck disable=SC2016 # that user's shell expands it
client='
echo $$ >&2
if [ -n "$1" ]; then
  exec 9<"${INCUS_CONF:-$HOME/.config/incus}"
  export INCUS_CONF="$1" SSL_CERT_FILE=/dev/null SSL_CERT_DIR=/dev/null
fi
shift
exec setsid -- incus exec "$@"'
whose=your
case $(id -u) in
  "$account") set -- env "INCUS_CONF=$conf" ;;
  0)
    entry=$(getent passwd "$account") || fail "$name is reached by the Incus client of uid $account, which is no account"
    IFS=: read -r user _ _ group _ home _ <<END
$entry
END
    whose="$user's"
    set -- --reuid "$account" --regid "$group" --init-groups --inh-caps=-all --no-new-privs -- \
      env -i "PATH=$PATH" "HOME=$home" "USER=$user" "INCUS_CONF=$conf" INCUS_ALIASES=1 LC_ALL=C.UTF-8
    ;;
  *) set -- env ;;
esac

# Carries the connection by the remote's own address, or by the one in the directory $1. The rest are the words by which
# setpriv runs something as the user.
carry() {
  way=$1
  shift
  { exec setpriv --pdeathsig KILL "$@" sh -c "$client" sh "$way" "$remote:$name" --project "$project" -T -- \
    /bin/sh -c "$inside"; } 2>&1 >&3 3>&- <&4 4<&- | explain "$@" 3>&- 4<&- &
  carrying=$!
  wait "$carrying" 2>/dev/null # the shell would tell of a client that was killed
}

# Does the same, and comes back only where nobody was found.
try() {
  carry "$@"
  code=$?
  [ "$code" -eq "$NOBODY" ] || exit "$code"
}

exec 3>&1 4<&0 </dev/null >/dev/null
trap hang_up HUP TERM
trap "" INT QUIT
is_last=
others=${0%/*}/addresses/$account/$(printf %s "$conf" | sha256sum | cut -c 1-16)/$remote
if [ -e "$others" ]; then
  try "" "$@"
  for found in "$others"/*/config.yml; do
    found=${found%/config.yml}
    [ ! -t 2 ] || say "the address of $remote cannot be reached; another member of its cluster is asked: ${found##*/?-}"
    try "$found" "$@"
  done
fi
is_last=yes # with all patience, and a word
carry "" "$@"
