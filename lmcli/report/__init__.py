"""Tables, figures and one HTML page from what runs wrote; reads JSON only."""
