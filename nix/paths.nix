# Where hutch looks for what distributions have in /usr, and what it is to find in the Nix store instead: `tools` has the
# programs of host.nix in bin/ and what they bring in share/. The build fails where a text is not there any more.
{ tools, systemd }:
let
  change = file: from: to: { inherit file from to; };
  path = ''"/usr/local/sbin:'';
in
[
  (change "search_path.py" path ''"${tools}/bin:/usr/local/sbin:'')
  (change "host/doctor/packages.py" "/usr/lib*/virtiofsd" "${tools}/bin/virtiofsd")
  (change "host/doctor/tools.py" "/usr/lib*/virtiofsd" "${tools}/bin/virtiofsd")
  (change "host/doctor/packages.py" "/usr/share/keyrings" "${tools}/share/keyrings")
  (change "images/build.py" "/usr/share/keyrings" "${tools}/share/keyrings")
  (change "images/machine.py" ''("/usr/share/qemu*/qboot.rom", "/usr/share/*/qboot.rom")''
    ''("${tools}/share/qemu/qboot.rom",)''
  )
  (change "spec/member.py" "/usr/lib/hutch/member" "/run/current-system/sw/lib/hutch/member")
  (change "images/disk.py" "/usr/lib/systemd/boot" "${systemd}/lib/systemd/boot")
  (change "host/identity/ssh.py" "/usr/lib/systemd/systemd-ssh-proxy" "${systemd}/lib/systemd/systemd-ssh-proxy")

  # Jails show the store, and the tools as /usr. What bwrap makes itself on the way is root's alone.
  (change "backends/jail.py" ''"--ro-bind", "/usr", "/usr", "--symlink", "usr/bin", "/bin"''
    ''"--dir", "/nix", "--ro-bind", "/nix/store", "/nix/store", "--symlink", "${tools}/bin", "/bin"''
  )
  (change "backends/jail.py" ''"--symlink", "usr/lib", "/lib", "--symlink", "usr/lib64", "/lib64"''
    ''"--symlink", "${tools}", "/usr"''
  )
  (change "images/build.py" ''"--bind-ro=/usr"'' ''"--bind-ro=/nix/store", "--bind-ro=${tools}:/usr"'')
  (change "images/build.py" ''if os.path.islink(f"/{name}"):'' ''if name == "bin":'')
  (change "images/build.py" ''symlink_to(os.readlink(f"/{name}"))'' ''symlink_to(f"usr/{name}")'')
]
