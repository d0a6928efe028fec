"""One thin file per subcommand; `options` and `creation` hold what they share."""
