"""Pure: the settings that a guest is given. Nothing here reads or changes the host."""
