"""Other libraries; each script but `peer` runs in an environment of its own."""
