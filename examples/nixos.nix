# Workspaces on NixOS: a module beside hutch's own. See docs/nixos.md.
{
  sandboxed-workspace = {
    enable = true;

    defaults = {
      owner = "alice";
      packages = [
        "git"
        "ripgrep"
      ];
    };

    workspaces.web = {
      type = "container";
      ip = "192.168.83.10";
      autoStart = true;
      publish = [ "8080:80" ];
      extraMounts.shop = {
        hostPath = "/home/alice/src/shop";
        containerPath = "/src";
      };
    };

    workspaces.agent = {
      type = "vm";
      vcpus = 4;
      memory = "4GiB";
      egress = [
        "*.debian.org"
        "github.com:443"
      ];
    };
  };

  users.groups.hutch.members = [ "alice" ];
}
