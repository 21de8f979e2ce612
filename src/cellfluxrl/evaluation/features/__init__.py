"""What is compared between sets of cells: networks and a morphology panel."""
