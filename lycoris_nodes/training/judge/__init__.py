"""What Judge LyCORIS does: the files that are judged, the loss and the pictures of each, and the best."""
