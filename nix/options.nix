# The options of sandboxed-workspace, made of hutch's own keys (see keys.nix). Nothing that a key's option leaves at null
# is written to hutch.toml: then `defaults` decides, and after it hutch.
{ lib }:
let
  keys = import ./keys.nix;
  inherit (lib) mkOption types;

  typeOf =
    property:
    let
      table = keys.tableOf property;
      one = {
        boolean = types.bool;
        integer =
          if property ? minimum then types.ints.between property.minimum property.maximum else types.int;
        string = if property ? pattern then types.strMatching property.pattern else types.str;
        array = types.listOf (typeOf property.items);
        object = types.attrsOf (typeOf property.additionalProperties);
      };
    in
    if keys.isNamed property then
      types.attrsOf (submodule table)
    else if table != null then
      submodule table
    else if property ? anyOf then
      types.oneOf (map typeOf property.anyOf)
    else if property ? enum then
      types.enum property.enum
    else if builtins.isList property.type then
      types.oneOf (map (type: one.${type}) property.type)
    else
      one.${property.type};

  submodule = table: types.submodule { options = optionsOf table; };

  optionsOf =
    table:
    builtins.listToAttrs (
      map (key: {
        name = keys.optionOf table key;
        value = optionFor table key;
      }) (builtins.attrNames (keys.keysOf table))
    )
    // additions.${table} or { };

  optionFor =
    table: key:
    let
      property = (keys.keysOf table).${key};
      type = typeOf property;
      description = "`${key}` in hutch.toml: ${property.description}.";
    in
    if keys.isRequired table key then
      mkOption { inherit type description; }
    else
      mkOption {
        inherit description;
        type = types.nullOr type;
        default = null;
        defaultText = lib.literalExpression (keys.toText (property.default or null));
      };

  # What the module that this one follows has beside hutch's keys: in a table, and in a workspace of its own.
  additions.Mount.shift = mkOption {
    type = types.bool;
    default = true;
    description = "hutch maps the owners of what it mounts in any case, so nothing but true is accepted.";
  };

  foreign = {
    type = mkOption {
      type = types.nullOr (types.enum ((keys.keysOf "Workspace").type.enum ++ [ "incus" ]));
      default = null;
      example = "vm";
      description = ''
        `type` in hutch.toml: ${(keys.keysOf "Workspace").type.description}. Each workspace needs one, of its own or
        from `defaults`. `"incus"` is a container with `engine = "incus"`.
      '';
    };
    config = mkOption {
      type = types.nullOr types.path;
      default = null;
      description = "hutch runs no NixOS guests, so nothing but null is accepted: see `packages` and `setup`.";
    };
    hostKey = mkOption {
      type = types.nullOr types.str;
      default = null;
      description = "Has no effect: hutch makes the host key itself and has ssh trust it.";
    };
  };

  tableOption =
    table: description:
    mkOption {
      type = submodule table;
      default = { };
      inherit description;
    };
in
{
  network = tableOption "Network" "`[network]` in hutch.toml: the workspaces' network.";
  defaults = tableOption "Workspace" "`[defaults]` in hutch.toml: what a workspace has that says nothing else.";
  engines.incus = tableOption "Incus" "`[engines.incus]` in hutch.toml: an Incus server that runs workspaces.";
  kits = mkOption {
    type = types.attrsOf (submodule "Kit");
    default = { };
    description = "The kits, by name: parts that workspaces have in common, for their option `use`.";
  };
  workspaces = mkOption {
    type = types.attrsOf (types.submodule { options = optionsOf "Workspace" // foreign; });
    default = { };
    example = lib.literalExpression ''
      {
        web = {
          type = "container";
          ip = "192.168.83.10";
          autoStart = true;
        };
        lab = {
          type = "vm";
          memory = "4GiB";
          egress = [ "*.example.org" ];
        };
      }
    '';
    description = "The workspaces, by name. A name takes 1 to 32 lower-case letters, digits and inner hyphens.";
  };
}
