"""The work of Judge LyCORIS: find the files, measure the loss and the pictures of each, choose the best."""
