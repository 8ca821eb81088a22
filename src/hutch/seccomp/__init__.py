"""The kernel's refusals to a guest: seccomp filters, and an empty keyring."""
