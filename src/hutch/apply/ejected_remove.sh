# The rest is the same for all that have been ejected.

disarm() { # DIRECTORY of somebody else's: nothing keeps programs of the guest's there from counting any more
  take_setuid "$1" || :
}

stop() { # UNIT
  [ ! -e "/etc/systemd/system/$1" ] || systemctl stop "$1"
}

replace() { # FILE NEW: its content, in one step; a mount cannot be renamed over, only written
  place=$(readlink -f "$1")
  if { cp -a -- "$place" "$place.$name" && cat "$2" >"$place.$name" && mv -f -- "$place.$name" "$place"; } 2>/dev/null; then
    return
  fi
  rm -f -- "$place.$name"
  cat "$2" 1<>"$place"
  truncate --size="$(stat -c %s -- "$2")" "$place"
}

cd /
# shellcheck disable=SC2086 # names of units hold no blanks
systemctl disable $units 2>/dev/null || :
stop "$unit"
shared disarm
for each in $units; do
  stop "$each"
done
for each in $units; do
  rm -f "/etc/systemd/system/$each"
done
systemctl daemon-reload
# shellcheck disable=SC2086 # likewise
systemctl reset-failed $units 2>/dev/null || :
if grep -q "^# BEGIN $name: " /etc/hosts; then # between the marks, nothing goes but what is of this workspace
  end="$(printf '\r')*\$"
  sed "/^# BEGIN $name: /,/^# END $name$end/ {
    /^# BEGIN $name: /d; /^# END $name$end/d; /^[0-9.]* $name$end/d
  }" /etc/hosts >"$here/hosts"
  replace /etc/hosts "$here/hosts"
fi
rm -f "$drop_in"
rm -rf --one-file-system -- "$run"
rmdir "${run%/*}" 2>/dev/null || :
for each in $parts; do
  rm -rf --one-file-system -- "${here:?}/$each"
done
rmdir "$here/workspace" "$here" 2>/dev/null || :
for each in $units; do
  for place in system system.control; do
    [ ! -d "/etc/systemd/$place/$each.d" ] || echo "your own settings are kept in /etc/systemd/$place/$each.d"
  done
done
[ ! -d "$home" ] || echo "the home is kept in $home"
