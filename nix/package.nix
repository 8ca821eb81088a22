# hutch, with the manual pages that its wheel brings and completion for three shells.
{
  lib,
  buildEnv,
  installShellFiles,
  pkgs,
  python3,
  systemd,
}:
let
  python = python3;
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;
  tools = buildEnv {
    name = "hutch-tools";
    paths = lib.unique (lib.concatLists (lib.attrValues (import ./host.nix pkgs)));
    pathsToLink = [
      "/bin"
      "/share/keyrings"
      "/share/qemu"
    ];
    ignoreCollisions = true; # several have a `kill` and the like
  };
in
python.pkgs.buildPythonApplication {
  pname = project.name;
  inherit (project) version;
  pyproject = true;

  src = lib.fileset.toSource {
    root = ../.;
    fileset = lib.fileset.unions [
      ../LICENSE
      ../README.md
      ../hatch_build.py
      ../pyproject.toml
      ../src
    ];
  };

  postPatch = lib.concatMapStrings (change: ''
    substituteInPlace src/hutch/${change.file} --replace-fail ${lib.escapeShellArg change.from} ${lib.escapeShellArg change.to}
  '') (import ./paths.nix { inherit tools systemd; });

  build-system = [ python.pkgs.hatchling ];
  nativeBuildInputs = [ installShellFiles ];
  dependencies = with python.pkgs; [
    click
    dnspython
    idna
    pydantic
    qemu-qmp
    rich
    tree-sitter
    tree-sitter-grammars.tree-sitter-toml
  ];
  pythonRelaxDeps = [ "tree-sitter-toml" ]; # nixpkgs numbers grammars in its own way

  # A supervisor imports nothing but what is beside hutch, and speaks to QEMU.
  postInstall = ''
    ln -s ${python.pkgs.qemu-qmp}/${python.sitePackages}/qemu $out/${python.sitePackages}/qemu
  '';
  postFixup = ''
    for shell in bash zsh fish; do
      $out/bin/hutch completion $shell >hutch.$shell
    done
    installShellCompletion --cmd hutch hutch.{bash,zsh,fish}
  '';

  doCheck = false; # the tests need root, namespaces and images
  pythonImportsCheck = [ "hutch" ];

  passthru = { inherit tools; };
  meta = {
    inherit (project) description;
    license = lib.licenses.asl20;
    mainProgram = "hutch";
    platforms = [ "x86_64-linux" ];
  };
}
