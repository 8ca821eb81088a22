"""The record of what a workspace did: JSON lines that are only added to, each with the hash of the one before.

`events` and `chain` are pure: what may stand in a line, how lines are chained, and what is wrong with some. `reading`
looks at the files of a record, `writing` is root's one way to add to them, and `inbox` takes what others than root tell
and has root fold it in. docs/record.md is for users.
"""
