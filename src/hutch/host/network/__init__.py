"""The router namespace and the services for workspaces in it: bridge, filters, names."""
