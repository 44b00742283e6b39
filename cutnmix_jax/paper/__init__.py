"""The paper's tables and figure: their cells, the training of all of them, and what came out beside the paper's own."""
