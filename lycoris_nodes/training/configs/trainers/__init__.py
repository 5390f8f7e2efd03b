"""How each trainer names its settings. A module in this folder is found by itself."""
