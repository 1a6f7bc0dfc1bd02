"""Other libraries; each script except `peer` runs in an environment of its own."""
