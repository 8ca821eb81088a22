# nix/module.nix for one configuration (a file of tests/host/nix or examples): its options, and what it configures.
{ configuration }:
let
  lib = import ./lib.nix;
  pkgs = {
    jq = "/jq";
    callPackage = _: _: "/hutch";
    formats.toml = _: {
      type.name = "toml";
      generate = _: content: content;
    };
  };
  given = import configuration;
  module =
    import ../../../nix/module.nix {
      inherit lib pkgs;
      config.sandboxed-workspace = lib.fill module.options.sandboxed-workspace (
        if builtins.isFunction given then (given { }).sandboxed-workspace else given.sandboxed-workspace
      );
    };

  # Options by their paths, with what people are told of each.
  describe =
    path: options:
    builtins.concatMap (
      name:
      let
        option = options.${name};
        here = "${path}${name}";
      in
      if !lib.isOption option then
        describe "${here}." option
      else
        [
          {
            name = here;
            type = typeName option.type;
            nullable = option.type.name == "nullOr";
            default = option.defaultText or (if option ? default then builtins.toJSON option.default else null);
            description = option.description;
          }
        ]
        ++ inside here option.type
    ) (builtins.attrNames options);
  inside =
    path: type:
    if type.name == "submodule" then
      describe "${path}." type.options
    else if type.name == "attrsOf" then
      inside "${path}.<name>" type.inner
    else if type ? inner then
      inside path type.inner
    else
      [ ];
  typeName =
    type:
    if type.name == "nullOr" then
      typeName type.inner
    else if type.name == "enum" then
      builtins.concatStringsSep " or " (map builtins.toJSON type.values)
    else if type.name == "oneOf" then
      builtins.concatStringsSep " or " (map typeName type.options)
    else if type.name == "listOf" then
      "list of ${typeName type.inner}"
    else if type.name == "attrsOf" then
      "set of ${typeName type.inner}"
    else if type.name == "between" then
      "${toString type.lowest} to ${toString type.highest}"
    else
      {
        int = "number";
        path = "path";
        package = "package";
        str = "text";
        strMatching = "text";
        submodule = "set";
        toml = "set";
        bool = "true or false";
      }
      .${type.name};
in
{
  options = describe "" module.options.sandboxed-workspace;
  inherit (module) config;
}
