"""What a node, a device and a run may say, stated once: the schema, what walks it, and what is generated from it."""
