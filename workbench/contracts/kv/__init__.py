"""The parts of the `sequence` contract: what a cache holds, what attends, how a method chooses, how it is decoded and stored."""
