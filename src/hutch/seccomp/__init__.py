"""What the kernel refuses to a guest: seccomp filters, and an empty keyring."""
