"""The Debian package of hutch, built by script/package, and every package's manual pages. None of it is installed."""
