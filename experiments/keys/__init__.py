"""Reference of all keys of a study and of a site's manifest, from their models: JSON schema, ``docs/keys.md``, ``--explain``."""
