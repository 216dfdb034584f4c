"""A study's own code: where its bytes are, what it imports, and how a name becomes an object."""
