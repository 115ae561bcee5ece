//! The design's *Rules, in order*, answered by a plain scan over a list: the oracle that compiled tables are tested against.
