"""The router namespace and all that serves workspaces in it: bridge, filters, names."""
