"""The search path of every command that hutch runs on the host. Imports nothing: programs that start often have it."""

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/run/current-system/sw/bin"
