"""Tasks: what is asked, how a reply is judged, what a constant answer would reach. They know no model and no file."""
