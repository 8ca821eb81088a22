# From the options to what hutch is told: hutch.toml as a set, what is wrong with it, the aliases, and the commands of
# the unit. Pure, and built on builtins alone: `cfg` is config.sandboxed-workspace, whole.
let
  keys = import ./keys.nix;

  # The options of a table as hutch's keys, without what nobody said.
  render =
    table: options:
    builtins.listToAttrs (
      builtins.concatMap (
        key:
        let
          value = options.${keys.optionOf table key} or null;
          property = (keys.keysOf table).${key};
        in
        if value == null then
          [ ]
        else
          [
            {
              name = key;
              value = renderValue property value;
            }
          ]
      ) (builtins.attrNames (keys.keysOf table))
    );

  renderValue =
    property: value:
    let
      table = keys.tableOf property;
    in
    if keys.isNamed property then
      map (render table) (builtins.attrValues value)
    else if table != null then
      render table value
    else
      value;

  # An Incus container is a type of its own in the module that this one follows; hutch has engines.
  renderWorkspace =
    options:
    let
      rendered = render "Workspace" options;
    in
    if (rendered.type or null) == "incus" then
      rendered
      // {
        type = "container";
        engine = "incus";
      }
    else
      rendered;

  # `changes` over `base`, table by table.
  merge =
    base: changes:
    base
    // builtins.mapAttrs (
      name: change:
      if builtins.isAttrs change && builtins.isAttrs (base.${name} or null) then
        merge base.${name} change
      else
        change
    ) changes;

  # `name` as a table with this content, or nothing where there is none.
  table = name: content: if content == { } then { } else { ${name} = content; };

  settings =
    cfg:
    merge (
      table "network" (render "Network" cfg.network)
      // table "defaults" (renderWorkspace cfg.defaults)
      // table "engines" (table "incus" (render "Incus" cfg.engines.incus))
      // table "kits" (builtins.mapAttrs (_: render "Kit") cfg.kits)
      // table "workspaces" (builtins.mapAttrs (_: renderWorkspace) cfg.workspaces)
    ) cfg.settings;

  # What a workspace has for a key, its own or by default; null for neither.
  valueOf =
    told: name: key:
    told.workspaces.${name}.${key} or (told.defaults.${key} or null);
  namesOf = told: builtins.attrNames (told.workspaces or { });

  digest = builtins.hashString "sha256";
  lowerCase = builtins.replaceStrings [ "A" "B" "C" "D" "E" "F" ] [ "a" "b" "c" "d" "e" "f" ];
  identifiers = {
    ip = told: name: valueOf told name "ip";
    mac =
      told: name:
      let
        given = valueOf told name "mac";
        bytes = builtins.genList (index: builtins.substring (2 * index) 2 (digest name)) 5;
      in
      if given != null then lowerCase given else builtins.concatStringsSep ":" ([ "02" ] ++ bytes);
    cid =
      told: name:
      let
        given = valueOf told name "cid";
        number = (builtins.fromTOML "it = 0x${builtins.substring 0 6 (digest name)}").it;
      in
      if given != null then given else 100 + number;
  };

  # Each pair of a value and the names that have it, where these are several.
  shared =
    told: key:
    let
      owners = builtins.groupBy (name: toString (identifiers.${key} told name)) (
        builtins.filter (name: identifiers.${key} told name != null) (namesOf told)
      );
    in
    map (value: {
      inherit value;
      names = owners.${value};
    }) (builtins.filter (value: builtins.length owners.${value} > 1) (builtins.attrNames owners));

  option = name: "sandboxed-workspace.workspaces.${name}";
  refuse = message: {
    assertion = false;
    inherit message;
  };
  startedAtBoot = told: builtins.filter (name: valueOf told name "autostart" == true) (namesOf told);
in
{
  inherit identifiers settings startedAtBoot;

  # What NixOS refuses to build, as its `assertions` are. What only the host can tell, `hutch up` does.
  assertions =
    cfg:
    let
      told = settings cfg;
      names = namesOf told;
      isName = name: builtins.match keys.workspaceName name != null;
      declared = builtins.attrNames cfg.workspaces;
    in
    map (
      name:
      refuse "${option name}: this cannot name a workspace; it takes 1 to 32 lower-case letters, digits and inner hyphens."
    ) (builtins.filter (name: !isName name) names)
    ++ map (name: refuse ''${option name}.type is not set; it is "vm", "container" or "incus".'') (
      builtins.filter (name: valueOf told name "type" == null) names
    )
    ++
      map
        (
          name:
          refuse "${option name}.config: hutch runs no NixOS guests. Say what the guest has in `packages` and `setup`, and leave this out."
        )
        (builtins.filter (name: (cfg.workspaces.${name}.config or null) != null) declared)
    ++ builtins.concatMap (
      name:
      let
        mounts = cfg.workspaces.${name}.extraMounts or null;
        fixed = builtins.filter (mount: !(mounts.${mount}.shift or true)) (
          builtins.attrNames (if mounts == null then { } else mounts)
        );
      in
      map (
        mount: refuse "${option name}.extraMounts.${mount}.shift = false: hutch always maps owners; leave this out."
      ) fixed
    ) declared
    ++ builtins.concatMap (
      key:
      map (
        clash:
        refuse "sandboxed-workspace: the workspaces ${builtins.concatStringsSep " and " clash.names} have the same ${key}, ${clash.value}; set another one in all but one of them."
      ) (shared told key)
    ) (builtins.attrNames identifiers);

  warnings =
    cfg:
    map (
      name: "${option name}.hostKey has no effect: hutch makes the host key, keeps it and has ssh trust it."
    ) (builtins.filter (name: (cfg.workspaces.${name}.hostKey or null) != null) (builtins.attrNames cfg.workspaces));

  # As `hutch aliases` prints them, for every shell that NixOS configures.
  aliases =
    names:
    builtins.listToAttrs (
      builtins.concatMap (
        name:
        [
          {
            name = "workspace_${name}";
            value = "ssh workspace-${name}";
          }
        ]
        ++ map (verb: {
          name = "workspace_${name}_${verb}";
          value = "hutch ${verb} ${name}";
        }) [ "start" "stop" "restart" "status" ]
      ) names
    );

  # What the unit runs when the host boots and after each switch: it starts what is to be started with the host, applies
  # what has changed to what runs, and prepares the rest without starting it.
  reconcile =
    {
      file,
      told,
      prune,
    }:
    ''
      set -o pipefail
      names="${builtins.concatStringsSep " " (startedAtBoot told)}"
      names="$names $(hutch status --json | jq --raw-output --arg file ${file} '
        .[] | select(.file == $file and (.state == "running" or .state == "starting")) | .name
        | select(IN($ARGS.positional[]))' --args ${builtins.concatStringsSep " " (namesOf told)})"
      if [ -n "''${names// /}" ]; then
        hutch -f ${file} up $names
      fi
      hutch -f ${file} up --no-start${if prune then " --prune" else ""}
    '';
}
