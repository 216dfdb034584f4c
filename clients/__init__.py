"""The hospital: site manifest, ClientApp, the ``fedml-site`` command."""
