# NixOS: workspaces among the options of a machine. What is decided here is only how hutch fits into NixOS; hutch.toml
# and the commands come from workspaces.nix.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.sandboxed-workspace;
  workspaces = import ./workspaces.nix;
  format = pkgs.formats.toml { };

  file = "/etc/hutch/hutch.toml";
  uplink = "hutch-up"; # the host's end of the way to the workspaces

  told = workspaces.settings cfg;
  names = builtins.attrNames (told.workspaces or { });
  says = name: key: told.workspaces.${name}.${key} or (told.defaults.${key} or null);
  wantsVsock = lib.any (name: says name "type" == "vm" && says name "vsock" == true) names;
  reconcile = workspaces.reconcile {
    inherit file told;
    inherit (cfg) prune;
  };
in
{
  options.sandboxed-workspace = import ./options.nix { inherit lib; } // {
    enable = lib.mkEnableOption "workspaces: isolated machines of their own, run by hutch";

    package = lib.mkOption {
      type = lib.types.package;
      default = pkgs.callPackage ./package.nix { };
      defaultText = lib.literalExpression "pkgs.callPackage ./package.nix { }";
      description = "The hutch to use.";
    };

    prune = lib.mkOption {
      type = lib.types.bool;
      default = false;
      description = ''
        Whether a switch removes workspaces that were declared once and are no more. Their homes are kept, a root that
        was kept by `persist = "all"` is not. Otherwise they stay, and run on, until `hutch rm`.
      '';
    };

    settings = lib.mkOption {
      inherit (format) type;
      default = { };
      example = {
        workspaces.web.env.EDITOR = "vim";
      };
      description = ''
        Written over what the other options make of hutch.toml, in hutch's own words, for what they cannot say.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = workspaces.assertions cfg;
    warnings = workspaces.warnings cfg;

    environment.systemPackages = [ cfg.package ];
    environment.shellAliases = workspaces.aliases names;

    # With a mode, NixOS copies these files: hutch knows workspaces by the path of the file that declares them, which
    # must not lead into the store, where each version has another one; and it keeps names in a block of /etc/hosts.
    environment.etc."hutch/hutch.toml" = {
      source = format.generate "hutch.toml" told;
      mode = "0644";
    };
    environment.etc.hosts.mode = "0644";

    # Each switch writes /etc/hosts anew, so the block must be put back even where nothing else has changed.
    system.activationScripts.hutch = {
      deps = [ "etc" ];
      text = ''
        case "''${NIXOS_ACTION:-}" in
          switch | test) echo hutch.service >>/run/nixos/activation-reload-list ;;
        esac
      '';
    };

    systemd.services.hutch = {
      description = "Workspaces of hutch";
      wantedBy = [ "multi-user.target" ];
      wants = [ "network-online.target" ];
      after = [
        "network-online.target"
        "firewall.service"
        "nftables.service"
      ];
      unitConfig.RequiresMountsFor = [ "/var/lib/hutch" ];
      # Stopping the unit stops workspaces, so no switch may do it: hutch itself restarts those that need it.
      reloadIfChanged = true;
      path = [
        cfg.package
        pkgs.jq
      ];
      script = reconcile;
      reload = reconcile;
      preStop = "hutch -f ${file} down";
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        KillMode = "process";
        TimeoutStartSec = "infinity"; # the first time, images are built
        TimeoutStopSec = "2min";
      };
    };

    # Its members have workspaces of their own without being root, by this one program.
    users.groups.hutch = { };
    environment.pathsToLink = [ "/lib/hutch" ];
    security.sudo.extraRules = [
      {
        groups = [ "hutch" ];
        runAs = "root";
        commands = [
          {
            command = "/run/current-system/sw/lib/hutch/member";
            options = [ "NOPASSWD" ];
          }
        ];
      }
    ];

    programs.ssh.extraConfig = "Include /etc/ssh/ssh_config.d/*.conf";

    boot.kernel.sysctl."net.ipv4.ip_forward" = lib.mkDefault 1;
    boot.kernelModules = lib.optional wantsVsock "vhost_vsock";

    # Workspaces ask the host for names; nothing else of it is open to them.
    networking.firewall.interfaces.${uplink} = {
      allowedTCPPorts = [ 53 ];
      allowedUDPPorts = [ 53 ];
    };
  };
}
