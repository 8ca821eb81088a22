# hutch, with the manual pages that its wheel brings and completion for three shells.
{
  lib,
  buildEnv,
  fetchurl,
  installShellFiles,
  pkgs,
  python3,
  systemd,
}:
let
  python = python3;
  project = (builtins.fromTOML (builtins.readFile ../pyproject.toml)).project;

  # nixpkgs has it older than hutch needs it, so it is what uv.lock says.
  lock = builtins.fromTOML (builtins.readFile ../uv.lock);
  locked = lib.findFirst (package: package.name == "qemu-qmp") null lock.package;
  qemu-qmp = python.pkgs.buildPythonPackage {
    pname = locked.name;
    inherit (locked) version;
    pyproject = true;
    src = fetchurl {
      inherit (locked.sdist) url;
      sha256 = lib.removePrefix "sha256:" locked.sdist.hash;
    };
    build-system = with python.pkgs; [
      setuptools
      setuptools-scm
    ];
    pythonImportsCheck = [ "qemu.qmp" ];
  };

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
      ../package
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
    rich
    tree-sitter
    tree-sitter-grammars.tree-sitter-toml
    qemu-qmp # the one above
  ];
  pythonRelaxDeps = [ "tree-sitter-toml" ]; # nixpkgs numbers grammars in its own way

  # The program that speaks to QEMU imports nothing but what lies beside hutch.
  postInstall = ''
    ln -s ${qemu-qmp}/${python.sitePackages}/qemu $out/${python.sitePackages}/qemu
  '';
  postFixup = ''
    for shell in bash zsh fish; do
      $out/bin/hutch completion $shell >hutch.$shell
    done
    installShellCompletion --cmd hutch hutch.{bash,zsh,fish}

    # The entry point of members is the command with another function, and with nothing of its caller's Python.
    mkdir -p $out/lib/hutch
    substitute $out/bin/.hutch-wrapped $out/lib/hutch/member \
      --replace-fail 'from hutch.__main__ import entry' 'from hutch.cli.member import entry'
    sed -i '1s/$/ -I/' $out/lib/hutch/member
    chmod 755 $out/lib/hutch/member
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
