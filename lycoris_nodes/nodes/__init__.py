"""The nodes, one a file. A module that defines a node class registers it."""
