"""Association studies: the server's part."""
