"""Models of other libraries, in and out: tables that are read in both directions."""
