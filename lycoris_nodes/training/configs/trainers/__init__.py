"""How each trainer names its settings. A module that is added to this folder is registered."""
