"""A site's persons: table, images, variants, clinical columns, and what is put together from them."""
