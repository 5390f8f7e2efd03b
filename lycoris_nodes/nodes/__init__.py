"""The nodes, one in each file. A module that defines a node class registers it."""
