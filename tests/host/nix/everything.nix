# Every option once.
{
  sandboxed-workspace = {
    enable = true;
    prune = true;
    network = {
      bridge = "work0";
      subnet = "192.168.90.0/24";
      uplink = "192.168.91.0/30";
    };
    defaults = {
      user = "alice";
      memory = "2GiB";
      autoStart = true;
    };
    engines.incus = {
      remote = "cluster";
      project = "work";
      target = "@fast";
      subnet = "10.84.0.0/16";
    };
    kits.tools = {
      packages = [ "jq" ];
      setup = "npm --version";
      extraMounts.cache = {
        hostPath = "/srv/cache";
        containerPath = "/cache";
      };
      env.PAGER = "less";
      protect = [ "Makefile" ];
      egress = [ "registry.npmjs.org:443" ];
    };
    workspaces = {
      all = {
        type = "vm";
        engine = "local";
        hypervisor = "qemu";
        image = "debian:bookworm";
        packages = [
          "git"
          "libstdc++6"
        ];
        setup = ''
          echo "it's \"built\"" >/etc/motd
          printf '%s\n' '$HOME'
        '';
        user = "dev";
        shell = "/bin/sh";
        authorizedKeys = [ "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKotIqu5H3OSHuy88InDBySHJvg0MOTh65++0Y1TDAJC alice@host" ];
        owner = 1000;
        shareWith = [ "daemon" "@daemon" ];
        ip = "192.168.90.10";
        mac = "02:00:00:00:00:01";
        cid = 4000;
        vcpus = 4;
        memory = "4GiB";
        disk = "8G";
        autoStart = false;
        autoRefresh = "weekly";
        restartIfChanged = false;
        home = "/srv/homes/all";
        persist = "all";
        extraMounts = {
          lab = {
            hostPath = "/srv/lab";
            containerPath = "/src";
            readOnly = true;
          };
          new = {
            hostPath = "/srv/new";
            containerPath = "/new";
            createHostPath = true;
            shift = true;
          };
          settings = {
            hostPath = "/srv/settings";
            containerPath = "/settings";
            mode = "private";
          };
        };
        egress = [
          "*.example.org"
          "api.example.com:443"
          "198.51.100.0/24"
        ];
        publish = [
          "8080:80"
          "127.0.0.1:5353:53/udp"
        ];
        env.EDITOR = "vim";
        protect = [ ".github/workflows" ];
        protectDefault = false;
        nixStore = true;
        use = [ "tools" ];
        passHostGpu = true;
        nesting = true;
        vsock = true;
        learn = true;
        idle = {
          after = "30min";
          "then" = "suspend";
        };
        hostKey = "ssh-ed25519 AAAA";
      };
      ci.type = "incus";
      web = {
        type = "container";
        egress = "none";
        env.LANG = "C.UTF-8";
      };
    };
    settings.workspaces.web.env.EDITOR = "vim";
  };
}
