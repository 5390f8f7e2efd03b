"""What each trainer calls its settings. A module that lies here is found by itself."""
