"""Pure: what a guest is told. Nothing here reads or changes the host."""
