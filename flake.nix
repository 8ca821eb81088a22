{
  description = "A machine of its own for every project, checkout or coding agent on a Linux host";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      system = "x86_64-linux"; # what hutch's virtual machines are of
      pkgs = nixpkgs.legacyPackages.${system};
      hutch = pkgs.callPackage ./nix/package.nix { };
      example = nixpkgs.lib.nixosSystem {
        inherit system;
        modules = [
          self.nixosModules.default
          ./examples/nixos.nix
        ];
      };
    in
    {
      nixosModules.default = ./nix/module.nix;
      overlays.default = final: _: { hutch = final.callPackage ./nix/package.nix { }; };
      packages.${system} = {
        inherit hutch;
        default = hutch;
      };
      checks.${system} = {
        inherit hutch;
        unit = example.config.systemd.units."hutch.service".unit;
        file = example.config.environment.etc."hutch/hutch.toml".source;
      };
      devShells.${system}.default = pkgs.mkShell {
        packages = [
          pkgs.python3
          pkgs.uv
          hutch.tools
        ];
      };
    };
}
