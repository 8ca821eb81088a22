"""The file: its keys, how each is validated, loaded and described, and every name derived from them.

Nothing here changes the host. Loading reads the file, the user database and public keys; no more.
"""
