"""Measures hutch, in one run on one machine, against what one would use instead.

`bench/run` is the command. place makes a private place to measure in, and systemd takes a whole host for it; ours,
incus, bare, barevm and stock drive those that are compared; rows and vms say what is measured and what is promised;
report draws the result.
Nothing here is imported by hutch, and nothing here imports it: it is measured from outside, as a user
meets it.
"""
