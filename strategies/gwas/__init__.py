"""Association studies: the server's half."""
