"""Pictures for people: coloured depth, contact sheets, point clouds."""
