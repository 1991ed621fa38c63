"""The shipped test kit: what checks a disk, a store or a whole service against the promises of mmwal."""
