"""What the kernel refuses to a guest: filters of system calls, and an empty keyring."""
