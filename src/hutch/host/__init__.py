"""One file for each thing that hutch owns on the host, each with observe_, render_, ensure_ and remove_."""
