# What hutch needs of a host, as nixpkgs calls it, by the names that Debian's packages have in src/hutch/host/doctor/packages.py.
# Programs that every Debian has come first.
pkgs: {
  essential = with pkgs; [
    bash
    coreutils
    findutils
    gawk
    gnugrep
    gnused
    gnutar
  ];
  systemd = [ pkgs.systemd ];
  systemd-container = [ pkgs.systemd ];
  mmdebstrap = [ pkgs.mmdebstrap ];
  debian-archive-keyring = [ pkgs.debian-archive-keyring ];
  ubuntu-keyring = [ ]; # not in nixpkgs, so images of Ubuntu cannot be built there
  dnsmasq-base = [ pkgs.dnsmasq ];
  nftables = [ pkgs.nftables ];
  iproute2 = [ pkgs.iproute2 ];
  openssh-client = [ pkgs.openssh ];
  qemu-system-x86 = [ pkgs.qemu_kvm ];
  virtiofsd = [ pkgs.virtiofsd ];
  bubblewrap = [ pkgs.bubblewrap ];
  erofs-utils = [ pkgs.erofs-utils ];
  dpkg = [ pkgs.dpkg ];
  zstd = [ pkgs.zstd ];
  e2fsprogs = [ pkgs.e2fsprogs ];
  util-linux = [ pkgs.util-linux ];
  mount = [ pkgs.util-linux ];
  kmod = [ pkgs.kmod ];
  procps = [ pkgs.procps ];
  incus-client = [ pkgs.incus.client ];
  squashfs-tools = [ pkgs.squashfsTools ];
  git = [ pkgs.git ];
}
