# The keys of hutch.toml and what their options are called here. hutch's own schema.json is what `hutch schema` prints, so each key
# has its type, its default and its meaning from hutch itself. Built on builtins alone.
let
  schema = builtins.fromJSON (builtins.readFile ../src/hutch/spec/schema.json);

  # Where the module that this one follows has a name of its own, that is the name. The others are hutch's, in camelCase.
  originals = {
    Workspace = {
      autostart = "autoStart";
      gpu = "passHostGpu";
      mounts = "extraMounts";
    };
    Kit.mounts = "extraMounts";
    Mount = {
      source = "hostPath";
      target = "containerPath";
      readonly = "readOnly";
      create = "createHostPath";
    };
  };

  letters = builtins.genList (index: builtins.substring index 1 "abcdefghijklmnopqrstuvwxyz") 26;
  capitals = builtins.genList (index: builtins.substring index 1 "ABCDEFGHIJKLMNOPQRSTUVWXYZ") 26;
  camelCase = builtins.replaceStrings (map (letter: "_${letter}") letters) capitals;
in
rec {
  tables = schema."$defs";

  # The grammar of a workspace's name.
  workspaceName = schema.properties.workspaces.propertyNames.pattern;

  # "Workspace", "network" and the like -> { key = property; }.
  keysOf = table: tables.${table}.properties;

  # What a key of a table is called as an option.
  optionOf = table: key: originals.${table}.${key} or (camelCase key);

  isRequired = table: key: builtins.elem key (tables.${table}.required or [ ]);

  # The table that a property stands for or is a list of, null for a plain value.
  tableOf =
    property:
    let
      reference = property."$ref" or (property.items."$ref" or null);
    in
    if reference == null then null else builtins.substring 8 (-1) reference; # behind "#/$defs/"

  # A list of tables is written as a set here, so that each has a name by which another module can change it.
  isNamed = property: (property.type or "") == "array" && tableOf property != null;

  # A value of a key as Nix text, for manuals.
  toText =
    value:
    if builtins.isList value then
      "[ ${builtins.concatStringsSep " " (map toText value)} ]"
    else
      builtins.toJSON value;
}
