"""Detection: boxes, and masks where the data has them, of objects of known classes."""
