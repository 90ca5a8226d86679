"""Exported graphs of real architectures without their weights, and the recipes that made them."""
