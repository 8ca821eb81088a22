"""The image cache: root trees that workspaces share read-only, each made once from its recipe."""
