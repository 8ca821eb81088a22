# What nix/ uses of nixpkgs' lib, for hosts that have no nixpkgs: options and types are data, `fill` puts defaults into a
# configuration. It merges nothing and checks no types; with nixpkgs on NIX_PATH the tests do that with the real one.
rec {
  mkOption = option: option // { _type = "option"; };
  mkEnableOption = description: mkOption {
    inherit description;
    type = types.bool;
    default = false;
  };
  mkIf = condition: content: if condition then content else { };
  mkDefault = value: value;
  literalExpression = text: text;

  any = test: list: builtins.any test list;
  attrValues = builtins.attrValues;
  concatLists = builtins.concatLists;
  concatMapStrings = render: list: builtins.concatStringsSep "" (map render list);
  escapeShellArg = text: "'${builtins.replaceStrings [ "'" ] [ "'\\''" ] text}'";
  findFirst = test: default: list: builtins.head (builtins.filter test list ++ [ default ]);
  removePrefix = prefix: text: builtins.substring (builtins.stringLength prefix) (-1) text;
  optional = condition: value: if condition then [ value ] else [ ];
  unique = builtins.foldl' (seen: item: if builtins.elem item seen then seen else seen ++ [ item ]) [ ];
  fileset = {
    toSource = source: source;
    unions = files: files;
  };
  licenses.asl20 = "asl20";

  types = {
    bool.name = "bool";
    int.name = "int";
    package.name = "package";
    path.name = "path";
    str.name = "str";
    attrsOf = inner: {
      name = "attrsOf";
      inherit inner;
    };
    enum = values: {
      name = "enum";
      inherit values;
    };
    ints.between = lowest: highest: {
      name = "between";
      inherit lowest highest;
    };
    listOf = inner: {
      name = "listOf";
      inherit inner;
    };
    nullOr = inner: {
      name = "nullOr";
      inherit inner;
    };
    oneOf = options: {
      name = "oneOf";
      inherit options;
    };
    strMatching = pattern: {
      name = "strMatching";
      inherit pattern;
    };
    submodule = { options }: {
      name = "submodule";
      inherit options;
    };
  };

  isOption = value: (value._type or "") == "option";

  # `given` with the defaults of these options; a name that no option has is an error, as in NixOS.
  fill =
    options: given:
    let
      unknown = builtins.attrNames (removeAttrs given (builtins.attrNames options));
    in
    if unknown != [ ] then
      throw "no option is called ${builtins.concatStringsSep ", " unknown}"
    else
      builtins.mapAttrs (
        name: option:
        if isOption option then
          fillValue option.type (
            given.${name} or (option.default or (throw "the option ${name} has no value"))
          )
        else
          fill option (given.${name} or { })
      ) options;

  fillValue =
    type: value:
    if type.name == "submodule" then
      fill type.options value
    else if type.name == "nullOr" && value != null then
      fillValue type.inner value
    else if type.name == "attrsOf" then
      builtins.mapAttrs (_: fillValue type.inner) value
    else
      value;
}
