# first

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin
trap : HUP INT QUIT TERM USR1 USR2 TSTP
exec 9>&2 2>/dev/null
setsid /bin/sh -c '
printf '"'"'%s:ready:%s;'"'"' 0123456789abcdef "$$"
IFS= read -r go || exit 1
printf '"'"'%s:start;'"'"' 0123456789abcdef
printf '"'"'%s:start;'"'"' 0123456789abcdef >&2
cd "$1" 2>/dev/null || cd /
shift
exec env -i "$@"
' sh /home/dev PATH=/bin 'GREETING=it'"'"'s' printf '%s
' 'a b' '' -x '\xff' 2>&9 9>&-
code=$?
(printf '\000%s:end:%s;' 0123456789abcdef "$code" >&9)
exit "$code"

# first on a terminal

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin
trap : HUP INT QUIT TERM USR1 USR2 TSTP
exec 9>&2 2>/dev/null
/bin/sh -c '
printf '"'"'%s:ready:%s;'"'"' 0123456789abcdef "$$"
IFS= read -r go || exit 1
printf '"'"'%s:start;'"'"' 0123456789abcdef
cd "$1" 2>/dev/null || cd /
shift
exec env -i "$@"
' sh /home/dev PATH=/bin 'GREETING=it'"'"'s' printf '%s
' 'a b' '' -x '\xff' 2>&9 9>&-
code=$?
(printf '\000%s:end:%s;' 0123456789abcdef "$code" >&9)
exit "$code"

# second

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin
look() {
  said=$(cat "/proc/$pid/stat") || return 1
  set -- ${said##*) }
  group=$3 started=${20}
}
send() {
  look && [ "$started" = "$first" ] || return 1
  case $group in "$pid") kill -s "$1" -- "-$pid" ;; *) kill -s "$1" "$pid" ;; esac
}
stop() {
  send TSTP || return
  while read -r key value; do
    case $key$value in SigIgn:*[89a-f]????|SigCgt:*[89a-f]????) return ;; esac
  done <"/proc/$pid/status"
  send STOP
  look && printf '%s:stopped;' 0123456789abcdef
}
await() {
  while look && [ "$started" = "$first" ]; do sleep 0.1 || sleep 1; done
  printf '%s:over;' 0123456789abcdef
}
exec 2>/dev/null
IFS= read -r pid || exit 1
look || exit 1
first=$started
printf '%s:watching;' 0123456789abcdef
while IFS= read -r word; do
  case $word in
    done) exit 0 ;;
    wait) await & ;;
    TSTP) stop ;;
    *) send "$word" ;;
  esac
done
send HUP
send CONT

# second by force

PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin
look() {
  said=$(cat "/proc/$pid/stat") || return 1
  set -- ${said##*) }
  group=$3 started=${20}
}
send() {
  look && [ "$started" = "$first" ] || return 1
  case $group in "$pid") kill -s "$1" -- "-$pid" ;; *) kill -s "$1" "$pid" ;; esac
}
stop() {
  send TSTP || return
  while read -r key value; do
    case $key$value in SigIgn:*[89a-f]????|SigCgt:*[89a-f]????) return ;; esac
  done <"/proc/$pid/status"
  send STOP
  look && printf '%s:stopped;' 0123456789abcdef
}
await() {
  while look && [ "$started" = "$first" ]; do sleep 0.1 || sleep 1; done
  printf '%s:over;' 0123456789abcdef
}
exec 2>/dev/null
IFS= read -r pid || exit 1
look || exit 1
first=$started
printf '%s:watching;' 0123456789abcdef
while IFS= read -r word; do
  case $word in
    done) exit 0 ;;
    wait) await & ;;
    TSTP) stop ;;
    *) send "$word" ;;
  esac
done
send KILL
send CONT

# root
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/wrappers/bin:/run/current-system/sw/bin
exec doas -n -- /bin/sh -c 'LC_ALL=C;printf %s "$0:hello;";p=;while IFS= read -r l||exit 1;do case $l in "")break;;esac;p=$p$l;done;eval "$(printf %b "$p")"' 0123456789abcdef