"""The Debian package of hutch, built by script/package. Nothing of it is installed."""
