"""Files of each format version, checked in, and a reader of the standard library that decodes them."""
