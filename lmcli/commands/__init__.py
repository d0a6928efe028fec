"""One thin file per subcommand; `options` holds the flag families they share."""
